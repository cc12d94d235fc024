"""What was wrong with the two services that this project replaces: faults of their doors, by number.

Each of these tests fails on what those services did. Faults of their data and their runs:
test_old_faults_data.py, test_old_faults_runs.py.
"""

import builtins
import hashlib
import io
import json
import logging
import os
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from embed_pipeline.api import dagster_runs
from embed_pipeline.api.app import create_app
from embed_pipeline.lease import lease, lease_holder
from embed_pipeline.models import clip
from embed_pipeline.sample import PROJECT, make_sample
from embed_pipeline.search.query import Query
from embed_pipeline.search.searcher import Searcher
from embed_pipeline.search.selection import Selection
from embed_pipeline_tests.qdrant_double import QdrantDouble, refuse
from embed_pipeline_tests.supervisely_faults import slow, status
from embed_pipeline_tests.supervisely_instance import Instance
from embed_pipeline_tests.supervisely_place import Platform, picture
from embed_pipeline_tests.test_old_faults_data import (
    batches_of_two,
    meanwhile,
    run_of,
    small_pages,
    stamped,
    synced,
    use,
)
from embed_pipeline_tests.web import TestClient, client_of, served, with_recorded_runs
from embed_pipeline_tests.web import synced as synced_folder

__all__ = ["small_pages"]

THEIRS = "a-user's-own-token"


@pytest.fixture
def qdrant(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> Iterator[QdrantDouble]:
    """A stand-in for a Qdrant server, with REST alone."""
    with QdrantDouble(grpc=False) as double:
        yield use(double, monkeypatch)


def app_of(platform: Platform) -> FastAPI:
    """The service over the instance, which knows a user's token beside the service's own."""
    platform.instance.tokens = ("token", THEIRS)
    platform.instance.users[THEIRS] = 8
    app, _ = with_recorded_runs(platform.deployment)
    return app


def ask(client: TestClient, route: str, project: int, **fields: Any) -> Any:
    """The user's request, as Supervisely sends it."""
    body = {"state": {"project_id": project, **fields}, "context": {"apiToken": THEIRS}}
    return client.post(f"/{route}", json=body)


def found(answer: Any) -> set[int]:
    """The images of an answer."""
    assert answer.status_code == 200, answer.text
    body = answer.json()
    return {int(image["image_id"]) for image in body.get("hits", body.get("images"))}


READS: list[tuple[str, dict[str, Any]]] = [
    ("search", {"prompt": "a cat"}),
    ("search", {"by_image_ids": [0]}),
    ("diverse", {"sample_size": 2}),
    ("projections", {}),
    ("embeddings_up_to_date", {}),
    ("task_status", {}),
    ("processing_progress", {}),
]


def test_w01_a_failing_store_disables_nothing(platform: Platform, qdrant: QdrantDouble) -> None:
    """Nor does a lost collection: each read is an error or an answer, and nothing is changed anywhere."""
    project, _, images = platform.make_project(3)
    synced(platform, project)
    before = vars(platform.instance.project(project)).copy()
    asked = {"projects.info", "teams.info", "users.me"}
    saved = {f"entities-collections.{what}" for what in ("list", "add", "items.bulk.add", "remove")}
    with client_of(app_of(platform)) as client:

        def read(verb: str, code: str) -> None:
            platform.stand_in.reset_counts()
            for route, fields in READS:
                if "by_image_ids" in fields:
                    fields = {"by_image_ids": [images[0]]}  # noqa: PLW2901  # by its number
                answer = ask(client, route, project, **fields)
                assert answer.status_code in (200, 404, 500, 501, 503), (route, verb, answer.text)
            assert {*platform.stand_in.requests} <= asked | (set() if code else saved)

        for code in ("INTERNAL", "UNAVAILABLE", "UNAUTHENTICATED", "RESOURCE_EXHAUSTED"):
            for verb in ("query_points", "get_collection", "scroll", "count"):
                qdrant.fail(verb, refuse(code), times=None)
            read("all", code)
            assert ask(client, "search", project, prompt="x").status_code in (500, 503)
            qdrant.heal()
        assert found(ask(client, "search", project, prompt="x")) == set(images)
        run_of(platform, project).collection.drop()
        read("dropped", "")
        gone = ask(client, "search", project, prompt="x")
        assert (gone.status_code, gone.json()["error"]["type"]) == (404, "collection_missing")
    assert vars(platform.instance.project(project)) == before
    assert stamped(platform, project) == set(images)


def test_w07_a_project_that_is_behind_answers_everything(platform: Platform) -> None:
    """Projections are not offered, and say so; nothing is embedded inside a request."""
    project, dataset, images = platform.make_project(4)
    synced(platform, project)
    platform.instance.add_image(dataset, "new.png", picture(5))
    platform.stand_in.reset_counts()
    with client_of(app_of(platform)) as client:
        assert ask(client, "embeddings_up_to_date", project).json() is False
        assert found(ask(client, "search", project, prompt="a cat")) == set(images)
        assert found(ask(client, "diverse", project, sample_size=9)) == set(images)
        plot = ask(client, "projections", project)
    assert (plot.status_code, plot.json()["error"]["type"]) == (501, "not_implemented")
    assert not platform.stand_in.requests["preview"]


def test_w08_more_ids_than_fit_one_request_all_count(platform: Platform) -> None:
    """As the scope of a search and a selection, and as what is to be embedded, of several projects."""
    project, _, images = platform.make_project(120)
    other, _, more = platform.make_project(60, "dogs")
    synced(platform, project)
    app = app_of(platform)
    with client_of(app) as client:
        scope = ask(client, "search", project, prompt="x", scope_image_ids=images[:110], limit=200)
        assert found(scope) == set(images[:110])
        chosen = ask(client, "diverse", project, image_ids=images[:110], sample_size=200)
        assert found(chosen) == set(images[:110])
        platform.stand_in.reset_counts()
        state = {"image_ids": [*images, *more, 10**9], "force": True}
        body = {"state": state, "context": {"apiToken": THEIRS}}
        begun = client.post("/embeddings", json=body)
        assert begun.status_code == 200, begun.text
    assert app.state.runs.started == [(str(project), True), (str(other), True)]
    assert platform.stand_in.requests["images.info"] <= 3


@pytest.mark.usefixtures("small_pages")
def test_w09_a_selection_looks_at_every_image(platform: Platform) -> None:
    """However many pages of points there are."""
    project, _, images = platform.make_project(25)
    synced(platform, project)
    with client_of(app_of(platform)) as client:
        answer = ask(client, "diverse", project, sample_size=25)
    assert answer.json()["candidates"] == 25
    assert found(answer) == set(images)


def test_w10_images_that_vanished_are_left_out_and_a_collection_is_always_whole(
    platform: Platform,
) -> None:
    """Of the hits, too; and where the new collection cannot be made, the one before it stays."""
    project, _, images = platform.make_project(5)
    synced(platform, project)
    platform.instance.trash_image(images[1])
    collections = platform.instance.collections
    with client_of(app_of(platform)) as client:
        first = ask(client, "search", project, prompt="a cat")
        assert found(first) == {*images} - {images[1]}
        assert {*collections[first.json()["collection_id"]].items} == found(first)
        for method in ("add", "items.bulk.add"):
            platform.stand_in.fail(f"entities-collections.{method}", status(503), times=None)
            failed = ask(client, "search", project, prompt="a dog")
            assert (failed.status_code, failed.json()["error"]["retryable"]) == (503, True)
            platform.stand_in.heal()
            assert {*collections[first.json()["collection_id"]].items} == found(first)
        again = ask(client, "search", project, prompt="a dog")
    [(number, whole)] = collections.items()
    assert (number, {*whole.items}) == (again.json()["collection_id"], found(again))


def test_w17_a_cancelled_run_has_ended_when_the_answer_comes(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its progress is over, and nothing of it touches the run that is started then."""
    batches_of_two(monkeypatch)
    project, _, _ = platform.make_project(8)
    state, home = platform.instance.project(project), run_of(platform, project).home
    app, told = app_with_dagster(platform, monkeypatch), []

    def cancel() -> None:
        answer = ask(client, "cancel_embeddings", project)
        progress = ask(client, "processing_progress", project).json()["progress"]
        told.append((answer.json(), progress, lease_holder(home), state.embeddings_in_progress))

    cancelling = threading.Thread(target=cancel)

    def hang() -> None:
        assert ask(client, "task_status", project).json()["is_running"] is True
        assert ask(client, "processing_progress", project).json()["progress"]["total"] == 8
        cancelling.start()
        time.sleep(20)

    with client_of(app) as client:
        meanwhile(monkeypatch, hang, encoded=1)
        assert platform.sync(project).status == "canceled"
        cancelling.join()
        [(answer, *after)] = told
        assert (answer["is_current_task"], answer["success"]) == (True, True)
        assert answer["message"] == "Embeddings task has been cancelled."
        assert after == [None, None, False]
        assert ask(client, "task_status", project).json()["status"] == "cancelled"

        flags = []
        meanwhile(monkeypatch, lambda: flags.append(state.embeddings_in_progress), encoded=2)
        assert platform.sync(project).error is None
        assert (flags, state.embeddings_in_progress) == ([True], False)
        assert ask(client, "task_status", project).json()["status"] == "completed"


def test_w18_a_stop_that_reaches_nobody_is_no_success(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who works on another machine goes on, and so does the flag; a stop of another project is none."""
    (works, _, _), (idle, _, _) = platform.make_project(1), platform.make_project(1, "dogs")
    app = app_with_dagster(platform, monkeypatch)
    run = run_of(platform, works)
    state = platform.instance.project(works)
    state.embeddings_in_progress = True
    with client_of(app) as client, lease(run.home, str(works), "run 5f0c", 0):
        other = client.post(f"/stop-embeddings-update/{idle}")
        assert other.json() == {
            "project_id": idle,
            "is_current_task": False,
            "success": True,
            "message": f"[Project: {idle}] Is not the current active task in the auto-updater.",
            "details": {},
        }
        monkeypatch.setattr("embed_pipeline.stopping.socket.gethostname", lambda: "elsewhere")
        for route in (f"stop-embeddings-update/{works}", "cancel_embeddings"):
            answer = ask(client, route, works)
            assert (answer.status_code, answer.json()["error"]["type"]) == (409, "run_not_stopped")
    assert state.embeddings_in_progress


def test_w21_search_and_selection_have_collections_of_their_own_without_a_gap(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So has each user. Whenever the platform is asked, there is one that is whole."""
    project, _, _ = platform.make_project(6)
    synced(platform, project)
    app = app_of(platform)
    collections = platform.instance.collections
    seen: list[int] = []
    make = Instance.keep

    def look(self: Instance) -> None:
        seen.append(max((len(c.items) for c in self.collections.values()), default=0))
        make(self)

    with client_of(app) as client:
        searched = ask(client, "search", project, prompt="a cat", limit=6).json()["collection_id"]
        chosen = ask(client, "diverse", project, sample_size=6).json()["collection_id"]
        ours = {"project_id": project, "prompt": "a cat", "api_token": "token"}
        another = client.post("/search", json=ours).json()["collection_id"]
        assert {*collections} == {searched, chosen, another}
        for other in (searched, another):
            platform.instance.collections.pop(other)
        monkeypatch.setattr(Instance, "keep", look)
        for limit in (6, 5, 4):
            ask(client, "diverse", project, sample_size=limit)
    assert min(seen) >= 4
    [left] = collections.values()
    assert (left.id != chosen, len(left.items)) == (True, 4)


def test_w21_two_searches_of_one_user_at_once_leave_one_whole_collection(
    platform: Platform,
) -> None:
    """Neither fails."""
    project, _, images = platform.make_project(6)
    synced(platform, project)
    answers = []
    with served(app_of(platform)) as url:

        def search() -> None:
            state = {"project_id": project, "prompt": "a cat"}
            body = {"state": state, "context": {"apiToken": THEIRS}}
            answers.append(httpx.post(f"{url}/search", json=body, timeout=30))

        askers = [threading.Thread(target=search) for _ in range(6)]
        for asker in askers:
            asker.start()
        for asker in askers:
            asker.join()
    assert [answer.status_code for answer in answers] == [200] * 6
    [collection] = platform.instance.collections.values()
    assert {*collection.items} == set(images)


def test_w22_the_free_plan_is_an_answer_and_switches_nothing_off(platform: Platform) -> None:
    """403 for all that is AI search; nothing is written anywhere."""
    project, _, _ = platform.make_project(2)
    synced(platform, project)
    [team] = platform.instance.teams
    platform.instance.set_plan(team, "free")
    before = vars(platform.instance.project(project)).copy()
    with client_of(app_of(platform)) as client:
        for route, fields in (
            ("search", {"prompt": "x"}),
            ("diverse", {"limit": 1}),
            ("embeddings", {}),
        ):
            answer = ask(client, route, project, **fields)
            assert answer.status_code == 403
            assert answer.json()["message"] == (
                f"Team {team} with 'free' plan cannot use AI features."
            )
    assert vars(platform.instance.project(project)) == before


def test_w23_a_slow_instance_and_a_slow_model_hold_up_nobody_else(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one user's token is looked at, and another's search hangs, the service answers at once."""
    project, _, images = platform.make_project(2)
    synced(platform, project)
    app = app_of(platform)
    search, go_on = app.state.searcher.search, threading.Event()

    def hang(name: str, query: Query) -> Any:
        if query.texts[0].text == "hang":
            go_on.wait(30)
        return search(name, query)

    monkeypatch.setattr(app.state.searcher, "search", hang)
    platform.stand_in.fail("users.me", slow(10))
    with served(app) as url:

        def post(prompt: str, **more: Any) -> httpx.Response:
            body = {"project_id": project, "prompt": prompt, **more}
            return httpx.post(f"{url}/search", json=body, timeout=40)

        post("warm")
        waiting = [
            threading.Thread(target=post, args=("hang",)),
            threading.Thread(target=post, args=("a",), kwargs={"api_token": THEIRS}),
        ]
        for each in waiting:
            each.start()
        time.sleep(0.2)
        began = time.monotonic()
        for _ in range(5):
            assert httpx.get(f"{url}/health/live").status_code == 200
            assert httpx.get(f"{url}/health/ready").status_code in (200, 503)
            assert found(post("a cat")) == set(images)
        assert time.monotonic() - began < 5
        assert all(each.is_alive() for each in waiting)
        go_on.set()
        platform.stand_in.heal()
        for each in waiting:
            each.join()


def test_w24_no_vectors_are_sent_or_kept_for_nobody(platform: Platform) -> None:
    """`return_vectors` is told that there are none; answers hold images and figures alone."""
    project, _, _ = platform.make_project(3)
    synced(platform, project)
    with client_of(app_of(platform)) as client:
        begun = ask(client, "embeddings", project, force=True, return_vectors=True)
        assert "there are none before the run ends" in begun.json()["details"]
        for route, fields in (("search", {"prompt": "x"}), ("diverse", {"sample_size": 3})):
            answer = ask(client, route, project, return_vectors=True, **fields)
            assert found(answer)
            assert "vector" not in answer.text
            assert len(answer.content) < 3000


def test_w29_text_and_image_both_have_their_say(tmp_path: Path) -> None:
    """In a query of both, the text moves what is found; a comma does not."""
    with synced_folder(tmp_path, partial(make_sample, images=100), PROJECT) as scenes:
        searcher = Searcher(scenes)
        like = searcher.search(PROJECT, Query(texts=["a blue star"], limit=1)).hits[0].image_id

        def order(**query: Any) -> list[str]:
            hits = searcher.search(PROJECT, Query(limit=20, **query)).hits
            return [hit.image_id for hit in hits]

        alone, both = order(like=[like]), order(like=[like], texts=["a red circle"])
        text = [id_ for id_ in order(texts=["a red circle"]) if id_ != like]
        assert both != alone
        assert len({*both[:10]} & {*text[:10]}) > len({*alone[:10]} & {*text[:10]})
        assert {*both[:10]} & {*alone[:10]}
        assert order(texts=["red, circle"]) != order(texts=["red", "circle"])


def test_w31_clusters_are_as_many_as_asked_and_noise_is_none(platform: Platform) -> None:
    """`num_clusters` counts; dbscan takes its reach from the data, and tells noise from clusters."""
    project, _, _ = platform.make_project(30)
    synced(platform, project)
    with client_of(app_of(platform)) as client:
        few = ask(
            client, "diverse", project, sample_size=12, clustering_method="kmeans", num_clusters=3
        )
        clusters = [image["cluster"] for image in few.json()["images"]]
        assert {*clusters} == {0, 1, 2}
        assert len({*clusters[:3]}) == 3  # in turns
        reached = ask(client, "diverse", project, sample_size=10, clustering_method="dbscan")
        assert len(found(reached)) == 10
    chosen = Searcher(platform.deployment).diverse(
        str(project), Selection(limit=10, method="dbscan", eps=0.001)
    )
    assert {image.cluster for image in chosen.images} == {None}  # all of it noise


def test_w32_nothing_a_request_names_is_called_or_opened(
    platform: Platform, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """No server, no address, no file; and there is no route that ends the service."""
    project, _, [image, _] = platform.make_project(2)
    synced(platform, project)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.jpg").write_bytes(platform.instance.image(image).data)
    file, opened = str(tmp_path / "x.jpg"), opened_files(monkeypatch, "x.jpg")
    with (
        served(create_app(platform.deployment)) as elsewhere,
        client_of(app_of(platform)) as client,
    ):
        url = f"{elsewhere}/remote/x.jpg"
        for named in (file, "x.jpg", url, f"file://{file}"):
            hits = ask(client, "search", project, prompt=named).json()["hits"]
            assert max(hit["score"] for hit in hits) < 0.9
            answers = [
                ask(client, "search", project, by_image_ids=[named]),
                ask(client, "search", project, image_ids=[named]),
                client.post("/v1/search", json=_v1(project, like=[named])),
                client.post("/v1/search", json=_v1(project, like=[{"image": named}])),
                client.post("/v1/search", json=_v1(project, texts=["x"], unlike=[named])),
            ]
            assert [answer.status_code for answer in answers] == [404, 404, 400, 400, 400]
            path = client.post("/v1/search", json=_v1(project, like=[{"path": named}]))
            assert path.status_code == 422
        state = {"project_id": project, "prompt": "x"}
        for body in (
            {"state": state, "server_address": elsewhere},
            {"state": state | {"server_address": elsewhere}},
            {"state": state, "context": {"server_address": elsewhere, "apiToken": THEIRS}},
            state | {"server_address": elsewhere},
        ):
            answer = client.post("/search", json=body)
            assert answer.status_code == 422
            assert "server_address" in answer.json()["message"]
        same = state | {"server_address": platform.stand_in.url, "api_token": THEIRS}
        assert client.post("/search", json=same).status_code == 200
        for route in ("/sly/shutdown", "/debug"):
            assert client.post(route).status_code == 404
        called = httpx.get(f"{elsewhere}/metrics").text
    assert opened == []
    assert 'route="none"' not in called
    assert "/search" not in called


def opened_files(monkeypatch: pytest.MonkeyPatch, name: str) -> list[str]:
    """Those of this name that anything opens from now on."""
    opened: list[str] = []
    for owner, how in ((builtins, "open"), (io, "open"), (os, "open")):
        really = getattr(owner, how)

        def noted(file: Any, *args: Any, really: Any = really, **options: Any) -> Any:
            if name in str(file):
                opened.append(str(file))
            return really(file, *args, **options)

        monkeypatch.setattr(owner, how, noted)
    return opened


def _v1(project: int, **query: Any) -> dict[str, Any]:
    return {"project": str(project), "query": query}


def test_w33_collections_and_logs_tell_no_token(
    platform: Platform, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor a digest of one: the same user with another token has the same collection."""
    caplog.set_level(logging.DEBUG)
    project, _, _ = platform.make_project(2)
    synced(platform, project)
    second = "the-same-user's-second-token"
    app = app_of(platform)
    platform.instance.tokens += (second,)
    platform.instance.users[second] = 8
    names = []
    with client_of(app) as client:
        for token in (THEIRS, second):
            body = {"project_id": project, "prompt": "x", "api_token": token}
            assert client.post("/search", json=body).status_code == 200
            [collection] = platform.instance.collections.values()
            names.append((collection.name, json.dumps(collection.meta)))
    told = caplog.text + str(names)
    assert names[0][1] == names[1][1]
    for token in (THEIRS, second, 'token"', KEY_OF_OLD.format(project, THEIRS)):
        assert token not in told
        for digest in (hashlib.md5, hashlib.sha1, hashlib.sha256):
            assert digest(token.encode()).hexdigest()[:16] not in told


KEY_OF_OLD = '{{"project_id": {}, "user_token": "{}"}}'


def test_w34_what_is_no_success_is_no_200(platform: Platform) -> None:
    """Switched off, already running, never synced, unknown, empty: each has a status of its own."""
    project, _, _ = platform.make_project(2)
    new, _, _ = platform.make_project(1, "new")
    off, _, _ = platform.make_project(1, "off")
    for each in (project, off):
        synced(platform, each)
    platform.instance.set_enabled(off, enabled=False)
    app = app_of(platform)
    app.state.runs.working.add(str(project))
    with client_of(app) as client:
        told = {
            "running": ask(client, "embeddings", project, force=True),
            "off": ask(client, "embeddings", off),
            "search off": ask(client, "search", off, prompt="x"),
            "never synced": ask(client, "search", new, prompt="x"),
            "unknown": ask(client, "search", 10**9, prompt="x"),
            "empty": ask(client, "search", project),
            "no such image": ask(client, "search", project, by_image_ids=[10**9]),
        }
        nothing = ask(client, "search", project, prompt="x", threshold=1)
    assert {name: answer.status_code for name, answer in told.items()} == {
        "running": 409,
        "off": 409,
        "search off": 409,
        "never synced": 404,
        "unknown": 404,
        "empty": 400,
        "no such image": 404,
    }
    assert all(answer.json()["message"] for answer in told.values())
    assert (nothing.status_code, nothing.json()["hits"]) == (200, [])


def app_with_dagster(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> FastAPI:
    """The service over Dagster's real storage; what the UI does when told to end a run is done here."""

    class Client:
        def __init__(self, *_: object, **__: object) -> None:
            self.terminate_run = platform.dagster.run_coordinator.cancel_run

    monkeypatch.setattr(dagster_runs, "DagsterGraphQLClient", Client)
    monkeypatch.setattr(clip, "load_encoder", clip.load_encoder)
    app = app_of(platform)
    app.state.runs = dagster_runs.Runs(platform.deployment)
    app.state.runs.__dict__["_instance"] = platform.dagster
    return app
