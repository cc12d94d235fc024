"""What was wrong with the two services that this project replaces: faults of their runs, by number."""

import json
import re
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from itertools import count
from uuid import uuid4

import dagster as dg
import pytest
import yaml
from dagster._core.storage.tags import PARTITION_NAME_TAG

from embed_pipeline import changes, stopping
from embed_pipeline.dagster_home import shipped
from embed_pipeline.defs.sensors import LARGE_TAGS, _run_request
from embed_pipeline.errors import RunNotStopped
from embed_pipeline.lease import lease, lease_holder
from embed_pipeline.locks import Holder
from embed_pipeline.stopping import Stopped, stop_project
from embed_pipeline_tests.supervisely_faults import slow, status
from embed_pipeline_tests.supervisely_place import Platform, counts, picture
from embed_pipeline_tests.test_old_faults_data import (
    NUMBERS,
    asked_for,
    batches_of_two,
    found,
    look,
    meanwhile,
    of_image,
    run_of,
    stamped,
    synced,
)


@pytest.fixture(autouse=True)
def own_numbers(platform: Platform) -> None:
    """No project has a number whose runs Dagster knows from another test."""
    platform.instance._last_id = next(NUMBERS)


def test_w15_custom_data_is_the_users(platform: Platform, meanwhile: Meanwhile) -> None:
    """None, or what somebody writes there while a run works: byte for byte what it was."""
    project, _, _ = platform.make_project(1)
    state = platform.instance.project(project)
    state.custom_data = None  # type: ignore[assignment]  # the platform has such projects
    theirs = '{"b": [1.50, null, {"é": "ü"}], "a": {}, "embeddings_update_started_at": 1}'

    def edit() -> None:
        assert state.custom_data is None
        state.custom_data = json.loads(theirs)

    meanwhile(edit)
    assert counts(platform.sync(project)) == {"embed": 1}
    assert json.dumps(state.custom_data) == json.dumps(json.loads(theirs))


def test_w16_a_second_run_of_a_project_is_refused_and_disturbs_nothing(
    platform: Platform, meanwhile: Meanwhile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even by failing: the first one's flag stays until it ends, and no look asks for another run."""
    monkeypatch.setenv("EMBED_LEASE_WAIT_SECONDS", "0")
    project, _, _ = platform.make_project(2)
    state = platform.instance.project(project)
    seen = []

    def again() -> None:
        second = platform.sync(project)
        assert second.status == "failed"
        assert re.search(f"run .* works on this project", str(second.error))
        tick = look(platform)
        assert (tick.requests, tick.skipped) == ([], {"working": [str(project)]})
        seen.append((state.embeddings_in_progress, state.error_message))

    meanwhile(again)
    assert counts(platform.sync(project)) == {"embed": 2}
    assert seen == [(True, None)]
    assert not state.embeddings_in_progress


def test_w17_after_a_stop_nothing_works_and_the_next_run_keeps_its_flag(
    platform: Platform, small_batches: None, meanwhile: Meanwhile
) -> None:
    """When `stop` returns, the run has ended and written what it encoded; nothing of it comes later."""
    project, _, images = platform.make_project(8)
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

    meanwhile(hang, encoded=1)
    assert platform.sync(project).status == "canceled"
    stopping_.join()
    [(stopped, working, holder, asked)] = told
    assert (stopped.success, stopped.is_current_task) == (True, True)
    assert (working, holder, state.error_message) == (False, None, None)
    assert len(platform.indexed(project)) == 2
    assert not home.progress.exists()
    assert platform.stand_in.requests["preview"] == asked

    flags = []
    meanwhile(lambda: flags.append(state.embeddings_in_progress), encoded=2)
    assert counts(platform.sync(project)) == {"embed": 6, "unchanged": 2}
    assert (flags, state.embeddings_in_progress) == ([True], False)


def test_w18_a_stop_touches_no_other_project(platform: Platform, meanwhile: Meanwhile) -> None:
    """What works on another goes on to its end, under its flag."""
    (works, _, _), (idle, _, _) = platform.make_project(2), platform.make_project(2, "dogs")
    flags = []

    def stop_the_other() -> None:
        stopped = stop_project(platform.deployment, platform.dagster, str(idle))
        assert not stopped.is_current_task
        flags.append(platform.instance.project(works).embeddings_in_progress)

    meanwhile(stop_the_other)
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
    platform: Platform,
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
    look(platform)
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
    platform: Platform, small_batches: None, meanwhile: Meanwhile
) -> None:
    """Looks, searches and syncs of others go on; all but its own image go in, and the wait has an end."""
    (project, _, images), (other, dataset, others) = (platform.make_project(n) for n in (5, 2))
    synced(platform, other)
    new = platform.instance.add_image(dataset, "new.png", picture(100))
    for kind in ("preview", "images.download"):
        platform.stand_in.fail(kind, slow(60), None, when=of_image(images[0]))

    def go_on() -> None:
        assert str(other) in asked_for(look(platform))
        assert synced(platform, other) == {"embed": 1, "unchanged": 2}
        assert found(platform, other) == {*others, new}

    meanwhile(go_on, encoded=1)
    started = time.monotonic()
    assert synced(platform, project) == {"embed": 4, "failed": 1}
    assert time.monotonic() - started < 20
    assert platform.indexed(project) == {*images[1:]}


