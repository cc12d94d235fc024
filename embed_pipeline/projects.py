"""What the source offers, and how far each project is behind."""

from dataclasses import dataclass
from typing import Literal

from embed_pipeline.collection_state import CollectionState
from embed_pipeline.deployment import Deployment
from embed_pipeline.lease import is_leased

Status = Literal["new", "in sync", "changed", "differs", "syncing"]


@dataclass(frozen=True)
class ProjectStatus:
    """One project. images: in the source now. indexed: searchable now. behind: images to go at least.

    status: `new` was never synced; `changed` since its last sync; `differs` where the last audit did
    not pass; `syncing` where a run works on it now.
    """

    project_id: str
    name: str
    images: int
    indexed: int
    failed: int
    behind: int
    status: Status


def project_statuses(deployment: Deployment) -> list[ProjectStatus]:
    """Every project of the source, sorted by name."""
    return [_status(deployment, project) for project in deployment.source.projects()]


def _status(deployment: Deployment, project: str) -> ProjectStatus:
    images, revision = deployment.source.revision(project)
    home = deployment.project_home(project)
    state = CollectionState.read(home.state)
    collection = deployment.collection(project, deployment.serving_card(project))
    indexed = collection.count() if collection.exists() else 0
    failed = state.failed if state else 0
    return ProjectStatus(
        project_id=project,
        name=project,
        images=images,
        indexed=indexed,
        failed=failed,
        behind=max(0, images - indexed - failed),
        status="syncing" if is_leased(home) else _compared(state, revision),
    )


def _compared(state: CollectionState | None, revision: str) -> Status:
    if state is None:
        return "new"
    if not state.equal:
        return "differs"
    return "in sync" if state.revision == revision else "changed"
