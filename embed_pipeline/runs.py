"""Dagster runs that this process executes itself, recorded where the UI shows them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal
from uuid import uuid4

import dagster as dg
from dagster._core.instance import InstanceRef
from dagster._core.storage.noop_compute_log_manager import NoOpComputeLogManager
from sqlalchemy.exc import DatabaseError  # what Dagster's storage lets through

from embed_pipeline.collection_state import CollectionState
from embed_pipeline.dagster_home import prepare_dagster_home
from embed_pipeline.definitions import defs
from embed_pipeline.defs.jobs import sync_project
from embed_pipeline.defs.partitions import projects
from embed_pipeline.defs.resources import Launcher, launcher
from embed_pipeline.defs.run_launcher import release_run_lock
from embed_pipeline.deployment import Deployment
from embed_pipeline.errors import NotWritable
from embed_pipeline.progress import Progress, silent
from embed_pipeline.settings import Settings
from embed_pipeline.sources.names import partition_key

Status = Literal["success", "failed", "canceled"]
COUNTS = ("embed", "reuse", "relabel", "remove", "unchanged", "failed")
# The events are in the instance, where the UI shows them; a terminal gets a bar and a line.
_NO_CAPTURE = NoOpComputeLogManager
_QUIET = {"console": {"config": {"log_level": "CRITICAL"}}}


@dataclass(frozen=True)
class SyncOutcome:
    """How a project's run ended. Counts as in CollectionState; None where it did not get there."""

    project_id: str
    run_id: str
    status: Status
    embed: int | None
    reuse: int | None
    relabel: int | None
    remove: int | None
    unchanged: int | None
    failed: int | None
    error: str | None = None


@contextmanager
def dagster_instance(settings: Settings) -> Iterator[dg.DagsterInstance]:
    """The instance of DAGSTER_HOME, made ready where it is new.

    What runs of this process write to stderr goes to the terminal itself: Dagster would catch it in
    a file, and start four processes to copy it back.
    """
    home = prepare_dagster_home(settings)
    uncaptured = {"compute_logs": {"module": _NO_CAPTURE.__module__, "class": _NO_CAPTURE.__name__}}
    ref = InstanceRef.from_dir(str(home), overrides=uncaptured)
    try:
        with dg.DagsterInstance.from_ref(ref) as instance:
            yield instance
    except DatabaseError as error:
        raise NotWritable(
            f"{home}: Dagster's storage fails ({error.orig}); check the free space, owner and mode "
            "there (without it only the history of runs would be lost)"
        ) from error


def register_projects(deployment: Deployment, instance: dg.DagsterInstance) -> None:
    """Make a partition for every project of the source."""
    keys = [partition_key(project) for project in deployment.source.projects()]
    instance.add_dynamic_partitions(str(projects.name), keys)


def run_sync(
    deployment: Deployment,
    instance: dg.DagsterInstance,
    project: str,
    confirm_removals: int | None = None,
    progress: Progress = silent,
    *,
    force: bool = False,
) -> SyncOutcome:
    """Run `sync_project` for one project here. Errors of the project are told in the outcome.

    force: as in `sync.diff`. Raises KeyboardInterrupt where this process was interrupted; what was
    embedded is kept.
    """
    key = partition_key(project)
    instance.add_dynamic_partitions(str(projects.name), [key])
    run_id = str(uuid4())
    token = launcher.set(Launcher(deployment, progress))
    try:
        defs.resolve_job_def(sync_project.name).execute_in_process(
            instance=instance,
            partition_key=key,
            run_id=run_id,
            run_config={
                "loggers": _QUIET,
                "ops": {
                    "image_diff": {"config": {"force": force}},
                    "collection_state": {"config": {"confirm_removals": confirm_removals}},
                },
            },
        )
    except dg.Failure as failure:
        return _outcome(deployment, project, run_id, "failed", failure.description)
    except dg.DagsterError:
        if (state := _own_state(deployment, project, run_id)) and not state.equal:
            return _outcome(deployment, project, run_id, "failed", _audit_error(project, state))
        raise
    except dg.DagsterExecutionInterruptedError:
        run = instance.get_run_by_id(run_id)
        if run and run.status == dg.DagsterRunStatus.CANCELED:
            return _outcome(deployment, project, run_id, "canceled", _stopped(project))
        if run:
            instance.report_run_canceled(run, "Interrupted on the command line.")
        raise KeyboardInterrupt from None
    finally:
        launcher.reset(token)
        release_run_lock(run_id)
    return _outcome(deployment, project, run_id, "success")


def _outcome(
    deployment: Deployment, project: str, run_id: str, status: Status, error: str | None = None
) -> SyncOutcome:
    state = _own_state(deployment, project, run_id)
    return SyncOutcome(
        project_id=project,
        run_id=run_id,
        status=status,
        error=error,
        **{name: getattr(state, name, None) for name in COUNTS},
    )


def _own_state(deployment: Deployment, project: str, run_id: str) -> CollectionState | None:
    state = CollectionState.read(deployment.project_home(project).state)
    return state if state and state.run_id == run_id else None


def _audit_error(project: str, state: CollectionState) -> str:
    return (
        f"{project}: the collection does not equal the source: {state.differences}; sync again, and if "
        f"that does not mend it: embed-pipeline verify {project}"
    )


def _stopped(project: str) -> str:
    return (
        f"{project}: stopped in the Dagster UI; what was embedded is kept, the next sync goes on: "
        f"embed-pipeline sync {project}"
    )
