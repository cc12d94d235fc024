"""The HTTP service: its routes, behind one gate, with one shape of error."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus

from fastapi import Depends, FastAPI

from embed_pipeline.api import embeddings, health, metrics, page, services, tasks, v1
from embed_pipeline.api.browsers import SameOrigin
from embed_pipeline.api.dagster_runs import Runs
from embed_pipeline.api.errors import documented, install_error_answers
from embed_pipeline.api.limits import BodyLimit, TimeLimit
from embed_pipeline.api.metrics import Counted, Metrics
from embed_pipeline.api.security import Gate, require_caller
from embed_pipeline.deployment import Deployment
from embed_pipeline.search.searcher import Searcher

_MAY_ANSWER = documented(
    HTTPStatus.BAD_REQUEST,
    HTTPStatus.UNAUTHORIZED,
    HTTPStatus.FORBIDDEN,
    HTTPStatus.NOT_FOUND,
    HTTPStatus.CONFLICT,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    HTTPStatus.UNPROCESSABLE_ENTITY,
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.SERVICE_UNAVAILABLE,
)
_DESCRIPTION = (
    "Search and diverse selection over projects of images, and their embeddings. "
    "What is under *services* takes its fields as plain JSON, or as Supervisely sends them: "
    '`{"state": {…}, "context": {"apiToken": …}}`.'
)


def create_app(deployment: Deployment) -> FastAPI:
    """The service over a deployment; `app.state` has that, its searcher and what routes share.

    Without EMBED_API_KEY it answers only requests for localhost or a loopback address.
    """
    settings = deployment.settings
    app = FastAPI(
        title="embed-pipeline",
        description=_DESCRIPTION,
        redoc_url=None,
        lifespan=_life,
    )
    app.state.deployment = deployment
    app.state.searcher = Searcher(deployment)
    app.state.runs = Runs(deployment)
    app.state.gate = Gate(deployment)
    app.state.probe = health.Probe(deployment)
    app.state.metrics = Metrics(deployment)
    install_error_answers(app)
    # The last one added is the first to see a request.
    app.add_middleware(BodyLimit, most_bytes=app.state.gate.most_bytes)
    app.add_middleware(TimeLimit, seconds=settings.api_timeout_seconds)
    app.add_middleware(SameOrigin, only_loopback=settings.api_key is None)
    app.add_middleware(Counted, metrics=app.state.metrics)
    for guarded in (v1, services, tasks, embeddings, health, metrics):
        app.include_router(
            guarded.router, dependencies=[Depends(require_caller)], responses=_MAY_ANSWER
        )
    for router in (health.open_router, health.known_router, page.router):
        app.include_router(router)
    return app


@asynccontextmanager
async def _life(app: FastAPI) -> AsyncIterator[None]:
    app.state.probe.start()
    yield
    app.state.probe.stop()
    app.state.gate.close()
    app.state.runs.close()
