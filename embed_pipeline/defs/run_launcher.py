"""Which runs are alive: known by a lock that each holds, and that dies with its process."""

import os
import signal
import socket
import time
from contextlib import suppress
from pathlib import Path

import dagster as dg
from dagster._core.errors import DagsterUserCodeUnreachableError
from dagster._core.launcher import CheckRunHealthResult, DefaultRunLauncher, WorkerStatus

from embed_pipeline.locks import FileLock

LOCATION = "embed_pipeline"
# Between a run's start and its lock lies the set-up of our resource.
LOCK_SECONDS = 60.0


class EmbedPipelineRunLauncher(DefaultRunLauncher):
    """Dagster's own launcher, which also knows whose process is alive, and stops it by its pid.

    Run monitoring ends a run whose process was killed: it would stay STARTED for ever, and the queue
    would let no other run of its project go. And runs can be stopped that the code server does not
    know: those of the command line, and those whose code server was killed.
    """

    @property
    def supports_check_run_worker_health(self) -> bool:
        """Run monitoring asks `check_run_worker_health` of every run that is STARTED."""
        return True

    def check_run_worker_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        """FAILED where the process that took the run's lock is gone, or none ever took it."""
        if not (is_dead(self._instance, run.run_id) or self._is_overdue(run)):
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        return CheckRunHealthResult(WorkerStatus.FAILED, "the process of the run was killed")

    def terminate(self, run_id: str) -> bool:
        """Interrupt the run's process by the signal that Ctrl-C sends; end the run where it is gone."""
        run = self._instance.get_run_by_id(run_id)
        if run is None or run.is_finished:
            return False
        holder = run_lock(self._instance, run_id).holder()
        if holder and holder.host == socket.gethostname():
            self._instance.report_run_canceling(run)
            with suppress(ProcessLookupError):
                os.kill(holder.pid, signal.SIGINT)
            return True
        if is_dead(self._instance, run_id):
            self._instance.report_run_canceled(run, "The process of the run was killed before.")
            return True
        try:
            return bool(super().terminate(run_id))  # type: ignore[no-untyped-call]
        except DagsterUserCodeUnreachableError:
            self._instance.report_run_canceled(run, "Its code server was killed before.")
            return True

    def _is_overdue(self, run: dg.DagsterRun) -> bool:
        """Whether one of our runs should have taken its lock long ago."""
        if not is_ours(run) or run_lock(self._instance, run.run_id).path.exists():
            return False
        record = self._instance.get_run_record_by_id(run.run_id)
        return bool(record and record.start_time and time.time() - record.start_time > LOCK_SECONDS)


def is_ours(run: dg.DagsterRun) -> bool:
    """Whether the run is of this code location, or of the command line."""
    origin = run.remote_job_origin
    return origin is None or origin.location_name == LOCATION


def run_lock(instance: dg.DagsterInstance, run_id: str) -> FileLock:
    """The lock that a run holds while its process lives."""
    return FileLock(_directory(instance) / run_id)


def is_dead(instance: dg.DagsterInstance, run_id: str) -> bool:
    """Whether a process took the run's lock, and does not live any more."""
    lock = run_lock(instance, run_id)
    return lock.path.exists() and not lock.is_locked()


def hold_run_lock(instance: dg.DagsterInstance, run_id: str) -> None:
    """Hold the run's lock until this process ends, or `release_run_lock`.

    Not only until the last step ends: Dagster hears of that a little later, and until then the run
    would look dead. So this also deletes what the finished runs before it have left.
    """
    for path in _directory(instance).glob("*"):
        run = instance.get_run_by_id(path.name)
        if not FileLock(path).is_locked() and (run is None or run.is_finished):
            path.unlink(missing_ok=True)
    _held[run_id] = run_lock(instance, run_id).acquire(0, "run")


def release_run_lock(run_id: str) -> None:
    """The run ended, and this process goes on."""
    if lock := _held.pop(run_id, None):
        lock.path.unlink(missing_ok=True)
        lock.release()


_held: dict[str, FileLock] = {}


def _directory(instance: dg.DagsterInstance) -> Path:
    return Path(instance.root_directory) / "running"
