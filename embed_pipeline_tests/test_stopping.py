"""Stopping and killing: runs in every state, by every means, over the services as in production."""

import hashlib
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any
from uuid import uuid4

import dagster as dg
import pytest
from dagster._core.storage.tags import AUTO_RETRY_RUN_ID_TAG
from typer.testing import CliRunner

from embed_pipeline.audit import verify
from embed_pipeline.cli import app
from embed_pipeline.defs import run_launcher
from embed_pipeline.defs.old_runs import delete_old_runs
from embed_pipeline.defs.run_launcher import (
    EmbedPipelineRunLauncher,
    hold_run_lock,
    release_run_lock,
)
from embed_pipeline.lease import lease_holder
from embed_pipeline.locks import FairFileLock
from embed_pipeline.project_run import ProjectRun
from embed_pipeline.projects import progress
from embed_pipeline.runs import run_sync
from embed_pipeline.stopping import stop_project
from embed_pipeline_tests.conftest import draw, draw_many
from embed_pipeline_tests.places import Place, make_place, visible
from embed_pipeline_tests.processes import (
    PIPES,
    DagsterUI,
    Services,
    environment,
    started,
    wait_until,
)

Start = Callable[..., ProjectRun]

STATES = {"scanning": "scan", "encoding": "embed", "applying": "apply"}
SMALL = ("small", "tiny")
STOP_SECONDS = 10
LINKS = 5_000


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Services, Place]]:
    """Code server, daemon and webserver; run monitoring looks every second instead of every 15."""
    top = tmp_path_factory.mktemp("services")
    place = make_place(top, EMBED_DECODE_WORKERS=1, EMBED_BATCH_SIZE=1, EMBED_INTERVAL_MINUTES=1440)
    with Services(place.env, top) as services:
        for project in (*STATES, *SMALL):
            services.ui.add_partition(project)
        for project in SMALL:
            draw(place.root / project / "one.png", 1)
        yield services, place


@pytest.fixture
def place(services: tuple[Services, Place], monkeypatch: pytest.MonkeyPatch) -> Place:
    """The place, which this process sees too, its Dagster included."""
    visible(services[1], monkeypatch)
    monkeypatch.setenv("DAGSTER_HOME", services[1].env["DAGSTER_HOME"])
    monkeypatch.setattr(logging.getLogger("embed_pipeline"), "handlers", [])
    return services[1]


@pytest.fixture
def ui(services: tuple[Services, Place]) -> DagsterUI:
    """The Dagster UI."""
    return services[0].ui


class TestWithoutServices:
    """What Dagster does not see, or sees too late."""

    @pytest.fixture
    def instance(self, tmp_path: Path) -> Iterator[dg.DagsterInstance]:
        """Dagster's storage, and nobody who works on it."""
        with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
            yield instance

    def test_a_process_that_dagster_does_not_know_is_ended_by_its_lease(
        self, root: Path, start: Start, instance: dg.DagsterInstance
    ) -> None:
        """`stop` ends whoever holds the lease for a run; an audit, which is soon done, is left alone."""
        run = start("cats")
        script = (
            "import sys, time; from pathlib import Path; from embed_pipeline.lease import lease\n"
            "from embed_pipeline.home import ProjectHome\n"
            "with lease(ProjectHome(Path(sys.argv[1]), 'p'), 'cats', sys.argv[2], 0): time.sleep(60)"
        )
        for label, is_run in (("run 5f0c", True), ("audit", False)):
            arguments = [sys.executable, "-c", script, str(run.home.root), label]
            with started(arguments, environment(), **PIPES) as process:
                wait_until(lambda: lease_holder(run.home), 30, "the lease")
                stopped = stop_project(run.deployment, instance, "cats")
                assert stopped.is_current_task == is_run
                assert (stopped.details.get("cancel_task") == "success") == is_run
                assert (lease_holder(run.home) is None) == is_run
                if is_run:
                    assert process.wait(10) != 0

    def test_a_run_whose_process_died_early_is_seen_as_dead(
        self, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """STARTED for a minute without ever having taken its lock; with the lock it is alive."""
        launcher = EmbedPipelineRunLauncher()
        launcher.register_instance(instance)
        run = dg.DagsterRun("sync_project", run_id=str(uuid4()))
        instance.add_run(run)
        instance.report_dagster_event(
            dg.DagsterEvent(dg.DagsterEventType.RUN_START.value, "sync_project"), run.run_id
        )
        started_run = instance.get_run_by_id(run.run_id)
        assert started_run
        status = lambda: launcher.check_run_worker_health(started_run).status.value  # noqa: E731
        assert status() == "RUNNING", "it may be about to"
        monkeypatch.setattr(run_launcher, "LOCK_SECONDS", -1.0)
        assert status() == "FAILED"
        hold_run_lock(instance, run.run_id)
        assert status() == "RUNNING"
        release_run_lock(run.run_id)

    def test_old_runs_are_deleted_but_for_the_last_success_of_each_project(
        self, root: Path, start: Start, instance: dg.DagsterInstance
    ) -> None:
        """And nothing that is younger."""
        draw_many(root / "cats", 2)
        runs = [run_sync(start().deployment, instance, "cats").run_id for _ in range(3)]
        assert delete_old_runs(instance, keep_days=1) == 0
        assert delete_old_runs(instance, keep_days=0) == 2
        assert [run.run_id for run in instance.get_runs()] == [runs[-1]]


def stop(project: str) -> dict[str, Any]:
    """What the command `stop` prints."""
    done = CliRunner().invoke(app, ["stop", project, "--json"])
    assert done.exit_code == 0, done.output
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def give_work(place: Place, state: str, round_: int) -> None:
    """Images of the project `state` on which a run is in that state for some seconds."""
    folder = place.root / state
    folder.mkdir(exist_ok=True)
    if state == "scanning":
        for number in range(5):
            with (folder / f"{number}.png").open("wb") as sparse:
                sparse.truncate(200_000_000 + round_)  # over the limit: read to be hashed only
    elif state == "encoding":
        draw_many(folder, 16, first_seed=1000 * round_)
    else:
        one = folder / "one.png"
        if not one.exists():
            draw(one, 1)
            for number in range(LINKS):
                os.link(one, folder / f"{number:05}.png")
        place.run(state).collection.drop()


@contextmanager
def slow(place: Place) -> Iterator[None]:
    """Take every other turn at the encoder, and at the shard of the project `applying`, for a second each."""
    run, over = place.run("applying"), Event()
    key = hashlib.sha256(run.project_id.encode()).hexdigest()[:20]
    shard = place.home / "qdrant" / run.card.space / f"{key}.lock"

    def take_turns(lock: Path) -> None:
        while not over.wait(0.05):
            with FairFileLock(lock).acquire(20, "a test"):
                over.wait(1)

    with ThreadPoolExecutor(2) as pool:
        others = [
            pool.submit(take_turns, lock) for lock in (shard, run.deployment.home.encoder_turns)
        ]
        try:
            yield
        finally:
            over.set()
    for other in others:
        other.result()


def launch_all(ui: DagsterUI) -> list[str]:
    """Run all three projects at once."""
    return [ui.launch(state) for state in STATES]


def each_in_its_state(place: Place, runs: list[str], act: Callable[[str, str], None]) -> None:
    """Do something to each of the runs as soon as it is in its state."""
    waiting = dict(zip(STATES, runs, strict=True))
    deployment = place.run("small").deployment
    deadline = time.monotonic() + 90
    while waiting:
        assert time.monotonic() < deadline, f"never in the state, or too quick: {waiting}"
        for state, run in list(waiting.items()):
            now = progress(deployment, state)
            if now and now.run_id == run and now.step == STATES[state]:
                act(state, run)
                del waiting[state]
        time.sleep(0.05)


def is_tried_again(ui: DagsterUI, state: str, killed: str) -> bool:
    """Whether Dagster asks for the next run; where it does not, we do.

    It may overlook a run: it can read of the failure before the run's status says so. In earnest, the
    sensor asks for that one, a minute later.
    """
    with dg.DagsterInstance.get() as instance:
        for _ in range(60):
            run = instance.get_run_by_id(killed)
            if run and AUTO_RETRY_RUN_ID_TAG in run.tags:
                return True
            time.sleep(0.25)
    ui.launch(state)
    return False


def nothing_is_left(place: Place, state: str) -> None:
    """No process works on the project, and no flag says so."""
    run = place.run(state)
    assert lease_holder(run.home) is None
    assert not run.home.progress.exists()


def pid_of(place: Place, state: str) -> int:
    """The process that works on a project."""
    holder = lease_holder(place.run(state).home)
    assert holder
    return holder.pid


def all_go_on(ui: DagsterUI, place: Place) -> None:
    """The next runs complete, and each collection equals its source."""
    wait_until(lambda: not ui.unfinished(), 120, "the next runs to end", every=0.5)
    for state in STATES:
        assert verify(place.run(state)).equal, state


def test_a_working_run_is_stopped_and_the_next_goes_on(
    services: tuple[Services, Place], place: Place, ui: DagsterUI
) -> None:
    """Scanning, encoding, applying: CANCELED within ten seconds, and nothing is left.

    The runs after those stopped in the UI are stopped by the command, and those after them complete.
    """

    def terminate(state: str, run: str) -> None:
        assert ui.stop(run) == "TerminateRunSuccess"
        is_canceled(state, run)

    def stop_it(state: str, run: str) -> None:
        told = stop(state)
        assert (told["is_current_task"], told["success"]) == (True, True)
        is_canceled(state, run)

    def is_canceled(state: str, run: str) -> None:
        ui.wait_for(run, "CANCELED", "SUCCESS", "FAILURE", seconds=STOP_SECONDS)
        assert ui.status(run) == "CANCELED", state
        nothing_is_left(place, state)

    for round_, act in enumerate((terminate, stop_it), start=1):
        for state in STATES:
            give_work(place, state, round_)
        with slow(place):
            each_in_its_state(place, launch_all(ui), act)
    runs = launch_all(ui)
    all_go_on(ui, place)
    assert {ui.status(run) for run in runs} == {"SUCCESS"}


@pytest.mark.parametrize(("round_", "how"), [(3, "SIGTERM"), (4, "SIGKILL")])
def test_a_working_run_is_killed_and_the_next_goes_on(
    services: tuple[Services, Place], place: Place, ui: DagsterUI, round_: int, how: str
) -> None:
    """Scanning, encoding, applying: it is seen as dead, and Dagster itself asks for the next run."""
    for state in STATES:
        give_work(place, state, round_)
    with slow(place):
        killed = launch_all(ui)
        each_in_its_state(
            place, killed, lambda state, _: os.kill(pid_of(place, state), signal.Signals[how])
        )
    for run in killed:
        assert ui.wait_for(run, "CANCELED", "FAILURE") == "FAILURE"
    again = [is_tried_again(ui, state, run) for state, run in zip(STATES, killed, strict=True)]
    assert sum(again) >= len(STATES) - 1
    all_go_on(ui, place)


def test_killed_services_lose_nothing(
    services: tuple[Services, Place], place: Place, ui: DagsterUI
) -> None:
    """SIGKILL of daemon and code server under runs in every state: they end, and the next go on."""
    for state in STATES:
        give_work(place, state, 5)
    with slow(place):
        runs = launch_all(ui)
        each_in_its_state(place, runs, lambda _state, _run: None)
    for service in ("daemon", "code"):
        services[0].kill(service)
        time.sleep(1)
        services[0].start(service)
    wait_until(ui.reload, 90, "the code location")
    for run in runs:
        ui.wait_for(run, "SUCCESS", "FAILURE", "CANCELED", seconds=120)
    ui.launch("small")
    # A run whose code server the daemon has not found again is failed by it, and asked for once more.
    wait_until(place.run("small").collection.exists, 90, "the next run", every=0.5)
    all_go_on(ui, place)
    assert verify(place.run("small")).equal


def test_a_queued_run_and_a_starting_one_are_stopped(
    services: tuple[Services, Place], place: Place, ui: DagsterUI
) -> None:
    """In the UI or by the command, neither does anything any more; the next run completes."""
    stopped: dict[str, tuple[str, str]] = {}
    for project in SMALL:
        stopped[project] = first, second = ui.launch(project), ui.launch(project)
        wait_until(lambda run=first: ui.status(run) != "QUEUED", 30, "the first to be launched")
        assert (ui.status(first), ui.status(second)) == ("STARTING", "QUEUED")
        if project == "small":
            for run in (second, first):
                assert ui.stop(run) == "TerminateRunSuccess"
        else:
            assert stop(project)["details"]["cancel_task"] == "success"
        for run in (first, second):
            ended = ui.wait_for(run, "CANCELED", "SUCCESS", "FAILURE", seconds=STOP_SECONDS)
            assert ended == "CANCELED"
    # Until these end, the processes of the starting runs come up, too, and find that nobody wants them.
    for project in SMALL:
        third = ui.launch(project)
        assert ui.wait_for(third, "SUCCESS", "FAILURE") == "SUCCESS"
        assert verify(place.run(project)).equal
    for project, runs in stopped.items():
        assert [ui.status(run) for run in runs] == ["CANCELED", "CANCELED"]
        nothing_is_left(place, project)
