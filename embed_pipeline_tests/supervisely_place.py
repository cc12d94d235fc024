"""A stand-in Supervisely instance that this process syncs from, with little patience."""

import itertools
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from pathlib import Path

import dagster as dg
import numpy as np
import pytest
from PIL import Image

from embed_pipeline.deployment import Deployment
from embed_pipeline.patience import Patience
from embed_pipeline.project_run import ProjectRun
from embed_pipeline.runs import SyncOutcome, run_sync
from embed_pipeline.settings import load_settings
from embed_pipeline.sources import supervisely_http, supervisely_sdk
from embed_pipeline.sources.supervisely_http import Connection
from embed_pipeline_tests.supervisely_instance import Instance
from embed_pipeline_tests.supervisely_server import StandIn

# While it is imported, the SDK imports each module on the stack once more, by its name. That of a
# worker of pytest-xdist has none that could be found.
sys.modules.setdefault("__channelexec__", sys.modules["__main__"])
# The tests take warnings for errors, and one of these, raised while it is imported, ends the process.
with warnings.catch_warnings(), supervisely_sdk.pillow_as_it_was():
    warnings.simplefilter("ignore")
    import supervisely  # noqa: F401

# Where each test's numbers begin: Dagster's storage knows the runs of other tests' projects.
NUMBERS = itertools.count(1000, 1000)
COUNTS = ("embed", "reuse", "relabel", "remove", "unchanged", "failed")
BRIEF = Patience(
    tries=2, try_seconds=2, total_seconds=6, first_wait_seconds=0.01, longest_wait_seconds=0.02
)


@dataclass(frozen=True)
class Platform:
    """A stand-in, and Dagster's storage. Every `deployment` is opened anew, as in a new process."""

    stand_in: StandIn
    dagster: dg.DagsterInstance
    opened: list[Deployment] = field(default_factory=list)

    @property
    def instance(self) -> Instance:
        """What the stand-in holds."""
        return self.stand_in.instance

    @property
    def deployment(self) -> Deployment:
        """The settings' deployment."""
        self.opened.append(Deployment(load_settings()))
        return self.opened[-1]

    def make_project(self, images: int, name: str = "cats") -> tuple[int, int, list[int]]:
        """A project with one dataset of pictures: their numbers."""
        team = next(iter(self.instance.teams), None) or self.instance.add_team("team", "pro")
        project = self.instance.add_project(name, team)
        dataset = self.instance.add_dataset(project, "one")
        pictures = {f"{i:03}.png": picture(1000 * project + i) for i in range(images)}
        return project, dataset, self.instance.add_images(dataset, pictures)

    def sync(self, project: int, **options: object) -> SyncOutcome:
        """Sync through Dagster, in this process."""
        return run_sync(self.deployment, self.dagster, str(project), **options)

    def indexed(self, project: int) -> set[int]:
        """The images that a search can find."""
        run = ProjectRun(self.deployment, str(project), "test")
        if not run.collection.exists():
            return set()
        return {int(id_) for page in run.collection.scroll() for id_ in page["image_id"]}


def picture(seed: int, size: tuple[int, int] = (96, 72), kind: str = "PNG") -> bytes:
    """A small picture that differs from that of any other seed."""
    cells = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(cells).resize(size, Image.Resampling.NEAREST).save(file := BytesIO(), kind)
    return file.getvalue()


def counts(outcome: SyncOutcome) -> dict[str, int]:
    """The counts that are not zero."""
    assert outcome.error is None, outcome.error
    return {name: count for name in COUNTS if (count := getattr(outcome, name))}


@contextmanager
def platform_of(
    dagster: dg.DagsterInstance, home: Path, patch: pytest.MonkeyPatch
) -> Iterator[Platform]:
    """An empty instance, and settings that name it. What was asked of it must be in its contract."""
    brief = partial(Connection, calls=BRIEF, looks=BRIEF, pictures=BRIEF)
    patch.setattr(supervisely_http, "Connection", brief)
    patch.setattr(supervisely_http, "SILENCE_SECONDS", BRIEF.try_seconds)
    with StandIn() as stand_in:
        patch.setenv("EMBED_SOURCE", "supervisely")
        patch.setenv("SERVER_ADDRESS", stand_in.url)
        patch.setenv("API_TOKEN", "token")
        patch.setenv("EMBED_HOME", str(home))
        patch.setenv("EMBED_MODEL", "demo")
        stand_in.instance._last_id = next(NUMBERS)
        platform = Platform(stand_in, dagster)
        yield platform
        for deployment in platform.opened:
            deployment.close()
        assert stand_in.unknown == []
