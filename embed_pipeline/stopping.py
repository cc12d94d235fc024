"""Stopping a project: its runs in Dagster, and then whatever process still works on it."""

import os
import signal
import socket
import time
from contextlib import suppress
from dataclasses import dataclass, field

import dagster as dg
from dagster._core.storage.tags import PARTITION_NAME_TAG
from sqlalchemy.exc import DatabaseError

from embed_pipeline.defs.run_history import UNFINISHED
from embed_pipeline.defs.run_launcher import is_dead
from embed_pipeline.deployment import Deployment
from embed_pipeline.errors import RunNotStopped
from embed_pipeline.home import ProjectHome
from embed_pipeline.lease import lease_holder
from embed_pipeline.pause import pause, resume
from embed_pipeline.sources.names import partition_key
from embed_pipeline.watching import look_again

# A run commits what it has encoded when it is told to stop: a forward pass and a write.
PATIENCE_SECONDS = 30.0
POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Stopped:
    """What became of a project's runs. is_current_task: there was something to stop.

    details: each run by its id, and `process` for one that Dagster did not reach.
    """

    project_id: str
    is_current_task: bool
    success: bool
    message: str
    details: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Resumed:
    """What `resume` did, in words."""

    project_id: str
    message: str


def stop_project(deployment: Deployment, instance: dg.DagsterInstance, project: str) -> Stopped:
    """Stop the project's queued, starting and working runs; returns when they have ended.

    What was embedded is kept. The project stays stopped until its images change or somebody asks.
    Raises RunNotStopped where a run goes on, or works on another machine.
    """
    home = deployment.project_home(project)
    details = _cancel_runs(instance, project)
    if ended := _end_process(home, project):
        details["process"] = ended
    if not details:
        return Stopped(project, is_current_task=False, success=True, message="nothing to stop")
    message = "stopped; what was embedded is kept"
    return Stopped(project, is_current_task=True, success=True, message=message, details=details)


def pause_project(deployment: Deployment, instance: dg.DagsterInstance, project: str) -> Stopped:
    """As `stop_project`, and nobody begins to work on the project until it is resumed."""
    pause(deployment.project_home(project))
    return stop_project(deployment, instance, project)


def resume_project(deployment: Deployment, project: str) -> Resumed:
    """Let a paused or stopped project go on: the sensor's next look asks for a run of it."""
    resume(deployment.project_home(project))
    look_again(deployment, project)
    return Resumed(project, "goes on: the sensor asks for a run if there is something to do")


def _cancel_runs(instance: dg.DagsterInstance, project: str) -> dict[str, str]:
    """Cancel until no run is left, or time is up: one that was starting may be working by then."""
    details: dict[str, str] = {}
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        try:
            runs = _unfinished(instance, project)
            for run in runs:
                _cancel(instance, run)
                details[run.run_id] = "canceled"
        except (DatabaseError, dg.DagsterError) as error:
            # The process is reached by its lease all the same.
            details["dagster"] = str(error).partition("\n")[0]
            break
        if not runs:
            break
        time.sleep(POLL_SECONDS)
    return details


def _unfinished(instance: dg.DagsterInstance, project: str) -> list[dg.DagsterRun]:
    tags = {PARTITION_NAME_TAG: partition_key(project)}
    return list(instance.get_runs(dg.RunsFilter(statuses=UNFINISHED, tags=tags)))


def _cancel(instance: dg.DagsterInstance, run: dg.DagsterRun) -> None:
    match run.status:
        case dg.DagsterRunStatus.QUEUED | dg.DagsterRunStatus.STARTED:
            instance.run_coordinator.cancel_run(run.run_id)
        case dg.DagsterRunStatus.CANCELING:
            if is_dead(instance, run.run_id):
                instance.report_run_canceled(run, "Its process was killed.")
        case _:
            # It has no process yet that could be told. What starts all the same finds it canceled.
            instance.report_run_canceled(run, "Stopped while it was starting.")


def _end_process(home: ProjectHome, project: str) -> str | None:
    """End the process that holds the project's lease, if any: what Dagster did not reach."""
    holder = lease_holder(home)
    if holder is None or not holder.label.startswith("run "):
        return None  # an audit changes nothing, and is soon done
    if holder.host != socket.gethostname():
        raise RunNotStopped(f"{project}: {holder} works on this project; stop it there")
    for number in (signal.SIGINT, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.kill(holder.pid, number)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            if lease_holder(home) != holder:
                return f"{holder} was ended ({number.name})"
            time.sleep(POLL_SECONDS)
    raise RunNotStopped(f"{project}: {holder} does not end; end that process yourself")
