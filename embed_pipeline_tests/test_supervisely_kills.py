"""Killed at any moment, on either side: flags, times and the collection end as if nothing had happened."""

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from embed_pipeline.audit import verify
from embed_pipeline.lease import lease_holder
from embed_pipeline.project_run import ProjectRun
from embed_pipeline_tests.places import make_place, visible
from embed_pipeline_tests.processes import (
    PIPES,
    PROGRAM,
    Services,
    environment,
    started,
    wait_until,
)
from embed_pipeline_tests.supervisely_faults import slow
from embed_pipeline_tests.supervisely_place import Platform, counts, picture

FLAG = "projects.embeddings-in-progress.update"
IMAGES = 4
OURS = ("EMBED_SOURCE", "SERVER_ADDRESS", "API_TOKEN", "EMBED_HOME", "EMBED_MODEL", "DAGSTER_HOME")

# Where a run of a project is held up: the request, and whether its body is that of the project.
Asked = dict[str, Any]
MOMENTS: dict[str, tuple[str, Callable[[Asked, int, list[int]], bool]]] = {
    "beginning": (FLAG, lambda asked, project, _: asked["id"] == project),
    "scanning": ("images.list", lambda asked, project, _: asked["projectId"] == project),
    "encoding": ("preview", lambda asked, _, images: asked["path"].endswith(f"/{images[-1]}.png")),
    "marking": (
        "images.embeddings-updated-at.update",
        lambda asked, _, images: asked["images"][0]["id"] in images,
    ),
    "ending": (
        FLAG,
        lambda asked, project, _: asked["id"] == project and not asked["embeddingsInProgress"],
    ),
}


class Held:
    """Holds a project's run up at a moment, until the stand-in heals or is stopped."""

    def __init__(self, platform: Platform, moment: str, project: int, images: list[int]) -> None:
        method, is_this = MOMENTS[moment]
        self.there = threading.Event()

        def when(asked: Asked) -> bool:
            if is_this(asked, project, images):
                self.there.set()
                return True
            return False

        platform.stand_in.fail(method, slow(60), None, when)


def as_if_nothing_had_happened(platform: Platform, project: int, images: set[int]) -> None:
    """What is searchable is what is there, it is marked so, and nothing says that a run works."""
    shown = platform.instance.project(project)
    assert (shown.embeddings_in_progress, shown.error_message) == (False, None)
    assert {id_ for id_, at in platform.instance.stamped(project).items() if at} == images
    assert shown.embeddings_updated_at
    assert platform.indexed(project) == images
    run = ProjectRun(platform.deployment, str(project), "test")
    assert verify(run, vectors=True).equal
    assert lease_holder(run.home) is None
    parts = run.library.root.glob("part-*.parquet")
    durable = Counter(hash_ for part in parts for hash_ in pl.read_parquet(part)["content_hash"])
    assert set(durable.values()) == {1}, "nothing was embedded twice"


def test_a_run_is_killed(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGKILL at any moment after its begin; the next run puts all right, and embeds nothing twice."""
    monkeypatch.setenv("DAGSTER_HOME", platform.dagster.root_directory)
    moments = [moment for moment in MOMENTS if moment != "beginning"]
    made = {moment: platform.make_project(IMAGES, moment) for moment in moments}
    env = environment(**{name: os.environ[name] for name in OURS}, EMBED_BATCH_SIZE=1)
    held = {
        moment: Held(platform, moment, project, images)
        for moment, (project, _, images) in made.items()
    }
    with ExitStack() as processes:
        runs = {
            moment: processes.enter_context(started([*PROGRAM, "sync", str(project)], env, **PIPES))
            for moment, (project, _, _) in made.items()
        }
        for moment, process in runs.items():
            assert held[moment].there.wait(90), moment
            os.kill(process.pid, signal.SIGKILL)
    platform.stand_in.heal()
    for moment, (project, _, images) in made.items():
        assert counts(platform.sync(project)), moment
        as_if_nothing_had_happened(platform, project, set(images))


@pytest.mark.parametrize("moment", MOMENTS)
def test_the_instance_is_killed(platform: Platform, moment: str) -> None:
    """And comes back: the run rides it out where that is soon, and the next one puts right the rest."""
    project, _, images = platform.make_project(IMAGES)
    held = Held(platform, moment, project, images)
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(platform.sync, project)
        assert held.there.wait(30)
        platform.stand_in.stop()
        time.sleep(0.2)
        platform.stand_in.heal()
        platform.stand_in.start()
        run.result(timeout=60)
    platform.sync(project)
    as_if_nothing_had_happened(platform, project, set(images))


def test_the_daemon_is_killed(
    platform: Platform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under a run, which ends well. And a run is killed under the daemon, which has it tried again."""
    project, dataset, images = platform.make_project(IMAGES)
    place = make_place(
        tmp_path,
        EMBED_SOURCE="supervisely",
        SERVER_ADDRESS=platform.stand_in.url,
        API_TOKEN="token",
        EMBED_INTERVAL_MINUTES=0.05,
    )
    visible(place, monkeypatch)
    held = Held(platform, "encoding", project, images)
    with Services(place.env, tmp_path) as services:
        assert held.there.wait(60)
        services.kill("daemon")
        assert platform.instance.project(project).embeddings_in_progress
        platform.stand_in.heal()
        services.start("daemon")
        wait_until(lambda: platform.instance.project(project).embeddings_updated_at, 60, "marks")
        wait_until(lambda: not services.ui.unfinished(), 30, "the run to end", 0.3)
        as_if_nothing_had_happened(platform, project, set(images))

        late = platform.instance.add_image(dataset, "late.png", picture(77))
        held = Held(platform, "encoding", project, [late])
        assert held.there.wait(60)
        holder = lease_holder(place.run(str(project)).home)
        assert holder
        os.kill(holder.pid, signal.SIGKILL)
        platform.stand_in.heal()
        wait_until(lambda: platform.instance.stamped(project)[late], 120, "the next run")
        wait_until(lambda: not services.ui.unfinished(), 30, "it to end", 0.3)
    as_if_nothing_had_happened(platform, project, {*images, late})
