"""Seconds of a whole `embed-pipeline sync` where nothing changed.

python -m benchmarks.noop [--images 10000] [--runs 5]

prints one JSON line. The images are tiny: what is measured is listing, comparing and Dagster.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.machine import machine, versions

SYNC = [sys.executable, "-m", "embed_pipeline.cli", "sync", "many", "--json"]
# As `python -m embed_pipeline.cli` runs it, and then whether torch was imported.
WITH_MODULES = """
import sys
from embed_pipeline import cli
sys.argv = ["embed-pipeline", "sync", "many"]
try:
    cli.main()
finally:
    print("torch" in sys.modules, file=sys.stderr)
"""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.noop", description=__doc__)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "root"
        write_images(root / "many", arguments.images)
        ours = {
            "EMBED_SOURCE": f"folder:{root}",
            "EMBED_HOME": f"{folder}/home",
            "EMBED_MODEL": "demo",
        }
        environment = os.environ | ours
        subprocess.run(SYNC, env=environment, check=True, capture_output=True)
        seconds = [seconds_of_sync(environment, arguments.images) for _ in range(arguments.runs)]
        looked = [sys.executable, "-c", WITH_MODULES]
        done = subprocess.run(looked, env=environment, check=True, capture_output=True, text=True)
    report = {
        "images": arguments.images,
        "seconds_median": round(statistics.median(seconds), 2),
        "seconds_min": round(min(seconds), 2),
        "seconds_max": round(max(seconds), 2),
        "torch_imported": done.stderr.strip().endswith("True"),
    }
    print(json.dumps(report | {"machine": machine(), "versions": versions()}))


def write_images(folder: Path, count: int) -> None:
    """Write `count` different pictures of 8 x 8 pixels, in ten datasets."""
    for number in range(count):
        dataset = folder / f"dataset-{number % 10}"
        dataset.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).save(dataset / f"{number:06d}.png")


def seconds_of_sync(environment: dict[str, str], images: int) -> float:
    """Wall time of one sync, which must find everything unchanged."""
    started = time.perf_counter()
    done = subprocess.run(SYNC, env=environment, check=True, capture_output=True)
    seconds = time.perf_counter() - started
    assert json.loads(done.stdout)[0]["unchanged"] == images
    return seconds


if __name__ == "__main__":
    main()
