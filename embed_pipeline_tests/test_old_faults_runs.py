"""What was wrong with the two services that this project replaces: faults of their runs, by number."""

import json
import logging
import re
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import dagster as dg
import pytest
import yaml
from dagster._core.storage.tags import PARTITION_NAME_TAG

from embed_pipeline import changes, stopping
from embed_pipeline.dagster_home import shipped
from embed_pipeline.defs.sensors import LARGE_TAGS, _run_request
from embed_pipeline.errors import (
    RunNotStopped,
    SettingsError,
    SourceError,
    SourceUnavailable,
    StoreError,
)
from embed_pipeline.lease import lease, lease_holder
from embed_pipeline.runs import SyncOutcome
from embed_pipeline.sources import supervisely_listing
from embed_pipeline.stopping import Stopped, stop_project
from embed_pipeline_tests.qdrant_double import QdrantDouble, refuse
from embed_pipeline_tests.supervisely_faults import slow, status
from embed_pipeline_tests.supervisely_place import BRIEF, Platform, counts, picture
from embed_pipeline_tests.test_old_faults_data import (
    asked_for,
    batches_of_two,
    found,
    look,
    meanwhile,
    of_image,
    run_of,
    stamped,
    synced,
    use,
)


def test_w06_a_run_that_only_deletes_succeeds_and_an_error_names_its_cause(
    platform: Platform,
) -> None:
    """The project's time goes on; what fails before anything was done is told as what it is."""
    project, _, images = platform.make_project(3)
    synced(platform, project)
    state = platform.instance.project(project)
    before = state.embeddings_updated_at
    platform.instance.trash_image(images[0])
    assert counts(platform.sync(project)) == {"remove": 1, "unchanged": 2}
    assert state.embeddings_updated_at > before

    platform.stand_in.fail("images.list", status(403), times=None)
    error = platform.sync(project).error
    assert error == state.error_message
    assert re.search("does not permit images.list .403 as told by the test", str(error))
    assert not state.embeddings_in_progress


def test_w15_custom_data_is_the_users(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    """None, or what somebody writes there while a run works: byte for byte what it was."""
    project, _, _ = platform.make_project(1)
    state = platform.instance.project(project)
    state.custom_data = None  # type: ignore[assignment]  # the platform has such projects
    theirs = '{"b": [1.50, null, {"é": "ü"}], "a": {}, "embeddings_update_started_at": 1}'

    def edit() -> None:
        assert state.custom_data is None
        state.custom_data = json.loads(theirs)

    meanwhile(monkeypatch, edit)
    assert counts(platform.sync(project)) == {"embed": 1}
    assert json.dumps(state.custom_data) == json.dumps(json.loads(theirs))


def test_w16_a_second_run_of_a_project_is_refused_and_disturbs_nothing(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even by failing: the first one's flag stays until it ends, and no look asks for another run."""
    monkeypatch.setenv("EMBED_LEASE_WAIT_SECONDS", "0")
    project, _, _ = platform.make_project(2)
    state = platform.instance.project(project)
    seen = []

    def again() -> None:
        second = platform.sync(project)
        assert second.status == "failed"
        assert re.search("run .* works on this project", str(second.error))
        tick = look(platform)
        assert (tick.requests, tick.skipped) == ([], {"working": [str(project)]})
        seen.append((state.embeddings_in_progress, state.error_message))

    meanwhile(monkeypatch, again)
    assert counts(platform.sync(project)) == {"embed": 2}
    assert seen == [(True, None)]
    assert not state.embeddings_in_progress


def test_w17_after_a_stop_nothing_works_and_the_next_run_keeps_its_flag(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When `stop` returns, the run has ended and written what it encoded; nothing of it comes later."""
    batches_of_two(monkeypatch)
    project, _, _ = platform.make_project(8)
    state, home = platform.instance.project(project), run_of(platform, project).home
    told: list[tuple[Stopped, bool, object, int]] = []

    def stop() -> None:
        stopped = stop_project(platform.deployment, platform.dagster, str(project))
        asked = platform.stand_in.requests["preview"]
        told.append((stopped, state.embeddings_in_progress, lease_holder(home), asked))

    stopping_ = threading.Thread(target=stop)

    def hang() -> None:
        stopping_.start()
        time.sleep(20)

    meanwhile(monkeypatch, hang, encoded=1)
    assert platform.sync(project).status == "canceled"
    stopping_.join()
    [(stopped, working, holder, asked)] = told
    assert (stopped.success, stopped.is_current_task) == (True, True)
    assert (working, holder, state.error_message) == (False, None, None)
    assert len(platform.indexed(project)) == 2
    assert not home.progress.exists()
    assert platform.stand_in.requests["preview"] == asked

    flags = []
    meanwhile(monkeypatch, lambda: flags.append(state.embeddings_in_progress), encoded=2)
    assert counts(platform.sync(project)) == {"embed": 6, "unchanged": 2}
    assert (flags, state.embeddings_in_progress) == ([True], False)


def test_w18_a_stop_touches_no_other_project(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What works on another goes on to its end, under its flag."""
    (works, _, _), (idle, _, _) = platform.make_project(2), platform.make_project(2, "dogs")
    flags = []

    def stop_the_other() -> None:
        stopped = stop_project(platform.deployment, platform.dagster, str(idle))
        assert not stopped.is_current_task
        flags.append(platform.instance.project(works).embeddings_in_progress)

    meanwhile(monkeypatch, stop_the_other)
    assert counts(platform.sync(works)) == {"embed": 2}
    assert flags == [True]


def test_w18_a_stop_that_reaches_nobody_does_not_claim_success(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever works on another machine goes on, and so does the flag."""
    project, _, _ = platform.make_project(1)
    run = run_of(platform, project)
    state = platform.instance.project(project)
    state.embeddings_in_progress = True
    with lease(run.home, str(project), "run 5f0c", 0):
        monkeypatch.setattr(stopping.socket, "gethostname", lambda: "another machine")
        with pytest.raises(RunNotStopped, match="works on this project; stop it there"):
            stop_project(platform.deployment, platform.dagster, str(project))
    assert state.embeddings_in_progress


def test_w19_a_flag_that_nobody_works_under_is_cleared_by_the_next_look(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever custom data says; not under a queued run or a lease, and the work is asked for again."""
    project, _, _ = platform.make_project(1)
    state = platform.instance.project(project)
    state.embeddings_in_progress = True
    run = dg.DagsterRun(
        "sync_project", run_id=str(uuid4()), tags={PARTITION_NAME_TAG: str(project)}
    )
    platform.dagster.add_run(run)
    assert look(platform).skipped == {"working": [str(project)]}
    assert state.embeddings_in_progress
    platform.dagster.report_run_failed(run)
    with lease(run_of(platform, project).home, str(project), "run 5f0c", 0):
        look(platform)
        assert state.embeddings_in_progress
    monkeypatch.setattr(changes, "FIRST_RETRY", timedelta(0))
    assert asked_for(look(platform)) == [str(project)]
    assert not state.embeddings_in_progress
    assert "killed" in str(state.error_message)


def test_w20_small_projects_do_not_wait_for_a_large_one(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One look asks for all, the smallest first; large runs leave slots to the others."""
    monkeypatch.setattr(changes, "LARGE_IMAGES", 5)
    large, small, tiny = (platform.make_project(n, f"of {n}")[0] for n in (6, 2, 1))
    tick = look(platform)
    assert [(request.project, request.large) for request in tick.requests] == [
        (str(tiny), False),
        (str(small), False),
        (str(large), True),
    ]
    tags = [_run_request(request).tags for request in tick.requests]
    assert [LARGE_TAGS.items() <= each.items() for each in tags] == [False, False, True]
    runs = yaml.safe_load(shipped("dagster.yaml").read_text())["concurrency"]["runs"]
    [of_large] = [each for each in runs["tag_concurrency_limits"] if each["key"] in LARGE_TAGS]
    assert of_large["limit"] < runs["max_concurrent_runs"]


def test_w22_the_free_plan_switches_nothing_off(platform: Platform) -> None:
    """Its projects are left out by name and reason; switch, marks and points stay, until it has a plan."""
    project, _, images = platform.make_project(2)
    synced(platform, project)
    [team] = platform.instance.teams
    look(platform)
    platform.instance.set_plan(team, "free")
    platform.stand_in.reset_counts()
    for _ in range(3):
        tick = look(platform)
        assert tick.retired == []
        assert tick.skipped == {f"team {team} has the free plan, without AI search": [str(project)]}
    assert {*platform.stand_in.requests} == {"projects.list.all", "teams.info"}
    assert platform.instance.project(project).embeddings_enabled
    assert stamped(platform, project) == found(platform, project) == set(images)
    platform.instance.set_plan(team, "pro")
    assert look(platform).skipped == {"unchanged": [str(project)]}


def test_w23_a_download_that_hangs_blocks_nothing(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looks, searches and syncs of others go on; all but its own image go in, and the wait has an end."""
    batches_of_two(monkeypatch)
    (project, _, images), (other, dataset, others) = (platform.make_project(n) for n in (5, 2))
    synced(platform, other)
    new = platform.instance.add_image(dataset, "new.png", picture(100))
    platform.stand_in.fail("preview", status(404), None, when=of_image(images[0]))
    platform.stand_in.fail("images.download", slow(60), None, when=of_image(images[0]))

    def go_on() -> None:
        assert str(other) in asked_for(look(platform))
        assert synced(platform, other) == {"embed": 1, "unchanged": 2}
        assert found(platform, other) == {*others, new}

    meanwhile(monkeypatch, go_on, encoded=1)
    started = time.monotonic()
    assert synced(platform, project) == {"embed": 4, "failed": 1}
    assert time.monotonic() - started < 20
    assert platform.indexed(project) == {*images[1:]}


def test_w24_listing_and_downloading_take_little_memory(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page is asked for when the last one was taken; downloads keep a few batches ahead of the encoder."""
    for name, number in (("DOWNLOADS", 3), ("DECODE_WORKERS", 1), ("BATCH_SIZE", 4)):
        monkeypatch.setenv(f"EMBED_{name}", str(number))
    monkeypatch.setattr(supervisely_listing, "PAGE_IMAGES", 3)
    project, _, _ = platform.make_project(24)
    requests = platform.stand_in.requests
    source = platform.deployment.source
    for number, page in enumerate(source.scan(str(project)), start=1):
        assert page.images.height <= 3
        assert requests["images.list"] == number

    ahead = []

    def stand_still() -> None:
        while requests["preview"] not in ahead:
            ahead.append(requests["preview"])
            time.sleep(0.3)

    meanwhile(monkeypatch, stand_still)
    assert synced(platform, project) == {"embed": 24}
    assert 4 < ahead[-1] <= 4 + 2 * 4 + 3
    # A request is counted until its thread at the server has come back.
    assert platform.stand_in.in_flight_most["preview"] <= 3 + 1


TOKEN, ACCESS_TOKEN, KEY = (f"a-secret-{name}" for name in ("token", "access-token", "key"))


@pytest.fixture
def keyed(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> Iterator[QdrantDouble]:
    """Both servers ask for secrets, which the settings have. This is the Qdrant server."""
    platform.instance.tokens, platform.instance.access_token = (TOKEN,), ACCESS_TOKEN
    monkeypatch.setenv("API_TOKEN", TOKEN)
    monkeypatch.setenv("QDRANT_API_KEY", KEY)
    with QdrantDouble(api_key=KEY, grpc=False) as double:
        yield use(double, monkeypatch)


def told_by(platform: Platform, outcomes: list[SyncOutcome], logged: str) -> set[str]:
    """Where somebody who should not could read a secret."""
    records = [(run, platform.dagster.all_logs(run.run_id)) for run in platform.dagster.get_runs()]
    deployment = platform.deployment
    deployment.source.projects()
    files = [path for path in Path(deployment.home.root).rglob("*") if path.is_file()]
    told = {
        "errors": str(outcomes),
        "log": logged,
        "Dagster": str(records),
        "repr": repr((deployment, deployment.settings)),
        "platform": repr(platform.instance.projects),
        "files": str([path.read_bytes() for path in files]),
    }
    return {where for where, text in told.items() if "a-secret" in text}


def test_w33_no_secret_is_told_anywhere(
    platform: Platform,
    keyed: QdrantDouble,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Not in logs at DEBUG, in errors, on the platform, in Dagster, or in files."""
    for logger in (None, "embed_pipeline"):
        caplog.set_level(logging.DEBUG, logger)
    monkeypatch.delenv("API_TOKEN")
    monkeypatch.setenv("SUPERVISELY_API_ACCESS_TOKEN", ACCESS_TOKEN)
    project, _, _ = platform.make_project(1)
    outcomes = [platform.sync(project)]
    assert counts(outcomes[0]) == {"embed": 1}
    platform.stand_in.fail("images.list", status(403))
    outcomes.append(platform.sync(project))
    assert outcomes[1].status == "failed"
    assert "images.list" in caplog.text
    assert told_by(platform, outcomes, caplog.text) == set()


def test_w33_no_secret_is_told_though_a_server_repeats_it(
    platform: Platform, keyed: QdrantDouble, caplog: pytest.LogCaptureFixture
) -> None:
    """Errors, and what caused them, say something else instead."""
    project, _, _ = platform.make_project(1)
    said = f"{TOKEN} is wrong"
    repeated = status(403, body={"error": said, "details": {"message": said}})
    platform.stand_in.fail("images.list", repeated)
    outcomes = [platform.sync(project)]
    assert platform.instance.project(project).error_message == outcomes[0].error
    assert "is wrong" in str(outcomes[0].error)
    keyed.fail("scroll", refuse("UNAUTHENTICATED", f"Invalid API key or JWT {KEY}"), None)
    outcomes.append(platform.sync(project))
    assert "Invalid API key or JWT" in str(outcomes[1].error)
    assert told_by(platform, outcomes, caplog.text) == set()


@pytest.mark.parametrize("code", [400, 401, 403, 404, 409, 422])
def test_w34_what_does_not_pass_is_asked_once(platform: Platform, code: int) -> None:
    """The error names what was asked, and keeps its cause."""
    project, _, _ = platform.make_project(1)
    platform.stand_in.fail("images.list", status(code), times=None)
    with pytest.raises(SourceError, match=rf"images\.list .{code} as told by the test") as raised:
        synced(platform, project)
    assert platform.stand_in.requests["images.list"] == 1
    assert f"{code} as told by the test" in str(raised.value.__cause__)


def test_w34_what_may_pass_is_asked_again_and_every_wait_has_an_end(platform: Platform) -> None:
    """A server that is overloaded or silent is given up after so many tries; that is told as it is."""
    project, _, _ = platform.make_project(1)
    for fault, cause in ((status(503), "503 as told by the test"), (slow(60), "timed out")):
        platform.stand_in.reset_counts()
        platform.stand_in.fail("images.list", fault, times=None)
        started = time.monotonic()
        with pytest.raises(SourceUnavailable, match=rf"images\.list \({cause}\)") as raised:
            synced(platform, project)
        assert time.monotonic() - started < 2 * BRIEF.total_seconds
        assert platform.stand_in.requests["images.list"] == BRIEF.tries
        assert cause in str(raised.value.__cause__)
        platform.stand_in.heal()
    assert synced(platform, project) == {"embed": 1}


def test_w34_a_wrong_key_for_qdrant_is_told_at_once(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not tried again; with the right one, everything works."""
    project, _, images = platform.make_project(2)
    with QdrantDouble(api_key=KEY, grpc=False) as double:
        use(double, monkeypatch)
        with pytest.raises(StoreError, match=r"refused the key.*check QDRANT_API_KEY") as raised:
            synced(platform, project)
        assert double.asked.count("scroll") == 1
        assert "401" in str(raised.value.__cause__)
        monkeypatch.setenv("QDRANT_API_KEY", KEY)
        assert synced(platform, project) == {"embed": 2}
        assert found(platform, project) == set(images)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("UPDATE_INTERVAL", "0"),
        ("UPDATE_INTERVAL", "1441"),
        ("EMBED_DOWNLOADS", "many"),
        ("SERVER_ADDRESS", "https://"),
        ("QDRANT_URL", "localhost:6333"),
    ],
)
def test_w34_a_wrong_setting_is_an_error_at_the_start(
    platform: Platform, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    """It names the setting and the value; nothing was asked of anybody."""
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=f"(?i){name}='{value}'|INTERVAL_MINUTES='{value}'"):
        _ = platform.deployment.source, platform.deployment.store
    assert not platform.stand_in.requests
