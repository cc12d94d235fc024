"""Who may call the service, how much they may ask, and what they are told where that is too much."""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from embed_pipeline import errors
from embed_pipeline.api import errors as api_errors
from embed_pipeline.api.app import create_app
from embed_pipeline.deployment import Deployment
from embed_pipeline.errors import EmbedPipelineError, ImageError, RemovalWithheld, SettingsError
from embed_pipeline.project_run import ProjectRun
from embed_pipeline.serve import serve
from embed_pipeline.sources import supervisely_callers
from embed_pipeline.sync import sync
from embed_pipeline_tests.conftest import draw_many
from embed_pipeline_tests.processes import environment, free_port, started, wait_until
from embed_pipeline_tests.supervisely_faults import status
from embed_pipeline_tests.supervisely_place import Platform
from embed_pipeline_tests.web import (
    TestClient,
    client_of,
    served,
    synced,
    with_recorded_runs,
    with_settings,
)

KEY = "a key of the operator's"
OPEN = ("/health/live", "/health/ready", "/docs", "/openapi.json", "/", "/livez", "/is_alive")


@pytest.fixture(scope="module")
def cats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A synced project of three images, and an API key."""
    top = tmp_path_factory.mktemp("cats")
    with synced(top, lambda root: draw_many(root / "cats", 3), "cats") as deployment:
        yield with_settings(deployment, api_key=KEY)


@pytest.fixture
def app(cats: Deployment) -> FastAPI:
    """The service over it."""
    app, _ = with_recorded_runs(cats)
    return app


@pytest.fixture
def anonymous(app: FastAPI) -> Iterator[TestClient]:
    """A caller that shows nothing."""
    with client_of(app) as client:
        yield client


@pytest.fixture
def caller(app: FastAPI) -> Iterator[TestClient]:
    """A caller that shows the key."""
    with client_of(app, **{"X-API-Key": KEY}) as client:
        yield client


SEARCH = {"project_id": "cats", "prompt": "a cat"}


def kind_of(answer: Any) -> tuple[int, str]:
    """Status and kind of an error, whose shape is checked."""
    body = answer.json()
    assert body.keys() == {"message", "error"}
    assert body["error"].keys() == {"type", "message", "retryable"}
    assert body["error"]["message"] == body["message"]
    assert "\n" not in body["message"]
    assert "Traceback" not in answer.text
    return int(answer.status_code), str(body["error"]["type"])


def test_every_route_but_those_that_tell_nothing_asks_for_the_key(anonymous: TestClient) -> None:
    """Each route of the app is asked, also those that this test knows nothing of."""
    asked = 0
    for route in anonymous.app.routes:  # type: ignore[attr-defined]
        path = route.path.replace("{project_id}", "cats")
        for method in route.methods - {"HEAD", "OPTIONS"}:
            known = ("/static", "/readyz", "/is_ready", "/is_running", "/docs")
            if path in OPEN or path.startswith(known):
                continue
            answer = anonymous.request(method, path, json=SEARCH)
            assert kind_of(answer) == (401, "unauthorized"), path
            assert answer.headers["WWW-Authenticate"] == "Bearer"
            asked += 1
    assert asked > 15
    for path in OPEN:
        assert anonymous.get(path).status_code in (200, 503)


def test_the_key_is_taken_as_header_or_bearer_and_nothing_else_is(anonymous: TestClient) -> None:
    """Not a part of it, not one that is longer, not in the address."""
    for headers in ({"X-API-Key": KEY}, {"Authorization": f"Bearer {KEY}"}):
        assert anonymous.post("/search", json=SEARCH, headers=headers).status_code == 200
    for wrong in (KEY[:-1], KEY + "x", "", "é"):
        headers = {"X-API-Key": wrong.encode()}
        assert kind_of(anonymous.post("/search", json=SEARCH, headers=headers))[0] == 401
    assert anonymous.post(f"/search?api_key={KEY}", json=SEARCH).status_code == 401


def test_without_a_key_only_this_machine_may_call(cats: Deployment) -> None:
    """`serve` refuses to listen elsewhere, says who may call, and answers to no other host's name."""
    deployment = with_settings(cats, api_key=None)
    for host in ("0.0.0.0", "192.168.1.7", "example.com", "::"):
        with pytest.raises(SettingsError, match="EMBED_API_KEY"):
            serve(deployment, host)
    with client_of(create_app(deployment)) as client:
        for host in ("localhost:8000", "127.0.0.1", "[::1]:8000"):
            assert client.get("/v1/projects", headers={"Host": host}).status_code == 200
        for host in ("evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "["):
            answer = client.get("/v1/projects", headers={"Host": host})
            assert kind_of(answer) == (403, "host_refused")


def test_serve_says_who_may_call_and_ends_when_interrupted(root: Path, tmp_path: Path) -> None:
    """A process of its own, on a real socket; it says, too, that no Dagster is there to start runs."""
    port = free_port()
    script = (
        "from embed_pipeline.deployment import open_deployment; from embed_pipeline.serve import serve; "
        f"serve(open_deployment(), port={port})"
    )
    env = environment(
        EMBED_SOURCE=f"folder:{root}",
        EMBED_HOME=tmp_path / "home",
        EMBED_MODEL="demo",
        EMBED_DAGSTER_URL=f"http://127.0.0.1:{free_port()}",
    )
    with started([sys.executable, "-c", script], env, stderr=subprocess.PIPE) as process:
        url = f"http://127.0.0.1:{port}/health/live"

        def live() -> bool:
            try:
                return httpx.get(url).status_code == 200
            except httpx.TransportError:
                assert process.poll() is None
                return False

        wait_until(live, 60, "the service")
        os.kill(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=30)
    assert process.returncode in (0, -signal.SIGINT, 130)
    assert "EMBED_API_KEY is not set: only this machine may call" in said
    assert f"no Dagster at EMBED_DAGSTER_URL={env['EMBED_DAGSTER_URL']}" in said
    assert f"http://127.0.0.1:{port}" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("headers", "let_in"),
    [
        ({}, True),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "http://localhost"}, True),
        ({"Sec-Fetch-Site": "none"}, True),
        ({"Sec-Fetch-Site": "cross-site"}, False),
        ({"Sec-Fetch-Site": "same-site"}, False),
        ({"Origin": "https://evil.example"}, False),
        ({"Origin": "http://localhost:3000"}, False),
        ({"Origin": "null"}, False),
        ({"Origin": "http://["}, False),
    ],
)
def test_another_sites_page_may_not_call(
    caller: TestClient,
    headers: dict[str, str],
    let_in: bool,  # noqa: FBT001  # what is expected
) -> None:
    """Although the browser of who has the key would send it."""
    answer = caller.post("/search", json=SEARCH, headers=headers)
    if let_in:
        assert answer.status_code == 200
    else:
        assert kind_of(answer) == (403, "cross_site")
        assert caller.post("/cancel_embeddings", json=SEARCH, headers=headers).status_code == 403
    opened = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert caller.get("/", headers=opened).status_code == 200  # a link to the page


def test_a_body_that_is_too_long_is_refused_also_in_chunks(cats: Deployment, app: FastAPI) -> None:
    """Before it is read where its length is told; whoever shows no key may send less."""
    large = json.dumps({**SEARCH, "padding": "x" * 1_100_000}).encode()
    kind = {"Content-Type": "application/json"}

    def in_chunks() -> Iterator[bytes]:
        for start in range(0, len(large), 100_000):
            yield large[start : start + 100_000]

    with client_of(app) as client:
        for content in (large, in_chunks()):
            answer = client.post("/search", content=content, headers=kind)
            assert kind_of(answer) == (413, "request_entity_too_large")
        known = kind | {"X-API-Key": KEY}
        assert client.post("/search", content=large, headers=known).status_code == 200
    with client_of(create_app(with_settings(cats, api_max_body_bytes=1000))) as client:
        for content in (large, in_chunks()):
            assert client.post("/search", content=content, headers=known).status_code == 413


def test_a_caller_who_asks_too_often_is_told_when_to_ask_again(cats: Deployment) -> None:
    """Those who show a wrong key have a count of their own: they keep nobody else out."""
    with client_of(create_app(with_settings(cats, api_requests_per_minute=3))) as client:
        key, wrong = {"X-API-Key": KEY}, {"X-API-Key": "not the key of anybody"}
        told = [client.get("/v1/projects", headers=key).status_code for _ in range(4)]
        assert told == [200, 200, 200, 429]
        answer = client.get("/v1/projects", headers=key)
        assert kind_of(answer) == (429, "too_many_requests")
        assert 0 < int(answer.headers["Retry-After"]) <= 60
        assert answer.json()["error"]["retryable"] is True
        refused = [client.get("/v1/projects", headers=wrong).status_code for _ in range(4)]
        assert refused == [401, 401, 401, 429]
        assert client.get("/health/live").status_code == 200


def test_who_waits_too_long_is_answered_and_nobody_else_waits(
    cats: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search that hangs, and as many as there are threads for: the service stays alive."""
    hanging = create_app(with_settings(cats, api_timeout_seconds=0.5))
    go_on = threading.Event()
    searching: list[str] = []

    def hang(project: str, _: object) -> None:
        searching.append(project)
        go_on.wait(30)

    monkeypatch.setattr(hanging.state.searcher, "search", hang)
    with served(hanging) as url, httpx.Client(base_url=url, headers={"X-API-Key": KEY}) as client:
        answers: list[httpx.Response] = []

        def ask() -> None:
            answers.append(httpx.post(f"{url}/search", json=SEARCH, headers=client.headers))

        askers = [threading.Thread(target=ask) for _ in range(60)]
        for asker in askers:
            asker.start()
        wait_until(lambda: searching, 10, "a search")
        slowest = 0.0
        while any(asker.is_alive() for asker in askers):
            began = time.monotonic()
            assert client.get("/health/live").status_code == 200
            slowest = max(slowest, time.monotonic() - began)
        go_on.set()
    assert {kind_of(answer) for answer in answers} == {(503, "timeout")}
    assert all(answer.headers["Retry-After"] for answer in answers)
    assert len(searching) <= 40  # threads are not made without end
    assert slowest < 2


def test_an_error_nobody_expected_is_a_line_and_a_number_in_the_log(
    caller: TestClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What it was is in the log alone."""

    def fail(*_: object) -> None:
        raise RuntimeError("the secret cause")

    monkeypatch.setattr(caller.app.state.searcher, "search", fail)  # type: ignore[attr-defined]
    answer = caller.post("/search", json=SEARCH)
    assert kind_of(answer) == (500, "internal_error")
    assert "secret" not in answer.text
    number = answer.json()["message"].rpartition(" ")[2]
    [record] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert number in record.getMessage()
    assert "the secret cause" in record.getMessage()


def test_every_error_of_ours_has_a_status_and_the_one_shape() -> None:
    """Those that may pass by themselves ask to be tried again."""
    expected = {
        "QueryError": 400,
        "ProjectNotFound": 404,
        "CollectionMissing": 404,
        "TableMissing": 404,
        "LeaseHeld": 409,
        "ProjectPaused": 409,
        "RunNotStopped": 409,
        "SourceError": 502,
        "SourceRefused": 502,
        "StoreLocked": 503,
        "StoreUnavailable": 503,
        "SourceUnavailable": 503,
        "ImageError": 422,
    }

    def tree(kind: type[EmbedPipelineError]) -> Iterator[type[EmbedPipelineError]]:
        yield kind
        for each in kind.__subclasses__():
            yield from tree(each)

    made: dict[Any, Callable[[], EmbedPipelineError]] = {
        ImageError: lambda: ImageError("decode", "truncated", "half of it"),
        RemovalWithheld: lambda: RemovalWithheld("why", 7),
    }
    for kind in tree(EmbedPipelineError):
        if getattr(errors, kind.__name__, None) is not kind:
            continue  # of another module, or of a test
        error = made.get(kind, lambda kind=kind: kind("why"))()
        answer = api_errors.problem(api_errors.explained(error))
        assert answer.status_code == expected.get(kind.__name__, 500), kind
        assert ("retry-after" in answer.headers) == kind.retryable
        assert json.loads(bytes(answer.body))["error"]["retryable"] == kind.retryable


@pytest.mark.parametrize(
    "content",
    [b"{", b"\xff\xfe", b"[1]", b"7", b"null", b'{"state": 3}', b'{"project_id": "\\ud800"}', b""],
)
def test_a_body_that_is_no_request_is_told_so(caller: TestClient, content: bytes) -> None:
    """With a status of the caller's side, whatever it is."""
    kind = {"Content-Type": "application/json"}
    for route in ("/search", "/diverse", "/embeddings", "/task_status", "/v1/search"):
        answer = caller.post(route, content=content, headers=kind)
        assert kind_of(answer)[0] in (400, 422), (route, answer.text)


def test_figures_are_counted_by_route_and_by_project(caller: TestClient) -> None:
    """Requests and their time; images indexed, behind and embedded. Never by an address that was tried."""
    caller.post("/search", json=SEARCH)
    caller.post("/search", json={})
    caller.request("NOWHERE", "/nowhere/at/all")
    text = caller.get("/metrics").text
    for line in (
        'embed_pipeline_requests_total{method="POST",route="/search",status="200"} 1.0',
        'embed_pipeline_requests_total{method="POST",route="/search",status="422"} 1.0',
        'embed_pipeline_request_seconds_count{route="/search"} 2.0',
        'embed_pipeline_images_indexed{project="cats"} 3.0',
        'embed_pipeline_images_behind{project="cats"} 0.0',
        'embed_pipeline_last_run_images_embedded{project="cats"} 3.0',
    ):
        assert line in text
    assert "nowhere" not in text.lower()


# With a Supervisely instance: callers by their own tokens.


@pytest.fixture
def instance_app(platform: Platform) -> tuple[FastAPI, int]:
    """The service over a project of the instance, whose users have tokens of their own."""
    project, _, _ = platform.make_project(3)
    platform.instance.tokens = ("token", "theirs", "stranger's")
    platform.instance.users |= {"theirs": 8, "stranger's": 9}
    platform.instance.hidden["stranger's"] = {project}
    deployment = platform.deployment
    sync(ProjectRun(deployment, str(project), "run"))
    app, _ = with_recorded_runs(deployment)
    return app, project


def test_a_callers_token_is_checked_before_it_reads_a_project(
    platform: Platform, instance_app: tuple[FastAPI, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a header or in the body; what the instance said counts for a minute, not longer."""
    app, project = instance_app
    asked = {"project_id": project, "prompt": "a cat"}
    with client_of(app) as client:

        def ask(token: str, route: str = "/search") -> int:
            in_body = {"state": asked, "context": {"apiToken": token}}
            both = (
                client.post(route, json=in_body).status_code,
                client.post(route, json=asked | {"api_token": token}).status_code,
                client.post(
                    route, json=asked, headers={"X-Supervisely-Token": token.encode()}
                ).status_code,
            )
            assert len(set(both)) == 1
            return both[0]

        assert ask("theirs") == 200
        assert platform.stand_in.requests["users.me"] == 1
        for route in ("/search", "/diverse", "/embeddings", "/cancel_embeddings", "/task_status"):
            sized = {
                "project_id": project,
                "prompt": "x",
                "sample_size": 1,
                "api_token": "stranger's",
            }
            assert kind_of(client.post(route, json=sized)) == (403, "forbidden")
        for wrong in ("guessed", "é", "a\tb"):
            assert ask(wrong) == 401
        listed = {"X-Supervisely-Token": "stranger's"}
        assert client.get("/v1/projects", headers=listed).json() == []
        elsewhere = client.post("/search", json=asked | {"project_id": 1, "api_token": "theirs"})
        assert kind_of(elsewhere) == (404, "project_not_found")

        platform.instance.tokens = ("token",)
        assert ask("theirs") == 200
        monkeypatch.setattr(supervisely_callers.time, "monotonic", lambda: time.time() + 1e9)
        assert ask("theirs") == 401


def test_a_token_stands_for_the_key_and_a_wrong_key_for_nobody(
    platform: Platform, instance_app: tuple[FastAPI, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The key alone lets in, too."""
    _, project = instance_app
    monkeypatch.setenv("EMBED_API_KEY", KEY)
    app, _ = with_recorded_runs(platform.deployment)
    asked = {"project_id": project, "prompt": "a cat"}
    shown: list[dict[str, str]] = [
        {},
        {"X-Supervisely-Token": "theirs"},
        {"X-API-Key": KEY},
        {"X-API-Key": "theirs"},
        {"X-API-Key": "wrong", "X-Supervisely-Token": "theirs"},
    ]
    with client_of(app) as client:
        told = [client.post("/search", json=asked, headers=each).status_code for each in shown]
    assert told == [401, 200, 200, 401, 401]


def test_an_instance_that_is_away_is_a_503_for_who_comes_by_token(
    platform: Platform, instance_app: tuple[FastAPI, int]
) -> None:
    """Who comes otherwise is answered from what is indexed."""
    app, project = instance_app
    platform.stand_in.fail("users.me", status(503), times=None)
    platform.stand_in.fail("projects.info", status(503), times=None)
    asked = {"project_id": project, "prompt": "a cat"}
    with client_of(app) as client:
        answer = client.post("/search", json=asked | {"api_token": "theirs"})
        assert kind_of(answer) == (503, "source_unavailable")
        assert answer.headers["Retry-After"]
        assert client.post("/search", json=asked).status_code == 200


def test_secrets_are_in_no_answer_and_no_log(
    platform: Platform, instance_app: tuple[FastAPI, int], caplog: pytest.LogCaptureFixture
) -> None:
    """Neither where they are valid nor where the instance repeats them in an error."""
    app, project = instance_app
    caplog.set_level(logging.DEBUG)
    asked = {"project_id": project, "prompt": "a cat", "api_token": "theirs"}
    repeated = status(400, body={"error": "no: theirs, token"})
    answers = []
    with client_of(app) as client:
        answers.append(client.post("/search", json=asked))
        platform.stand_in.fail("entities-collections.add", repeated)
        answers.append(client.post("/search", json=asked))
        platform.stand_in.fail("users.me", repeated)
        answers.append(client.post("/search", json=asked | {"api_token": "stranger's"}))
    assert [answer.status_code for answer in answers] == [200, 200, 401]
    said = "".join(answer.text for answer in answers)
    logged = [record.getMessage() for record in caplog.records if record.name.startswith("embed")]
    assert logged
    for secret in ("theirs", "stranger's"):
        assert secret not in said
        assert secret not in "".join(logged)
