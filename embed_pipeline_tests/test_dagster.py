"""Dagster for real: the UI's GraphQL over `embed-pipeline dev`, killed and stopped runs, lone assets."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import pairwise, permutations
from pathlib import Path

import dagster as dg
import numpy as np
import pytest

from embed_pipeline.audit import verify
from embed_pipeline.locks import FileLock
from embed_pipeline.project_run import ProjectRun
from embed_pipeline.projects import progress
from embed_pipeline.sources.names import partition_key
from embed_pipeline.sync import diff, scan, sync
from embed_pipeline_tests.conftest import draw, draw_many
from embed_pipeline_tests.places import Place, draw_slow, make_place, visible
from embed_pipeline_tests.processes import (
    PIPES,
    PROGRAM,
    DagsterUI,
    Terminal,
    alive,
    answer,
    command,
    dagster_ui,
    started,
    wait_until,
)

Start = Callable[..., ProjectRun]

ASSETS = ("image_manifest", "image_diff", "image_embeddings", "collection_state")
CHECKS = {
    "collection_equals_source",
    "vectors_are_sound",
    "few_images_failed",
    "changes_are_searchable_soon",
}
SOME_ORDERS = list(permutations(ASSETS))[3::5]  # the last one is backwards
PLAIN = "50% of größe"
# Decoded in about 0.1 s each by the one reader, so that there is time to stop a run in the middle.
SLOW_IMAGES = 24
# As many as need longer than the five seconds between two commits.
VERY_SLOW_IMAGES = 120
# The command line with commits so frequent that fewer slow images do.
HASTY = "from embed_pipeline import cli, embedding; embedding.COMMIT_SECONDS = 0.3; cli.main()"


@pytest.fixture(scope="module")
def shared_place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Small projects and slow ones; run monitoring looks every second instead of every 15."""
    top = tmp_path_factory.mktemp("place")
    place = make_place(top, EMBED_DECODE_WORKERS=1, EMBED_BATCH_SIZE=1, EMBED_INTERVAL_MINUTES=1440)
    root = place.root
    draw_many(root / PLAIN / "a", 4)
    draw_many(root / PLAIN / "b", 3, first_seed=10)
    draw_many(root / "emptied", 3, first_seed=20)
    draw_slow(root / "killed", SLOW_IMAGES, 1000)
    draw_slow(root / "stopped", VERY_SLOW_IMAGES, 2000)
    draw_slow(root / "interrupted", SLOW_IMAGES, 3000)
    draw_slow(root / "terminal", VERY_SLOW_IMAGES, 4000)
    return place


@pytest.fixture
def place(shared_place: Place, monkeypatch: pytest.MonkeyPatch) -> Place:
    """The shared place, which this process sees too."""
    visible(shared_place, monkeypatch)
    return shared_place


@pytest.fixture(scope="module")
def ui(shared_place: Place) -> Iterator[DagsterUI]:
    """`embed-pipeline dev` on the shared place, for all tests of this module.

    The only look that the sensor takes is at an empty root: the tests ask for runs themselves.
    """
    root = shared_place.root
    full = root.rename(root.with_name("full"))
    root.mkdir()
    with dagster_ui(shared_place.env, shared_place.home / "dev.log") as ui:
        wait_until(ui.ticks, 60, "the sensor's first tick")
        root.rmdir()
        full.rename(root)
        for project in root.iterdir():
            ui.add_partition(partition_key(project.name))
        yield ui


class TestDefinitions:
    def test_they_load_with_all_that_the_ui_shows(self) -> None:
        """Four assets in a row, over a partition per project; audit, checks, and what drives them."""
        defs = definitions()
        dg.Definitions.validate_loadable(defs)
        graph = defs.resolve_asset_graph()
        assert {key.to_user_string() for key in graph.get_all_asset_keys()} == {
            *ASSETS,
            "collection_audit",
        }
        for upstream, downstream in pairwise(ASSETS):
            node = graph.get(dg.AssetKey(downstream))
            assert node.parent_keys == {dg.AssetKey(upstream)}
            assert node.partitions_def == dg.DynamicPartitionsDefinition(name="image_project")
            assert node.description
        assert {check.name for check in graph.asset_check_keys} == CHECKS
        job = defs.resolve_job_def("sync_project")
        assert {*ASSETS} < {node.name for node in job.nodes}
        assert "collection_audit" not in {node.name for node in job.nodes}
        assert job.executor_def is dg.in_process_executor
        assert graph.get(dg.AssetKey("collection_audit")).freshness_policy
        [sensor] = defs.sensors or []
        schedules = {schedule.name: schedule for schedule in defs.schedules or []}
        assert sensor.name == "project_changes"
        assert set(schedules) == {"nightly_audit", "nightly_clean_up"}
        assert {each.default_status.value for each in (sensor, *schedules.values())} == {"RUNNING"}


def encoded(place: Place, project: str) -> int:
    """How many images the run that works on the project has encoded."""
    now = progress(place.run(project).deployment, project)
    return now.done if now and now.step == "embed" else 0


class TestUI:
    def test_a_run_started_there_makes_the_project_searchable(
        self, ui: DagsterUI, place: Place
    ) -> None:
        """A partition per project is there; launching the job for one ends SUCCESS, and it is searchable."""
        graph = ui.query("""{ assetNodes { assetKey { path } dependencyKeys { path }
            partitionKeys assetChecksOrError { ... on AssetChecks { checks { name blocking } } } } }""")
        nodes = {node["assetKey"]["path"][0]: node for node in graph["assetNodes"]}
        assert set(nodes) == {*ASSETS, "collection_audit"}
        assert nodes["collection_state"]["dependencyKeys"] == [{"path": ["image_embeddings"]}]
        checks = nodes["collection_state"]["assetChecksOrError"]["checks"]
        assert {check["name"]: check["blocking"] for check in checks} == {
            name: name == "collection_equals_source" for name in CHECKS
        }
        names = sorted(path.name for path in place.root.iterdir())
        assert sorted(nodes["image_manifest"]["partitionKeys"]) == sorted(map(partition_key, names))

        run = ui.launch(partition_key(PLAIN))
        assert ui.wait_for(run, "SUCCESS", "FAILURE") == "SUCCESS"
        [first, *_] = answer(
            "search", PLAIN, "--like", "a/image-0000.png", "--limit", "2", env=place.env
        )
        assert first["image_id"] != "a/image-0000.png"
        audit = verify(place.run(PLAIN), vectors=True)
        assert (audit.indexed, audit.equal) == (7, True)

    def test_withheld_removals_fail_the_run_in_one_line(self, ui: DagsterUI, place: Place) -> None:
        """A run that the guard stops is a FAILURE whose event says how to confirm; nothing is removed."""
        assert sync(place.run("emptied")).embed == 3
        for image in (place.root / "emptied").iterdir():
            image.unlink()
        run = ui.launch("emptied")
        assert ui.wait_for(run, "SUCCESS", "FAILURE") == "FAILURE"
        [failure] = [
            event for event in ui.events(run) if event["__typename"] == "ExecutionStepFailureEvent"
        ]
        assert failure["stepKey"] == "collection_state"
        told = str(failure["error"])
        assert "embed-pipeline sync emptied --confirm-removals 3" in told
        assert place.run("emptied").collection.count() == 3

    def test_stopping_there_keeps_what_was_embedded(self, ui: DagsterUI, place: Place) -> None:
        """Terminate while embedding: CANCELED within 10 s, all that was encoded kept and not done again.

        Meanwhile a sync of the same project on the command line fails, saying who works on it.
        """
        images = contents(place.root / "stopped")
        run = ui.launch("stopped")
        lease = place.run("stopped").home.lease
        wait_until(lambda: lease.exists() and run in lease.read_text(), 90, "the run's lease")
        second = command("sync", "stopped", env={**place.env, "EMBED_LEASE_WAIT_SECONDS": "0.2"})
        assert second.returncode == 1
        assert re.search(rf"^error: stopped: process \d+ on .* \(run {run}, ", second.stderr)

        wait_until(lambda: images & place.durable().keys(), 90, "the first durable vectors")
        before = len(images & place.durable().keys())
        # More is encoded, and most likely not yet committed.
        wait_until(lambda: encoded(place, "stopped") > before, 60, "more to be encoded")
        assert ui.stop(run) == "TerminateRunSuccess"
        assert ui.wait_for(run, "CANCELED", "FAILURE", seconds=10) == "CANCELED"
        durable = len(images & place.durable().keys())
        assert before < durable < VERY_SLOW_IMAGES
        assert place.run("stopped").collection.count() == durable

        scan(place.run("stopped"))
        assert diff(place.run("stopped")).count("embed") == VERY_SLOW_IMAGES - durable

    def test_it_stops_a_run_of_the_command_line(self, ui: DagsterUI, place: Place) -> None:
        """Terminate on a CLI sync cancels that run; the CLI says so, goes on with the next, exits 1."""
        wait_until(lambda: running(place) is None, 30, "the process of the run before to end")
        projects = ("terminal", PLAIN)
        with started([*PROGRAM, "sync", *projects, "--json"], place.env, **PIPES) as process:
            run = wait_until(lambda: running(place), 90, "the run of the command line")
            assert ui.wait_for(run, "STARTED") == "STARTED"
            assert ui.stop(run) == "TerminateRunSuccess"
            assert ui.wait_for(run, "CANCELED", "FAILURE", seconds=10) == "CANCELED"
            stdout, stderr = process.communicate(timeout=60)
        assert process.returncode == 1
        assert stderr.startswith("error: terminal: stopped in the Dagster UI")
        assert [outcome["status"] for outcome in json.loads(stdout)] == ["canceled", "success"]


def test_a_killed_run_goes_on_where_it_was(
    ui: DagsterUI, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL while embedding: a run that waited in the UI ends with what an unkilled run ends with.

    It gets its turn although the killed run cannot say that it ended, and embeds nothing again that
    was durable.
    """
    images = contents(place.root / "killed")
    with started([sys.executable, "-c", HASTY, "sync", "killed"], place.env, **PIPES) as process:
        killed = wait_until(lambda: running(place), 90, "the run of the command line")
        waiting = ui.launch("killed")
        wait_until(lambda: images & place.durable().keys(), 90, "the first durable vectors")
        assert ui.status(waiting) == "QUEUED"
        os.kill(process.pid, signal.SIGKILL)
        process.wait(10)
        assert not alive(process), "a process was left behind"
    durable = images & place.durable().keys()
    assert durable < images
    assert ui.wait_for(waiting, "SUCCESS", "FAILURE") == "SUCCESS"
    assert ui.status(killed) == "FAILURE"

    [embedded] = [
        entry["intValue"]
        for event in ui.events(waiting)
        for entry in event.get("metadataEntries", [])
        if entry["label"] == "contents embedded"
    ]
    assert embedded == len(images) - len(durable)
    assert all(place.durable()[image] == 1 for image in images), "something was embedded twice"
    assert verify(place.run("killed"), vectors=True).equal
    points = held(place.run("killed"))
    monkeypatch.setenv("EMBED_HOME", str(tmp_path / "another"))
    sync(place.run("killed"))
    unkilled = held(place.run("killed"))
    assert points.keys() == unkilled.keys()
    for point, (payload, vector) in points.items():
        assert payload == unkilled[point][0]
        assert vector @ unkilled[point][1] > 0.9999


def test_an_interrupted_sync_keeps_what_it_embedded(
    shared_place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C or SIGTERM while embedding: no process left, not 0, CANCELED, all finished batches kept.

    Each next sync embeds the rest only.
    """
    home = tmp_path / "home"
    env = {**shared_place.env, "EMBED_HOME": str(home), "DAGSTER_HOME": str(home / "dagster")}
    place = Place(shared_place.root, home, env)
    visible(place, monkeypatch)
    durable = 0
    for number in (signal.SIGINT, signal.SIGTERM):
        with closing(Terminal()) as terminal:
            arguments = [*PROGRAM, "sync", "interrupted", "--json"]
            pipes = {"stdout": subprocess.PIPE, "stderr": terminal.writing}
            with started(arguments, env, **pipes) as process:
                done = wait_until(lambda: embedded_by(terminal.text()), 90, "the first batch")
                os.kill(process.pid, number)
                stdout, _ = process.communicate(timeout=10)
                assert not alive(process), "a process was left behind"
            assert "Traceback" not in terminal.text()
        assert process.returncode not in (None, 0)
        assert stdout == ""
        assert durable + done <= len(place.durable()) < SLOW_IMAGES
        durable = len(place.durable())
        assert place.run("interrupted").collection.count() == durable
    with dg.DagsterInstance.from_config(str(place.home / "dagster")) as instance:
        assert {run.status for run in instance.get_runs()} == {dg.DagsterRunStatus.CANCELED}
    state = sync(place.run("interrupted"))
    assert (state.embed, state.unchanged) == (SLOW_IMAGES - durable, durable)


class TestLoneAssets:
    """Each asset materialised alone, as a click in the UI does it."""

    @pytest.fixture
    def instance(self) -> Iterator[dg.DagsterInstance]:
        """An instance in memory, with the partition."""
        with dg.DagsterInstance.ephemeral() as instance:
            instance.add_dynamic_partitions("image_project", ["cats"])
            yield instance

    @pytest.fixture
    def cats(self, root: Path, start: Start) -> Path:
        """A synced project of ten images."""
        draw_many(root / "cats", 10)
        sync(start())
        return root / "cats"

    def test_any_order_is_mended_by_the_next_sync(
        self, cats: Path, start: Start, instance: dg.DagsterInstance
    ) -> None:
        """Over changes that make tables stale, each succeeds, and the next sync mends what is left."""
        for number, order in enumerate(SOME_ORDERS):
            draw(cats / "changed.png", 1000 + number)
            draw(cats / f"new-{number}.png", 2000 + number)
            (cats / "image-0000.png").rename(cats / "renamed.png")
            for asset in order:
                alone = dg.AssetSelection.assets(asset).without_checks()
                assert materialize(instance, alone).success, (order, asset)
            assert sync(start()).equal
            assert verify(start(), vectors=True).equal, order
            (cats / "renamed.png").rename(cats / "image-0000.png")

    def test_without_a_manifest_they_say_what_is_missing(
        self, root: Path, start: Start, instance: dg.DagsterInstance
    ) -> None:
        """In a new project the later assets fail with an error of ours, and the sync then works."""
        draw_many(root / "cats", 3)
        for asset in ASSETS[1:]:
            with pytest.raises(dg.Failure, match=r"sync the whole project first|never synced"):
                materialize(instance, dg.AssetSelection.assets(asset), raise_on_error=True)
        assert sync(start()).embed == 3

    def test_the_check_fails_a_run_that_leaves_a_difference(
        self, cats: Path, start: Start, instance: dg.DagsterInstance
    ) -> None:
        """collection_state over a content that nobody embedded: the blocking check fails the run."""
        draw(cats / "new.png", 3000)
        scan(start())
        failed = materialize(instance, dg.AssetSelection.assets("collection_state"))
        assert not failed.success
        evaluations = {found.check_name: found for found in failed.get_asset_check_evaluations()}
        evaluation = evaluations["collection_equals_source"]
        assert (evaluation.passed, evaluation.blocking) == (False, True)
        assert evaluation.description == "1 missing, 0 stale, 0 extra"
        assert sync(start()).embed == 1
        assert materialize(instance, dg.AssetSelection.assets("collection_state")).success


def definitions() -> dg.Definitions:
    """The code location, imported where the warnings of its import are let through."""
    from embed_pipeline.definitions import defs

    return defs


def materialize(
    instance: dg.DagsterInstance,
    selection: dg.AssetSelection,
    *,
    raise_on_error: bool = False,
) -> dg.ExecuteInProcessResult:
    """Materialise a part of the graph for the project `cats`."""
    defs = definitions()
    return dg.materialize(
        [*defs.assets, *defs.asset_checks],
        selection=selection,
        partition_key="cats",
        instance=instance,
        resources=defs.resources,
        run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
        raise_on_error=raise_on_error,
    )


def contents(folder: Path) -> set[bytes]:
    """The content hashes of a folder's files."""
    return {hashlib.sha256(path.read_bytes()).digest() for path in folder.iterdir()}


def running(place: Place) -> str | None:
    """The id of a run whose process holds its lock."""
    locks = (place.home / "dagster" / "running").glob("*")
    return next((path.name for path in locks if FileLock(path).is_locked()), None)


def embedded_by(bar: str) -> int | None:
    """How many images the progress bar last said are embedded; None for none."""
    counts = re.findall(r"interrupted embed\D*(\d+)/", bar)
    return int(counts[-1]) or None if counts else None


def held(run: ProjectRun) -> dict[bytes, tuple[dict[str, object], np.ndarray]]:
    """Payload and unit vector of every point."""
    points = {}
    for block, vectors in run.collection.scroll_vectors():
        for payload, vector in zip(block.to_dicts(), vectors, strict=True):
            unit = vector / np.linalg.norm(vector)
            points[payload.pop("point_id")] = payload, unit
    return points
