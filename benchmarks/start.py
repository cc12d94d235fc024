"""Seconds until a command that needs the model has its first answer, with Python's threshold and with ours.

python -m benchmarks.start [--rounds 5]

prints one JSON line: medians of the user's CPU seconds and of the wall's, of whole `sync`s that embed four
images. Python's own threshold for garbage in cycles is the peer; rounds of both take turns.
"""

import argparse
import gc
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.machine import machine, versions
from benchmarks.noop import write_images
from embed_pipeline.process import OBJECTS_BETWEEN_LOOKS

IMAGES = 4
SYNC = """
import sys
from embed_pipeline import cli, process
process.OBJECTS_BETWEEN_LOOKS = int(sys.argv[1])
sys.argv = ["embed-pipeline", "sync", "few", "--json"]
cli.main()
"""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.start", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    thresholds = {"pythons": gc.get_threshold()[0], "ours": OBJECTS_BETWEEN_LOOKS}
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in thresholds}
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder) / "root" / "few", IMAGES)
        seconds_of_sync(Path(folder), OBJECTS_BETWEEN_LOOKS)  # compiles what is imported
        for _ in range(arguments.rounds):
            for name, threshold in thresholds.items():
                taken[name].append(seconds_of_sync(Path(folder), threshold))
    report: dict[str, object] = {"thresholds": thresholds}
    for at, what in enumerate(("cpu_seconds", "wall_seconds")):
        medians = {name: statistics.median(each[at] for each in taken[name]) for name in taken}
        report[what] = {name: round(median, 2) for name, median in medians.items()}
        report[f"{what}_ratio"] = round(medians["ours"] / medians["pythons"], 2)
    print(json.dumps(report | {"machine": machine(), "versions": versions()}))


def seconds_of_sync(folder: Path, threshold: int) -> tuple[float, float]:
    """CPU and wall seconds of one sync, which must embed everything."""
    home = folder / "home"
    shutil.rmtree(home, ignore_errors=True)
    ours = {
        "EMBED_SOURCE": f"folder:{folder / 'root'}",
        "EMBED_HOME": str(home),
        "EMBED_MODEL": "demo",
    }
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    arguments = [sys.executable, "-c", SYNC, str(threshold)]
    done = subprocess.run(arguments, env=os.environ | ours, check=True, capture_output=True)
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    assert json.loads(done.stdout)[0]["embed"] == IMAGES
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall


if __name__ == "__main__":
    main()
