"""Starting what embeds: a Dagster run for each project that is asked for."""

from collections.abc import Sequence
from http import HTTPStatus

import polars as pl
from pydantic import BaseModel
from starlette.datastructures import State

from embed_pipeline.api.envelope import EmbeddingsRequest
from embed_pipeline.api.errors import ApiError
from embed_pipeline.api.security import Caller, require_offered
from embed_pipeline.deployment import Deployment
from embed_pipeline.errors import LeaseHeld, ProjectPaused, SourceRefused
from embed_pipeline.manifest import MANIFEST
from embed_pipeline.pause import is_paused
from embed_pipeline.projects import project_status

MOST_WITHOUT_PROJECT = 10_000
_NO_VECTORS = "return_vectors: there are none before the run ends, and then search uses them"


class StartedRun(BaseModel):
    """A project's run. run_id: None where there was nothing to do."""

    project_id: str
    run_id: str | None
    message: str


class Started(BaseModel):
    """runs: of each project that was asked for. details: what else the caller should know."""

    message: str
    runs: list[StartedRun]
    details: str | None = None


def begin(state: State, caller: Caller, asked: EmbeddingsRequest) -> Started:
    """Start a run of the project, or of those that hold the images.

    Raises LeaseHeld where all of them are worked on already, ProjectPaused where one is paused.
    """
    projects = _projects(state.deployment, caller, asked)
    for project in projects:
        require_offered(caller, project, working=True)
        if is_paused(state.deployment.project_home(project)):
            raise ProjectPaused(
                f"{project}: paused; to let it go on: embed-pipeline resume {project}"
            )
    runs, held = [], []
    for project in projects:
        try:
            runs.append(_start(state, project, force=bool(asked.force)))
        except LeaseHeld as error:
            held.append(error)
    if held and not runs:
        raise held[0]
    told = " ".join([run.message for run in runs] + [str(error) for error in held])
    return Started(message=told, runs=runs, details=_NO_VECTORS if asked.return_vectors else None)


def _start(state: State, project: str, *, force: bool) -> StartedRun:
    if not force and _is_current(state.deployment, project):
        said = f"[Project: {project}] Nothing to update. Skipping."
        return StartedRun(project_id=project, run_id=None, message=said)
    run_id = state.runs.start(project, force=force)
    said = f"[Project: {project}] Embeddings creation started."
    return StartedRun(project_id=project, run_id=run_id, message=said)


def _is_current(deployment: Deployment, project: str) -> bool:
    """Whether a run would find nothing to do; a failure may have passed by now."""
    status = project_status(deployment, project)
    return status.status == "in sync" and not status.failed


def _projects(deployment: Deployment, caller: Caller, asked: EmbeddingsRequest) -> list[str]:
    if asked.project_id is not None:
        return [asked.project_id]
    if not asked.image_ids:
        message = "project_id: say what to embed: project_id, image_ids, or a text"
        raise ApiError(HTTPStatus.UNPROCESSABLE_ENTITY, "invalid_request", message)
    if len(asked.image_ids) > MOST_WITHOUT_PROJECT:
        message = f"image_ids: {MOST_WITHOUT_PROJECT:,} at most, where no project_id is given"
        raise ApiError(HTTPStatus.UNPROCESSABLE_ENTITY, "invalid_request", message)
    if caller.gate.callers:
        found = _at_instance(caller, asked.image_ids)
    else:
        found = _in_manifests(deployment, asked.image_ids)
    if not found:
        message = "No images found for the provided IDs."
        raise ApiError(HTTPStatus.NOT_FOUND, "images_not_found", message)
    return found


def _at_instance(caller: Caller, image_ids: Sequence[str]) -> list[str]:
    callers = caller.gate.callers
    if strange := [id_ for id_ in image_ids if not id_.isdecimal()]:
        message = f"image_ids: {strange[0][:100]}: Supervisely's images have numbers"
        raise ApiError(HTTPStatus.UNPROCESSABLE_ENTITY, "invalid_request", message)
    try:
        return list(callers.projects_of(list(map(int, image_ids)), caller.token) if callers else ())
    except SourceRefused as error:
        message = "image_ids: the Supervisely instance does not let you read one of them"
        raise ApiError(HTTPStatus.FORBIDDEN, "forbidden", message) from error


def _in_manifests(deployment: Deployment, image_ids: Sequence[str]) -> list[str]:
    """Of projects that were scanned: elsewhere nobody knows ids yet."""
    found = []
    for project in deployment.source.projects():
        path = deployment.project_home(project).manifest
        if path.exists():
            MANIFEST.check(path)
            rows = pl.scan_parquet(path).filter(pl.col("image_id").is_in(list(image_ids)))
            if rows.select(pl.len()).collect().item():
                found.append(project)
    return found
