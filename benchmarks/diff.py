"""Seconds and memory of the diff itself: a manifest against as many scrolled payloads.

python -m benchmarks.diff [--rows 1000000]

prints one JSON line: everything equal, and a thousand rows each added, changed, relabelled, removed.
"""

import argparse
import json
import resource
import sys
import time
from datetime import UTC, datetime

import numpy as np
import polars as pl

from benchmarks.machine import machine, versions
from embed_pipeline.diff import ACTIONS, Difference, Knowledge, diff, wanted_points
from embed_pipeline.manifest import MANIFEST
from embed_pipeline.points import POINTS

CHANGES = 1_000
NOTHING = pl.Series([], dtype=pl.Binary)
UNKNOWN = Knowledge(lambda hashes: hashes.clear(), NOTHING, NOTHING, NOTHING, NOTHING)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.diff", description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    rows = parser.parse_args().rows
    manifest = manifest_of(rows)
    held = wanted_points("source/project", manifest).select(POINTS.names())
    held = held.sample(fraction=1.0, shuffle=True, seed=0)
    equal, seconds_equal = timed(manifest, held)
    assert equal.unchanged == rows
    changed, seconds_changed = timed(manifest, with_changes(held))
    report = {
        "rows": rows,
        "seconds_equal": round(seconds_equal, 2),
        "seconds_changed": round(seconds_changed, 2),
        "actions": {action: changed.count(action) for action in ACTIONS},
        "peak_gb_whole_process": round(peak_bytes() / 1e9, 2),
    }
    print(json.dumps(report | {"machine": machine(), "versions": versions()}))


def manifest_of(rows: int) -> pl.DataFrame:
    """A manifest of that many images with names of ordinary length and contents of their own."""
    rng = np.random.default_rng(0)
    names = [f"camera-{i % 7}/2026-01-31/image_{i:08d}.jpg" for i in range(rows)]
    hashes = [rng.bytes(32) for _ in range(rows)]
    frame = pl.DataFrame({"image_id": names, "content_hash": hashes})
    return frame.select(
        "image_id",
        dataset_id=pl.col("image_id").str.head(8),
        dataset_name=pl.col("image_id").str.head(8),
        name=pl.col("image_id").str.tail(18),
        content_hash="content_hash",
        updated_at=pl.lit(datetime.now(UTC)),
        size=100_000,
        width=500,
        height=375,
        locator="image_id",
    ).cast(MANIFEST.schema)


def with_changes(held: pl.DataFrame) -> pl.DataFrame:
    """A thousand points each gone, of other content, of other name, and of no image."""
    row = pl.int_range(pl.len())
    changed = held.with_columns(
        content_hash=pl.when(row < CHANGES).then(pl.lit(b"?" * 32)).otherwise("content_hash"),
        name=pl.when(row.is_between(CHANGES, 2 * CHANGES, "left"))
        .then(pl.lit("x"))
        .otherwise("name"),
    )
    strangers = [bytes([255]) * 12 + number.to_bytes(4, "big") for number in range(CHANGES)]
    added = changed.head(CHANGES).with_columns(point_id=pl.Series(strangers))
    return pl.concat([changed.head(-CHANGES), added])


def timed(manifest: pl.DataFrame, held: pl.DataFrame) -> tuple[Difference, float]:
    """The difference, and the seconds that it took, the points' ids included."""
    started = time.perf_counter()
    found = diff(wanted_points("source/project", manifest), held, UNKNOWN, "run")
    return found, time.perf_counter() - started


def peak_bytes() -> int:
    """The most memory that this process ever had."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    main()
