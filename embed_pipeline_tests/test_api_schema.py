"""Whatever the OpenAPI document allows or does not, no request makes the service fail."""

import random
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode

from embed_pipeline.sample import PROJECT, make_sample
from embed_pipeline_tests.web import synced, with_recorded_runs, with_settings

HERE = {"Host": "localhost"}
# What answers with 503 although nothing failed.
UNWELL = ["/health", "/health/ready"]
thorough = settings(
    max_examples=10,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FastAPI]:
    """The service over the sample project."""
    fill = partial(make_sample, images=20)
    with synced(tmp_path_factory.mktemp("schema"), fill, PROJECT) as deployment:
        app, _ = with_recorded_runs(with_settings(deployment, api_requests_per_minute=10**6))
        yield app


def aimed(value: Any, lots: random.Random) -> Any:
    """Most requests name the project that there is: what is behind it is to be tried, too."""
    if not isinstance(value, dict):
        return value
    return {
        key: PROJECT if key in ("project", "project_id") and lots.random() < 0.8 else aimed(v, lots)
        for key, v in value.items()
    }


def test_no_request_makes_it_fail(service: FastAPI) -> None:
    """Neither a valid one nor one that is none: on every route every answer is below 500."""
    schema = schemathesis.openapi.from_asgi("/openapi.json", service, headers=HERE)
    asked: Counter[str] = Counter()
    failed: list[str] = []

    def ask(case: schemathesis.Case) -> None:
        case.body = aimed(case.body, random.Random(repr(case.body)))
        case.query = aimed(case.query, random.Random(repr(case.query)))
        answer = case.call(headers=HERE)
        asked[case.path] += 1
        if answer.status_code >= 500:
            failed.append(f"{case.method} {case.path} {case.query} {case.body!r}: {answer.text}")

    for found in schema.exclude(path=UNWELL).get_all_operations():
        operation = found.ok()
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            cases = operation.as_strategy(generation_mode=mode)
            with suppress(Unsatisfiable):  # a route that takes nothing takes nothing wrong
                thorough(given(cases)(ask))()
    assert failed == []
    assert len(asked) > 15


def test_the_document_says_what_each_route_answers(service: FastAPI) -> None:
    """Its success and its errors, each with a model; and which of them ask for a key."""
    document = service.openapi()
    open_routes = {"/health/live", "/health/ready"}
    for path, methods in document["paths"].items():
        for operation in methods.values():
            assert operation["responses"]["200"]["content"], path
            assert operation["description"], path
            if path not in open_routes:
                assert {"401", "429", "503"} <= operation["responses"].keys(), path
                assert operation["security"], path
    problems = {
        answer["$ref"] for answer in _schemas(document) if "Problem" in answer.get("$ref", "")
    }
    assert problems == {"#/components/schemas/Problem"}


def _schemas(document: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        answer["content"]["application/json"]["schema"]
        for methods in document["paths"].values()
        for operation in methods.values()
        for status, answer in operation["responses"].items()
        if status.startswith("4")
    ]
