"""The services' routes about work on a project: how far it is, and its end."""

from collections.abc import Iterator
from dataclasses import replace
from http import HTTPStatus
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel
from starlette.datastructures import State

from embed_pipeline.api.envelope import (
    OfAnyProject,
    OfProject,
    TaskRequest,
    refuse_other_servers,
)
from embed_pipeline.api.errors import ApiError
from embed_pipeline.api.security import Caller, readable, require_caller, require_project
from embed_pipeline.deployment import Deployment
from embed_pipeline.projects import project_status
from embed_pipeline.run_progress import progress_of
from embed_pipeline.stopping import Stopped

router = APIRouter(tags=["services"], dependencies=[Depends(refuse_other_servers)])
Asking = Annotated[Caller, Depends(require_caller)]

Status = Literal["no_task", "running", "completed", "failed", "cancelled"]
_ENDED: dict[str, Status] = {"success": "completed", "failed": "failed", "canceled": "cancelled"}
_SAID: dict[Status, str] = {
    "no_task": "No embeddings task found.",
    "running": "Embeddings task is running.",
    "completed": "Embeddings task is completed.",
    "failed": "Embeddings task has failed.",
    "cancelled": "Embeddings task has been cancelled.",
}


class TaskStatus(BaseModel):
    """status: of the project's newest run; a queued one is `running`, too."""

    message: str
    status: Status
    is_running: bool


class Progress(BaseModel):
    """How far a run is. total, current: images. step: scan, diff, embed, apply."""

    project_id: str
    total: int | None
    current: int
    status: Literal["processing"]
    step: str
    per_second: float | None
    seconds_left: float | None


class ProjectProgress(BaseModel):
    """progress: None where no run works on the project now."""

    message: str | None = None
    progress: Progress | None


class Background(BaseModel):
    """Whether a run of the project is queued or works."""

    status: Literal["in_progress", "not_found"]
    message: str


class AllProgress(BaseModel):
    """progress: of each project that a run works on now, by its name or number."""

    message: str
    progress: dict[str, Progress]


@router.post("/cancel_embeddings")
def cancel_embeddings(request: Request, caller: Asking, asked: OfProject) -> Stopped:
    """Stop the project's queued and working runs; returns when they have ended."""
    require_project(caller, asked.project_id)
    stopped = _stopped(request.app.state, asked.project_id)
    said = _SAID["cancelled"] if stopped.is_current_task else "No running embeddings task found."
    return replace(stopped, message=said)


@router.post("/stop-embeddings-update/{project_id}")
def stop_embeddings_update(request: Request, caller: Asking, project_id: str) -> Stopped:
    """As `/cancel_embeddings`, in the words of the auto-updater."""
    require_project(caller, project_id)
    return _stopped(request.app.state, project_id)


@router.post("/task_status")
def task_status(request: Request, caller: Asking, asked: OfProject) -> TaskStatus:
    """How the project's newest run is."""
    require_project(caller, asked.project_id)
    status = _status(request.app.state, asked.project_id)
    return TaskStatus(message=_SAID[status], status=status, is_running=status == "running")


@router.post("/processing_progress")
def processing_progress(
    request: Request, caller: Asking, asked: OfAnyProject
) -> ProjectProgress | AllProgress:
    """How far the run is that works on the project now; without a project, those of all."""
    deployment: Deployment = request.app.state.deployment
    if asked.project_id is None:
        working = {each.project_id: each for each in _working(deployment, caller)}
        said = "Project ID is not specified. Returning progress for all projects."
        return AllProgress(message=said, progress=working)
    require_project(caller, asked.project_id)
    if found := _progress(deployment, asked.project_id):
        return ProjectProgress(progress=found)
    said = f"No processing progress found for project {asked.project_id}"
    return ProjectProgress(message=said, progress=None)


@router.post("/embeddings_up_to_date")
def embeddings_up_to_date(request: Request, caller: Asking, asked: OfProject) -> bool:
    """Whether the collection was proved equal to the project as it is now."""
    require_project(caller, asked.project_id)
    return project_status(request.app.state.deployment, asked.project_id).status == "in sync"


@router.post("/check_background_task_status", deprecated=True)
def check_background_task_status(
    request: Request, caller: Asking, asked: TaskRequest
) -> Background:
    """As `/task_status`, in the generator's older form."""
    if asked.task_id is None:
        raise ApiError(HTTPStatus.BAD_REQUEST, "invalid_request", "Task ID is required")
    require_project(caller, asked.task_id)
    if request.app.state.runs.is_working(asked.task_id):
        return Background(status="in_progress", message=f"Task {asked.task_id} is still running")
    return Background(status="not_found", message=f"No task {asked.task_id} is running")


def _stopped(state: State, project: str) -> Stopped:
    """Raises ApiError where the source still shows the project as worked on."""
    stopped: Stopped = state.runs.stop(project)
    if not stopped.success:
        raise ApiError(HTTPStatus.BAD_GATEWAY, "source_not_told", stopped.message)
    return stopped


def _status(state: State, project: str) -> Status:
    if state.runs.is_working(project):
        return "running"
    last = state.runs.last(project)
    return _ENDED[last.status] if last else "no_task"


def _working(deployment: Deployment, caller: Caller) -> Iterator[Progress]:
    """Of the projects that the caller may read."""
    prefix = deployment.project_id("")
    known = [id_ for id_ in deployment.home.project_ids() if id_.startswith(prefix)]
    for project in sorted(readable(caller, [id_.removeprefix(prefix) for id_ in known])):
        if found := _progress(deployment, project):
            yield found


def _progress(deployment: Deployment, project: str) -> Progress | None:
    at = progress_of(deployment.project_home(project))
    if at is None:
        return None
    return Progress(
        project_id=project,
        total=at.total,
        current=at.done,
        status="processing",
        step=at.step,
        per_second=at.per_second,
        seconds_left=at.seconds_left,
    )
