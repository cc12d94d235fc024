"""A Supervisely instance as a source: what a look asks of it, and how fast its images become vectors.

    python -m benchmarks.supervisely [--images 20000]

Prints one JSON line. The instance is a stand-in in a process of its own, which answers each preview
after LATENCY_SECONDS, and one in SLOW_EVERY after SLOW_SECONDS. `look`: one look of the sensor at
PROJECTS projects of which CHANGED changed. `steady`, `some_slow`: a first sync without and with the
slow images. Its ceilings are a bare client with as many connections (`link`), the same sync of an
instance that answers at once (`no_latency`), and one of the same pictures in a folder (`folder`).
"""

import argparse
import io
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Event
from typing import Any, Self
from unittest.mock import patch

import httpx
import numpy as np
from PIL import Image

from benchmarks.machine import machine, versions
from embed_pipeline import embedding
from embed_pipeline.changes import Noticed, write_noticed
from embed_pipeline.defs.run_history import DagsterRuns
from embed_pipeline.deployment import Deployment, open_deployment
from embed_pipeline.project_run import ProjectRun
from embed_pipeline.runs import dagster_instance
from embed_pipeline.sync import sync
from embed_pipeline.watching import look_around
from embed_pipeline_tests.supervisely_faults import Exchange, answered
from embed_pipeline_tests.supervisely_records import Image as Held
from embed_pipeline_tests.supervisely_server import StandIn

TEAMS = 5
PROJECTS = 500
PROJECT_IMAGES = 20
CHANGED = 3
MOST_ASKED = 20

LATENCY_SECONDS = 0.05
SLOW_SECONDS = 8.0
SLOW_EVERY = 1_000
ORIGINAL = (1600, 1200)
PREVIEWS = 64  # different ones, shown in turn
CEILING_IMAGES = 3_000


def main() -> None:
    """Set up, look, sync, print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=20_000)
    images: int = parser.parse_args().images
    few = min(images, CEILING_IMAGES)
    with tempfile.TemporaryDirectory() as top, stand_in() as site:
        os.environ |= {"API_TOKEN": "token", "SERVER_ADDRESS": site.do("address")}
        bench = Bench(site, Path(top))
        report = {"images": images, "look": bench.look()}
        link = bench.bare(few)
        report |= {"link_images_per_second": link}
        report |= {"no_latency": bench.sync(few, 0.0)}
        report |= {"folder": bench.folder(few)}
        report |= {"steady": bench.sync(images, LATENCY_SECONDS)}
        report |= {"some_slow": bench.sync(images, LATENCY_SECONDS, slow=True)}
    print(json.dumps(report | machine() | {"versions": versions()}))


class Site(StandIn):
    """The stand-in, which notes when previews were under way, and what the benchmark has it do."""

    def __init__(self) -> None:
        self.moves: list[tuple[float, int]] = []
        self._previews = cycle(map(picture, range(PREVIEWS)))
        super().__init__()

    @contextmanager
    def counted(self, kind: str) -> Iterator[None]:
        """Also note when a preview is begun and done."""
        with super().counted(kind):
            if kind == "preview":
                self.moves.append((time.monotonic(), 1))
            try:
                yield
            finally:
                if kind == "preview":
                    self.moves.append((time.monotonic(), -1))

    def preview(self, *_: object) -> Reply:
        """One that is made already."""
        return Reply(200, next(self._previews), {"Content-Type": "image/jpeg"})

    def address(self) -> str:
        """For SERVER_ADDRESS."""
        return self.url

    def fill(self, images: int, projects: int = 1, teams: int = 1) -> list[int]:
        """Projects of so many images each, no two the same; their ids."""
        instance = self.instance
        team_ids = [instance.add_team("team") for _ in range(teams)]
        ids = [
            instance.add_project(f"project {n}", team_ids[n % teams]) for n in range(projects)
        ]
        for id_ in ids:
            dataset = instance.add_dataset(id_, "dataset")
            named = {f"{n:06}.png": HEADER + f"{id_} {n}".encode() for n in range(images)}
            instance.add_images(dataset, named)
        return ids
