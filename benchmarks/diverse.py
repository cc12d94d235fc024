"""Choosing images that differ: seconds and covering radius beside lightly-mundig, and memory of a million.

    python -m benchmarks.diverse [--vectors 50000] [--picks 1000]
    python -m benchmarks.diverse --million [--picks 1000]

prints one JSON line. The peer is given the same vectors, as float32. With --million, peak memory is that of a
process of its own that reads a vector library and chooses twice, by farthest and kmeans, coverage included.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import polars as pl

from benchmarks.diff import manifest_of, peak_bytes
from benchmarks.machine import machine, versions
from embed_pipeline.deployment import Deployment
from embed_pipeline.manifest import MANIFEST
from embed_pipeline.search.candidates import Candidates
from embed_pipeline.search.choice import Groups, choose
from embed_pipeline.search.distances import one_thread_per_block
from embed_pipeline.search.diverse import diverse
from embed_pipeline.search.selection import Selection
from embed_pipeline.search.view import View
from embed_pipeline.settings import load_settings
from embed_pipeline.vector_library import Halves, VectorLibrary

DIMENSION = 512
MILLION = 1_000_000
WRITTEN_AT_ONCE = 100_000
MIDDLES = 200
NO_GROUPS = Groups(np.empty(0, np.intp), np.empty(0, np.intp))
SETS = ("sphere", "clusters")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.diverse", description=__doc__)
    parser.add_argument("--vectors", type=int, default=50_000)
    parser.add_argument("--picks", type=int, default=1000)
    parser.add_argument("--million", action="store_true")
    parser.add_argument("--home", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.home:
        print(json.dumps(selected(given.home, given.picks)))
        return
    if given.million:
        report = of_a_million(given.picks)
    else:
        report = {name: beside_peer(name, given.vectors, given.picks) for name in SETS}
    print(json.dumps({"picks": given.picks, **report, **machine(), "versions": versions()}))


def vectors_of(name: str, count: int, seed: int = 0) -> Halves:
    """Unit vectors: of all directions, or around some middles."""
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((count, DIMENSION), np.float32)
    if name == "clusters":
        middles = np.random.default_rng(0).standard_normal((MIDDLES, DIMENSION), np.float32)
        vectors = middles[rng.integers(0, MIDDLES, count)] + np.float32(0.3) * vectors
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.astype(np.float16)


def beside_peer(name: str, count: int, picks: int) -> dict[str, object]:
    """Seconds and covering radius of both, peer last. same_start: ours, given the peer's first image."""
    points = vectors_of(name, count)
    ours = {}
    for start, before in (("", points[:0]), ("_same_start", points[:1])):
        images = pl.DataFrame({"point": np.arange(count), "dataset_id": ["all"] * count})
        candidates = Candidates(images, points, before, [])
        selection = Selection(limit=picks - len(before))
        started = time.perf_counter()
        with one_thread_per_block():
            away = choose(candidates, NO_GROUPS, selection, candidates.taking())
        ours["seconds" + start] = round(time.perf_counter() - started, 2)
        ours["radius" + start] = round(float(np.sqrt(away.max())), 5)
    theirs = peer(points.astype(np.float32), picks)
    share = round(float(ours["seconds"] / theirs["seconds"]), 3)
    return {**ours, "lightly-mundig": theirs, "share_of_its_seconds": share}


def peer(vectors: np.ndarray, picks: int) -> dict[str, float | str | int]:
    """lightly-mundig's diversity. seconds: with handing over the vectors, selecting: without."""
    import lightly_mundig

    started = time.perf_counter()
    selection = lightly_mundig.Selection()
    selection.add_diversifying_strategy(embeddings=vectors, strength=1.0)
    given = time.perf_counter()
    chosen = selection.run_selection(
        preselected_indices=[], n_total_samples=len(vectors), n_samples_to_select=picks
    )
    ended = time.perf_counter()
    nearest = np.full(len(vectors), np.inf)
    for at in range(0, picks, 100):
        rows = vectors[chosen[at : at + 100]].astype(np.float64)
        np.minimum(nearest, _squared(vectors, rows).min(axis=1), out=nearest)
    return {
        "version": version("lightly-mundig"),
        "first": chosen[0],
        "seconds": round(ended - started, 2),
        "seconds_selecting": round(ended - given, 2),
        "radius": round(float(np.sqrt(nearest.max())), 5),
    }


def _squared(vectors: np.ndarray, others: np.ndarray) -> np.ndarray:
    lengths = np.square(vectors, dtype=np.float64).sum(axis=1)[:, None]
    return lengths + np.square(others).sum(axis=1) - 2 * (vectors @ others.T)


def of_a_million(picks: int) -> dict[str, object]:
    """Write the library and the manifest's contents, then select in another process."""
    with tempfile.TemporaryDirectory() as home:
        library = VectorLibrary(Path(home) / "library", DIMENSION)
        library.root.mkdir()
        manifest = manifest_of(MILLION)
        MANIFEST.write(manifest, Path(home) / "manifest.parquet")
        for number, at in enumerate(range(0, MILLION, WRITTEN_AT_ONCE)):
            vectors = vectors_of("clusters", WRITTEN_AT_ONCE, seed=number)
            library.add(
                manifest["content_hash"][at : at + WRITTEN_AT_ONCE], vectors.astype(np.float32)
            )
        here = [sys.executable, "-m", "benchmarks.diverse", "--picks", str(picks), "--home", home]
        told = subprocess.run(here, check=True, stdout=subprocess.PIPE, text=True).stdout
    return {"vectors": MILLION, **json.loads(told)}


def selected(home: Path, picks: int) -> dict[str, object]:
    """Seconds of a whole selection by each method, and the most memory that the process ever had."""
    settings = load_settings().model_copy(
        update={"home": home, "source": f"folder:{home}", "model_name": "demo"}
    )
    deployment = Deployment(settings)
    view = View(deployment, "million", deployment.card)
    vars(view)["manifest"] = MANIFEST.read(home / "manifest.parquet")
    vars(view)["library"] = VectorLibrary(home / "library", DIMENSION)
    report: dict[str, object] = {"peak_gb_before": round(peak_bytes() / 1e9, 2)}
    for method in ("farthest", "kmeans"):
        started = time.perf_counter()
        answer = diverse(view, Selection(limit=picks, method=method))
        seconds = round(time.perf_counter() - started, 1)
        report[method] = {
            "seconds": seconds,
            "coverage": vars(answer.coverage),
            "random": vars(answer.random),
            "peak_gb_whole_process": round(peak_bytes() / 1e9, 2),
        }
    return report


if __name__ == "__main__":
    main()
