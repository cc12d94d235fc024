"""One look of the sensor at 10,000 projects of 50 images, 10 of which changed, by the real daemon.

    python -m benchmarks.tick

Prints one JSON line: seconds of the ticks and bytes of their rows in Dagster's storage, before the
change, with it, and after it, with the number of runs that each asked for.
"""

import argparse
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from dagster import DagsterInstance
from dagster._core.scheduler.instigation import InstigatorTick, TickStatus
from dagster._serdes import serialize_value
from PIL import Image

from benchmarks.machine import machine
from embed_pipeline.changes import Noticed, write_noticed
from embed_pipeline.dagster_home import prepare_dagster_home
from embed_pipeline.deployment import Deployment, open_deployment

IMAGES = 50
CHANGED = 10
PATIENCE_SECONDS = 300


def main() -> None:
    """Set up, look, print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--projects", type=int, default=10_000)
    projects: int = parser.parse_args().projects
    with tempfile.TemporaryDirectory() as top:
        root = Path(top) / "root"
        draw(root, projects)
        os.environ |= {
            "EMBED_SOURCE": f"folder:{root}",
            "EMBED_MODEL": "demo",
            "EMBED_HOME": f"{top}/home",
            "EMBED_INTERVAL_MINUTES": "0.2",
        }
        deployment = open_deployment()
        settle(deployment)
        prepare_dagster_home(deployment.settings)
        ticks = measure(root)
    names = ("before", "change", "after")
    figures = {name: told(tick) for name, tick in zip(names, ticks, strict=True)}
    print(json.dumps({"projects": projects, **figures, **machine()}))


def draw(root: Path, projects: int) -> None:
    """The same small picture everywhere: a look reads no contents."""
    Image.new("RGB", (8, 8)).save(picture := io.BytesIO(), "PNG")
    for project in range(projects):
        folder = root / f"project-{project:05}"
        folder.mkdir(parents=True)
        for image in range(IMAGES):
            (folder / f"{image:03}.png").write_bytes(picture.getvalue())


def settle(deployment: Deployment) -> None:
    """What the sensor knows after 10,000 syncs."""
    noticed = {}
    for project in deployment.source.projects():
        token = deployment.source.revision(project)[1]
        noticed[project] = Noticed(project, settled=deployment.revision(token))
    write_noticed(noticed, deployment.home.noticed(deployment.source.source_id))


def measure(root: Path) -> list[InstigatorTick]:
    """The second tick (the first one makes 10,000 partitions), the one with the change, and the next."""
    dev = [sys.executable, "-m", "embed_pipeline.cli", "dev", "--port", "3971"]
    with subprocess.Popen(dev, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            with DagsterInstance.get() as instance:
                before = wait_for_tick(instance, at_least=2)
                change(root)
                changed = before
                while not changed.run_ids:
                    changed = wait_for_tick(instance, after=changed)
                after = wait_for_tick(instance, after=changed)
        finally:
            process.send_signal(signal.SIGINT)
    return [before, changed, after]


def change(root: Path) -> None:
    """Nine new images and one edit in place."""
    for project in range(1, CHANGED):
        new = root / f"project-{project:05}" / "new.png"
        new.write_bytes((root / "project-00000" / "000.png").read_bytes())
    with (root / "project-00000" / "000.png").open("r+b") as file:
        file.seek(-1, io.SEEK_END)
        file.write(b"\0")


def wait_for_tick(
    instance: DagsterInstance, at_least: int = 1, after: InstigatorTick | None = None
) -> InstigatorTick:
    """The newest finished tick, once there are so many, or one after `after`."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        states = [s for s in instance.all_instigator_state() if s.name == "project_changes"]
        ticks = [
            tick
            for state in states
            for tick in instance.get_ticks(state.instigator_origin_id, state.selector_id)
            if tick.status != TickStatus.STARTED
        ]
        newer = [tick for tick in ticks if not after or tick.tick_id > after.tick_id]
        if len(ticks) >= at_least and newer:
            return newer[-1] if after else newer[0]
        time.sleep(0.5)
    raise TimeoutError("no tick")


def told(tick: InstigatorTick) -> dict[str, float | int | str | None]:
    """A tick's figures."""
    return {
        "seconds": round((tick.end_timestamp or 0) - tick.timestamp, 2),
        "row_bytes": len(serialize_value(tick.tick_data)),
        "runs": len(tick.run_ids),
        "skipped": tick.skip_reason,
    }


if __name__ == "__main__":
    main()
