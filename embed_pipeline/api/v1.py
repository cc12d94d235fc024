"""JSON for the search page and for programs: projects, datasets, search, selection, pictures."""

import time
from collections.abc import Callable
from dataclasses import replace
from http import HTTPStatus
from threading import BoundedSemaphore, Lock
from typing import Annotated

import polars as pl
from fastapi import APIRouter, Depends, Request, Response
from fastapi import Query as Parameter
from pydantic import BaseModel, ConfigDict

from embed_pipeline.api.errors import ApiError
from embed_pipeline.api.security import Caller, readable, require_caller, require_project
from embed_pipeline.api.sendable import sendable
from embed_pipeline.deployment import Deployment
from embed_pipeline.errors import ImageError
from embed_pipeline.manifest import MANIFEST
from embed_pipeline.pictures import thumbnail
from embed_pipeline.projects import ProjectStatus, project_statuses
from embed_pipeline.search.query import Answer, Image, Query
from embed_pipeline.search.searcher import Searcher
from embed_pipeline.search.selection import Selected, Selection

router = APIRouter(prefix="/v1", tags=["search"])

# A status costs a walk of the project and a count in the store.
STATUS_SECONDS = 10.0
PICTURE_SECONDS = 300  # after which a browser asks whether its picture still holds
# Each may take as much memory as EMBED_MAX_IMAGE_PIXELS allows.
_DECODING = BoundedSemaphore(4)

Reader = Annotated[Caller, Depends(require_caller)]
ProjectName = Annotated[str, Parameter(description="a project, by its name or number")]


class Dataset(BaseModel):
    """A dataset. images: those directly in it. name: begins with those that it is in, `outer/inner`."""

    dataset_id: str
    name: str
    images: int


class SearchRequest(BaseModel):
    """What to search for, and where."""

    model_config = ConfigDict(extra="forbid")

    project: str
    query: Query


class SelectionRequest(BaseModel):
    """What to choose, and where."""

    model_config = ConfigDict(extra="forbid")

    project: str
    selection: Selection


class Statuses:
    """The projects' statuses, asked for anew after some seconds. To be shared between threads."""

    def __init__(self, ask: Callable[[], list[ProjectStatus]]) -> None:
        self._ask = ask
        self._lock = Lock()
        self._known: list[ProjectStatus] = []
        self._until = 0.0

    def now(self) -> list[ProjectStatus]:
        """The statuses, STATUS_SECONDS old at most."""
        with self._lock:
            if time.monotonic() >= self._until:
                self._known = self._ask()
                self._until = time.monotonic() + STATUS_SECONDS
            return self._known


@router.get("/projects")
def projects(request: Request, caller: Reader) -> list[ProjectStatus]:
    """Every project that the caller may read: how many images it has, and how many can be searched."""
    state = request.app.state
    if not hasattr(state, "statuses"):
        state.statuses = Statuses(lambda: project_statuses(state.deployment))
    statuses = state.statuses.now()
    offered = readable(caller, [status.project_id for status in statuses])
    return [status for status in statuses if status.project_id in offered]


@router.get("/datasets")
def datasets(request: Request, caller: Reader, project: ProjectName) -> list[Dataset]:
    """The datasets that hold images of the project, sorted by name, as of its last sync; none before that."""
    require_project(caller, project)
    deployment: Deployment = request.app.state.deployment
    manifest = MANIFEST.read_or_empty(deployment.project_home(project).manifest)
    counted = manifest.group_by("dataset_id", "dataset_name").len().sort("dataset_name")
    return [Dataset(dataset_id=id_, name=name, images=n) for id_, name, n in counted.iter_rows()]


@router.post("/search")
def search(request: Request, caller: Reader, asked: SearchRequest) -> Answer:
    """The images that match a query best. `data` of an image: a file's bytes in base64."""
    require_project(caller, asked.project)
    _check_sizes(request.app.state.deployment, asked.query)
    searcher: Searcher = request.app.state.searcher
    answer = searcher.search(asked.project, asked.query)
    return replace(answer, hits=[sendable(hit) for hit in answer.hits])


@router.post("/diverse")
def diverse(request: Request, caller: Reader, asked: SelectionRequest) -> Selected:
    """Images that differ from each other, and how well they cover all others, against a random choice."""
    require_project(caller, asked.project)
    if asked.selection.query:
        _check_sizes(request.app.state.deployment, asked.selection.query)
    searcher: Searcher = request.app.state.searcher
    selected = searcher.diverse(asked.project, asked.selection)
    return replace(selected, images=[sendable(image) for image in selected.images])


@router.get(
    "/picture",
    response_class=Response,
    responses={200: {"content": {"image/jpeg": {}}, "description": "A JPEG, upright"}},
)
def picture(
    request: Request,
    caller: Reader,
    project: ProjectName,
    image_id: str,
    side: Annotated[int, Parameter(ge=64, le=1024, description="longest side, pixels")] = 256,
) -> Response:
    """A small picture of an image, as it was at the project's last sync."""
    require_project(caller, project)
    deployment: Deployment = request.app.state.deployment
    locator, content_hash = _find(deployment, project, image_id)
    etag = f'"{content_hash.hex()[:32]}-{side}"'
    headers = {"ETag": etag, "Cache-Control": f"private, max-age={PICTURE_SECONDS}"}
    if request.headers.get("if-none-match") == etag:
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
    try:
        with _DECODING:
            content = thumbnail(deployment, project, locator, content_hash, side)
    except ImageError as error:
        raise _no_picture(image_id, error) from error
    return Response(content, media_type="image/jpeg", headers=headers)


def _find(deployment: Deployment, project: str, image_id: str) -> tuple[str, bytes]:
    """Locator and content hash of an image: only its row is read, a page asks for many."""
    path = deployment.project_home(project).manifest
    MANIFEST.check(path)
    rows = pl.scan_parquet(path).filter(image_id=image_id).select("locator", "content_hash")
    for locator, content_hash in rows.collect().iter_rows():
        if content_hash is not None:
            return locator, content_hash
    message = f"{image_id}: no such image in the project at its last sync"
    raise ApiError(HTTPStatus.NOT_FOUND, "image_not_found", message)


def _check_sizes(deployment: Deployment, query: Query) -> None:
    most = deployment.settings.max_image_size
    images: list[Image] = [*query.like, *query.unlike]
    if any(image.data is not None and len(image.data) > most for image in images):
        message = f"an image of the query is larger than {most:,} bytes; send a smaller one"
        raise ApiError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "image_too_large", message)


def _no_picture(image_id: str, error: ImageError) -> ApiError:
    gone = error.reason in ("vanished", "changed")
    status = HTTPStatus.NOT_FOUND if gone else HTTPStatus.UNPROCESSABLE_ENTITY
    if error.transient and not gone:
        status = HTTPStatus.SERVICE_UNAVAILABLE
    return ApiError(status, f"picture_{error.reason}", f"{image_id}: {error.detail}")
