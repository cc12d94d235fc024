"""Ten projects asked for together, one of 20,000 images and nine of 50: when is each searchable?

    python -m benchmarks.fairness [--large 20000]

Prints one JSON line: seconds from the moment that the daemon is up.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.machine import machine
from embed_pipeline.deployment import Deployment, open_deployment
from embed_pipeline.errors import EmbedPipelineError

SMALL = 50
SMALL_PROJECTS = 9
PATIENCE_SECONDS = 1800


def main() -> None:
    """Set up, watch, print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--large", type=int, default=20_000)
    large: int = parser.parse_args().large
    with tempfile.TemporaryDirectory() as top:
        root = Path(top) / "root"
        sizes = {"large": large, **{f"small-{n}": SMALL for n in range(SMALL_PROJECTS)}}
        for number, (project, images) in enumerate(sizes.items()):
            draw(root / project, images, seed=1_000_000 * number)
        os.environ |= {
            "EMBED_SOURCE": f"folder:{root}",
            "EMBED_MODEL": "demo",
            "EMBED_HOME": f"{top}/home",
        }
        figures = watch(open_deployment(), sizes)
    print(json.dumps({"large": large, **figures, **machine()}))


def draw(folder: Path, count: int, seed: int) -> None:
    """Different pictures of 320 x 240 pixels."""
    folder.mkdir(parents=True)
    for number in range(count):
        cells = np.random.default_rng(seed + number).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(cells).resize((320, 240)).save(folder / f"{number:06}.jpg")


def watch(deployment: Deployment, sizes: dict[str, int]) -> dict[str, float]:
    """Seconds until the first and the last of the small ones, and of the large one's images."""
    dev = [sys.executable, "-m", "embed_pipeline.cli", "dev", "--port", "3972"]
    first: dict[str, float] = {}
    whole: dict[str, float] = {}
    with subprocess.Popen(dev, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            started = time.monotonic()
            while len(whole) < len(sizes):
                seconds = round(time.monotonic() - started, 1)
                assert seconds < PATIENCE_SECONDS, f"searchable: {whole}"
                for project, images in sizes.items():
                    held = searchable(deployment, project)
                    if held:
                        first.setdefault(project, seconds)
                    if held == images:
                        whole.setdefault(project, seconds)
                time.sleep(1)
        finally:
            process.send_signal(signal.SIGINT)
    small = [whole[project] for project in sizes if project != "large"]
    return {
        "first_small": min(small),
        "last_small": max(small),
        "large_in_part": first["large"],
        "large_whole": whole["large"],
    }


def searchable(deployment: Deployment, project: str) -> int:
    """Points that a search could find now."""
    try:
        return deployment.collection(project, deployment.card).count()
    except EmbedPipelineError:
        return 0


if __name__ == "__main__":
    main()
