"""The HTTP service in tests: a client that calls it in this process, and a server on a real socket."""

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
import uvicorn
from fastapi import FastAPI

from embed_pipeline.api.app import create_app
from embed_pipeline.changes import LastRun
from embed_pipeline.deployment import Deployment
from embed_pipeline.errors import LeaseHeld
from embed_pipeline.models import clip
from embed_pipeline.project_run import ProjectRun
from embed_pipeline.settings import load_settings
from embed_pipeline.stopping import Stopped
from embed_pipeline.sync import sync
from embed_pipeline_tests.conftest import load_once
from embed_pipeline_tests.processes import wait_until

with warnings.catch_warnings():
    # It uses a name that anyio has moved.
    warnings.simplefilter("ignore", DeprecationWarning)
    from starlette.testclient import TestClient

__all__ = ["RecordedRuns", "TestClient", "client_of", "served", "with_recorded_runs"]


class RecordedRuns:
    """In the place of Dagster's runs: remembers what it was told to start."""

    def __init__(self) -> None:
        self.started: list[tuple[str, bool]] = []
        self.working: set[str] = set()
        self.ended: dict[str, str] = {}

    def start(self, project: str, *, force: bool) -> str:
        """Note it."""
        if project in self.working:
            raise LeaseHeld(f"[Project: {project}] Embeddings creation is already in progress.")
        self.started.append((project, force))
        return f"run {len(self.started)}"

    def stop(self, project: str) -> Stopped:
        """Nothing works on it any more."""
        was_working = project in self.working
        self.working.discard(project)
        return Stopped(project, is_current_task=was_working, success=True, message="as told")

    def is_working(self, project: str) -> bool:
        """As the test says."""
        return project in self.working

    def last(self, project: str) -> LastRun | None:
        """As the test says."""
        at = datetime.now(UTC)
        status = self.ended.get(project)
        return LastRun(status, None, at, at, 0) if status else None  # type: ignore[arg-type]

    def close(self) -> None:
        """Nothing is held."""


def with_recorded_runs(deployment: Deployment) -> tuple[FastAPI, RecordedRuns]:
    """The service, with nothing behind it that starts processes."""
    app = create_app(deployment)
    app.state.runs = RecordedRuns()
    return app, app.state.runs


@contextmanager
def synced(top: Path, fill: Callable[[Path], object], project: str) -> Iterator[Deployment]:
    """A deployment of the demo model over a root that `fill` makes, one project of it synced."""
    fill(top / "root")
    settings = {
        "EMBED_SOURCE": f"folder:{top / 'root'}",
        "EMBED_HOME": str(top / "home"),
        "EMBED_MODEL": "demo",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        patch.setattr(clip, "load_encoder", load_once)
        deployment = Deployment(load_settings())
        sync(ProjectRun(deployment, project, "run"))
        yield deployment
        deployment.close()


def with_settings(deployment: Deployment, **changed: object) -> Deployment:
    """The same deployment, with some settings changed."""
    return replace(deployment, settings=deployment.settings.model_copy(update=changed))


@contextmanager
def client_of(app: FastAPI, **headers: str) -> Iterator[TestClient]:
    """A client on this machine, as the service sees it; the service is started and stopped."""
    with TestClient(app, base_url="http://localhost", headers=headers) as client:
        yield client


@contextmanager
def served(app: FastAPI) -> Iterator[str]:
    """The service's address on a real socket."""
    config = uvicorn.Config(app, port=0, log_config=None, timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_until(lambda: server.started, 20, "the service")
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(20)
