"""Stopping a project: its runs in Dagster, and then whatever process still works on it."""

import logging
import os
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import dagster as dg
from dagster._core.storage.tags import PARTITION_NAME_TAG
from sqlalchemy.exc import DatabaseError

from embed_pipeline.defs.run_history import UNFINISHED, note_revision
from embed_pipeline.defs.run_launcher import is_dead
from embed_pipeline.deployment import Deployment
from embed_pipeline.errors import EmbedPipelineError, RunNotStopped
from embed_pipeline.home import ProjectHome
from embed_pipeline.lease import lease_holder
from embed_pipeline.pause import pause, resume
from embed_pipeline.sources.names import partition_key
from embed_pipeline.watching import look_again

logger = logging.getLogger(__name__)

# A run commits what it has encoded when it is told to stop: a forward pass and a write.
PATIENCE_SECONDS = 30.0
POLL_SECONDS = 0.1


# The words of the service that this replaces; programs compare them.
STOPPED = "Stopped auto update task successfully"
NO_TASK = "No task handle found to cancel"
FLAG_STAYS = "Failed to clear the in-progress status. Please contact technical support."


@dataclass(frozen=True)
class Stopped:
    """What became of a project's runs, in the form of Supervisely's auto-updater.

    project_id: a number where the source has numbers. is_current_task: there was something to stop.
    details: `success` or `failed` of each thing that stopping is.
    """

    project_id: str | int
    is_current_task: bool
    success: bool
    message: str
    details: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """For people."""
        if not self.is_current_task:
            return "nothing to stop"
        return "stopped; what was embedded is kept" if self.success else self.message


@dataclass(frozen=True)
class Resumed:
    """What `resume` did, in words."""

    project_id: str
    message: str


def stop_project(
    deployment: Deployment,
    instance: dg.DagsterInstance,
    project: str,
    terminate: Callable[[str], object] | None = None,
) -> Stopped:
    """Stop the project's queued, starting and working runs; returns when they have ended.

    What was embedded is kept. The project stays stopped until its images change or somebody asks. What
    the source shows of it is corrected, whatever there was to stop. terminate: tells a run, by its id,
    to end; default: from this machine. Raises RunNotStopped where a run goes on, or works on another
    machine.
    """
    home = deployment.project_home(project)
    terminate = terminate or instance.run_coordinator.cancel_run
    canceled, unreachable = _cancel_runs(instance, project, terminate)
    ended = _end_process(home, project)
    cleared = _clear_flag(deployment, instance, project)
    project_id = int(project) if deployment.settings.is_supervisely else project
    if not (canceled or ended or unreachable):
        message = f"[Project: {project}] Is not the current active task in the auto-updater."
        return Stopped(project_id, is_current_task=False, success=True, message=message)
    details = {
        "cancel_task": "success",
        "clear_current_task": "success",
        "clear_in_progress_flag": "success" if cleared else "failed",
        "clear_update_flag": "success",
        "clear_autorestart": "success",
    }
    message = STOPPED if cleared else FLAG_STAYS
    if not (canceled or ended):
        details |= {"cancel_task": "failed", "cancel_task_reason": f"{NO_TASK}: {unreachable}"}
        message = f"{NO_TASK}. Stopping auto update task is finished." if cleared else message
    return Stopped(
        project_id, is_current_task=True, success=cleared, message=message, details=details
    )


def pause_project(deployment: Deployment, instance: dg.DagsterInstance, project: str) -> Stopped:
    """As `stop_project`, and nobody begins to work on the project until it is resumed."""
    pause(deployment.project_home(project))
    return stop_project(deployment, instance, project)


def resume_project(deployment: Deployment, project: str) -> Resumed:
    """Let a paused or stopped project go on: the sensor's next look asks for a run of it."""
    resume(deployment.project_home(project))
    look_again(deployment, project)
    return Resumed(project, "goes on: the sensor asks for a run if there is something to do")


def _cancel_runs(
    instance: dg.DagsterInstance, project: str, terminate: Callable[[str], object]
) -> tuple[set[str], str | None]:
    """Cancel until no run is left, or time is up: one that was starting may be working by then.

    Returns the runs' ids, and why Dagster could not be asked.
    """
    canceled: set[str] = set()
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        try:
            runs = _unfinished(instance, project)
            for run in runs:
                _cancel(instance, run, terminate)
                canceled.add(run.run_id)
        except (DatabaseError, dg.DagsterError) as error:
            # The process is reached by its lease all the same.
            return canceled, str(error).partition("\n")[0]
        if not runs:
            break
        time.sleep(POLL_SECONDS)
    return canceled, None


def _clear_flag(deployment: Deployment, instance: dg.DagsterInstance, project: str) -> bool:
    """Correct what the source shows. A run that was killed could not do so itself."""
    try:
        if deployment.source.end(project):
            _, token = deployment.source.revision(project)
            note_revision(instance, project, deployment.revision(token))
    except EmbedPipelineError as error:
        logger.warning("%s: still shown as worked on: %s", project, error)
        return False
    return True


def _unfinished(instance: dg.DagsterInstance, project: str) -> list[dg.DagsterRun]:
    tags = {PARTITION_NAME_TAG: partition_key(project)}
    return list(instance.get_runs(dg.RunsFilter(statuses=UNFINISHED, tags=tags)))


def _cancel(
    instance: dg.DagsterInstance, run: dg.DagsterRun, terminate: Callable[[str], object]
) -> None:
    match run.status:
        case dg.DagsterRunStatus.QUEUED | dg.DagsterRunStatus.STARTED:
            terminate(run.run_id)
        case dg.DagsterRunStatus.CANCELING:
            if is_dead(instance, run.run_id):
                instance.report_run_canceled(run, "Its process was killed.")
        case _:
            # It has no process yet that could be told. What starts all the same finds it canceled.
            instance.report_run_canceled(run, "Stopped while it was starting.")


def _end_process(home: ProjectHome, project: str) -> bool:
    """End the process that holds the project's lease, if any: what Dagster did not reach."""
    holder = lease_holder(home)
    if holder is None or not holder.label.startswith("run "):
        return False  # an audit changes nothing, and is soon done
    if holder.host != socket.gethostname():
        raise RunNotStopped(f"{project}: {holder} works on this project; stop it there")
    for number in (signal.SIGINT, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.kill(holder.pid, number)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            if lease_holder(home) != holder:
                return True
            time.sleep(POLL_SECONDS)
    raise RunNotStopped(f"{project}: {holder} does not end; end that process yourself")
