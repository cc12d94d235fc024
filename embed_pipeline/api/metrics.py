"""Figures for Prometheus: what is asked of the service, and how its projects are."""

import time
from collections.abc import Iterator
from threading import Lock

import polars as pl
from fastapi import APIRouter, Request, Response
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from embed_pipeline.collection_state import CollectionState
from embed_pipeline.deployment import Deployment
from embed_pipeline.errors import TableError
from embed_pipeline.failures import FAILURES
from embed_pipeline.home import ProjectHome
from embed_pipeline.manifest import MANIFEST

# Tables change when a run ends.
LOOK_SECONDS = 30.0
_BUCKETS = (0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48)
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_OTHER = "other"
_NO_ROUTE = "none"

router = APIRouter(tags=["health"])


class Metrics:
    """The figures of one app, in a registry of its own."""

    def __init__(self, deployment: Deployment) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "embed_pipeline_requests",
            "Requests that were answered",
            ("route", "method", "status"),
            registry=self.registry,
        )
        self.seconds = Histogram(
            "embed_pipeline_request_seconds",
            "Time until a request was answered",
            ("route",),
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self.registry.register(ProjectFigures(deployment))


class Counted:
    """Counts requests by their route, and measures how long they took."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 0
        began = time.perf_counter()

        async def noted(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self._app(scope, receive, noted)
        finally:
            # Never what was sent itself: there would be a figure for everything that anybody tries.
            route = getattr(scope.get("route"), "path", _NO_ROUTE)
            method = scope["method"] if scope["method"] in _METHODS else _OTHER
            self._metrics.requests.labels(route, method, status).inc()
            self._metrics.seconds.labels(route).observe(time.perf_counter() - began)


class ProjectFigures(Collector):
    """Figures of each project that was ever synced here, from its tables."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        self._lock = Lock()
        self._looked_at = -LOOK_SECONDS
        self._known: list[Metric] = []

    def describe(self) -> list[Metric]:
        """None beforehand: reading tables can wait until somebody asks."""
        return []

    def collect(self) -> Iterator[Metric]:
        """The figures, LOOK_SECONDS old at most."""
        with self._lock:
            if time.monotonic() - self._looked_at >= LOOK_SECONDS:
                self._known = list(self._look())
                self._looked_at = time.monotonic()
            yield from self._known

    def _look(self) -> Iterator[Metric]:
        figures = {name: _gauge(name, text) for name, text in _FIGURES.items()}
        failures = _gauge("failures", "Contents that could not be embedded", "stage")
        prefix = self._deployment.project_id("")
        for project_id in self._deployment.home.project_ids():
            if not project_id.startswith(prefix):
                continue
            project = project_id.removeprefix(prefix)
            home = self._deployment.project_home(project)
            for name, value in _of_tables(home).items():
                figures[name].add_metric([project], value)
            for stage, count in _failures(home):
                failures.add_metric([project, stage], count)
        yield from figures.values()
        yield failures


_FIGURES = {
    "images": "Images in the source, as it was listed last",
    "images_indexed": "Images that can be searched, as of the last sync",
    "images_behind": "Images that are not in the collection as the source has them, failed ones left out",
    "images_failed": "Images that cannot be embedded",
    "last_run_images_embedded": "Images that the last run embedded",
    "last_run_timestamp_seconds": "When the last run ended",
}


def _of_tables(home: ProjectHome) -> dict[str, float]:
    listed = _listed(home)
    state = CollectionState.read(home.state)
    if state is None:
        return {"images": listed, "images_behind": listed}
    unlike = state.missing + state.stale + state.extra
    return {
        "images": listed,
        "images_indexed": state.indexed,
        "images_behind": max(unlike, listed - state.indexed - state.failed),
        "images_failed": state.failed,
        "last_run_images_embedded": state.embed,
        "last_run_timestamp_seconds": state.finished_at.timestamp(),
    }


def _listed(home: ProjectHome) -> int:
    """Images of the manifest, which a run that works now may just have written."""
    try:
        MANIFEST.check(home.manifest)
    except TableError:
        return 0  # none yet, or damaged: who syncs the project is told
    return int(pl.scan_parquet(home.manifest).select(pl.len()).collect().item())


def _failures(home: ProjectHome) -> list[tuple[str, int]]:
    try:
        table = FAILURES.read_or_empty(home.failures)
    except TableError:
        return []  # who syncs the project is told
    return list(table.group_by("stage").agg(pl.len()).iter_rows())


def _gauge(name: str, text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"embed_pipeline_{name}", text, labels=("project", *labels))


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
def metrics(request: Request) -> Response:
    """The figures, in Prometheus' text form."""
    text = generate_latest(request.app.state.metrics.registry)
    return Response(text, media_type=CONTENT_TYPE_LATEST)
