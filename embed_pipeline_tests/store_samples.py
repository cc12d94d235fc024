"""Points and vectors for the tests of the stores, and the other processes in them."""

import hashlib
import os
import shutil
import signal
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import count
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np
import polars as pl

from embed_pipeline.points import POINTS, point_ids
from embed_pipeline.stores import shard
from embed_pipeline.stores.protocol import Vectors
from embed_pipeline.stores.qdrant_edge import EdgeCollection, QdrantEdgeStore

DIMENSION = 8
SPACE = "tiny"
BATCH = 256


def points(project_id: str, image_ids: Sequence[str], dataset: str = "d1") -> pl.DataFrame:
    """One row of POINTS columns per image id; the name is the id, the content its sha256."""
    series = pl.Series("image_id", image_ids, dtype=pl.String)
    return pl.DataFrame(
        {
            "point_id": point_ids(project_id, series),
            "project_id": [project_id] * len(image_ids),
            "dataset_id": [dataset] * len(image_ids),
            "dataset_name": [f"name of {dataset}"] * len(image_ids),
            "image_id": series,
            "name": series,
            "content_hash": [hashlib.sha256(i.encode()).digest() for i in image_ids],
            "updated_at": [datetime(2026, 1, 31, 12, 0, 0, 123456, tzinfo=UTC)] * len(image_ids),
        },
        schema=POINTS,
    )


def vectors(rows: int, seed: int = 0) -> Vectors:
    """(rows, DIMENSION) of unit norm."""
    raw = np.random.default_rng(seed).standard_normal((rows, DIMENSION)).astype(np.float32)
    unit: Vectors = raw / np.linalg.norm(raw, axis=1, keepdims=True)
    return unit


def batch_ids(batch: int) -> list[str]:
    """The image ids of one batch of `write_for_ever`."""
    return [f"{batch}/{i}.jpg" for i in range(BATCH)]


def edge_collection(root: Path, project_id: str, wait_seconds: float = 20) -> EdgeCollection:
    """A handle of a store of its own, as another process would have."""
    return QdrantEdgeStore(root, wait_seconds).collection(SPACE, DIMENSION, project_id)


def write_for_ever(root: Path, project_id: str, acknowledged: Path) -> None:
    """Upsert one batch after the other, and append a byte to `acknowledged` when each is done."""
    collection = edge_collection(root, project_id)
    first = acknowledged.stat().st_size if acknowledged.exists() else 0
    with acknowledged.open("ab", buffering=0) as done:
        for batch in count(first):
            collection.upsert(points(project_id, batch_ids(batch)), vectors(BATCH, seed=batch))
            done.write(b".")


def hold_a_turn(root: Path, project_id: str, holding: Event) -> None:
    """Hang in the middle of a turn."""
    with edge_collection(root, project_id)._turns.shard("upsert"):
        holding.set()
        time.sleep(60)


def make_and_die(root: Path, project_id: str, at_sync: int) -> None:
    """Make a shard, and be killed the moment it would sync its n-th file; -1: after its rename."""
    syncs = count(1)

    def die(path: Path) -> None:
        if next(syncs) == at_sync or (at_sync == -1 and path.name == SPACE):
            os.kill(os.getpid(), signal.SIGKILL)

    shard.sync = die  # type: ignore[attr-defined]  # imported there by name
    edge_collection(root, project_id).upsert(points(project_id, ["a"]), vectors(1))


def drop_and_die(root: Path, project_id: str, *, renamed: bool) -> None:
    """Drop a shard, and be killed just before, or just after, it has lost its name."""

    def die(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    if renamed:
        shutil.rmtree = die  # type: ignore[assignment]
    else:
        Path.rename = die  # type: ignore[method-assign, assignment]
    edge_collection(root, project_id).drop()
