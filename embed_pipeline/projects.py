"""What the source offers, and how far each project is behind."""

from dataclasses import dataclass
from typing import Literal

from embed_pipeline.collection_state import CollectionState
from embed_pipeline.deployment import Deployment
from embed_pipeline.lease import lease_holder
from embed_pipeline.pause import is_paused
from embed_pipeline.project_run import ProjectRun
from embed_pipeline.run_progress import RunProgress, progress_of

Status = Literal["new", "in sync", "changed", "differs", "syncing", "paused", "withheld"]


@dataclass(frozen=True)
class ProjectStatus:
    """One project. images: in the source now. indexed: searchable now. behind: images to go at least.

    status: `new` was never synced; `changed` since its last sync, or to be brought over to another
    model; `differs` where the last audit did not pass; `syncing` where a run works on it now, with
    its progress.
    """

    project_id: str
    name: str
    images: int
    indexed: int
    failed: int
    behind: int
    status: Status
    progress: RunProgress | None


def project_statuses(deployment: Deployment) -> list[ProjectStatus]:
    """Every project of the source, sorted by name."""
    listed = deployment.source.projects()
    return [project_status(deployment, project, as_listed=True) for project in listed]


def project_status(
    deployment: Deployment, project: str, *, as_listed: bool = False
) -> ProjectStatus:
    """One project. as_listed: as the source's last listing has it. Raises ProjectNotFound."""
    images, token = deployment.source.revision(project, as_listed=as_listed)
    home = deployment.project_home(project)
    run = ProjectRun(deployment, project, "status")
    state = CollectionState.read(home.state)
    indexed = run.indexed()
    failed = state.failed if state else 0
    return ProjectStatus(
        project_id=project,
        name=deployment.source.title(project),
        images=images,
        indexed=indexed,
        failed=failed,
        behind=max(0, images - indexed - failed),
        status=_condition(run, state, token),
        progress=progress_of(home),
    )


def progress(deployment: Deployment, project: str) -> RunProgress | None:
    """How far the run is that works on the project now, in this process or another."""
    return progress_of(deployment.project_home(project))


def _condition(run: ProjectRun, state: CollectionState | None, token: str) -> Status:
    if lease_holder(run.home):
        return "syncing"
    if is_paused(run.home):
        return "paused"
    if state is None:
        return "new"
    if not state.equal:
        return "withheld" if state.withheld else "differs"
    target = run.deployment.target_card(run.project).space
    reached = state.revision == token and state.conditions == run.deployment.conditions(target)
    return "in sync" if reached else "changed"
