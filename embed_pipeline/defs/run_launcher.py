"""Which runs are alive: known by a lock that each holds, and that dies with its process."""

import os
import signal
import socket
from pathlib import Path

import dagster as dg
from dagster._core.launcher import CheckRunHealthResult, DefaultRunLauncher, WorkerStatus

from embed_pipeline.locks import FileLock


class EmbedPipelineRunLauncher(DefaultRunLauncher):
    """Dagster's own launcher, and two things for runs that the command line executes itself.

    Run monitoring ends a run whose process was killed: it would stay STARTED for ever, and the queue
    would let no other run of its project go. And the UI can stop them.
    """

    @property
    def supports_check_run_worker_health(self) -> bool:
        """Run monitoring asks `check_run_worker_health` of every run that is STARTED."""
        return True

    def check_run_worker_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        """FAILED where a process took the run's lock and neither holds it nor tidied it away."""
        lock = run_lock(self._instance, run.run_id)
        if not lock.path.exists() or lock.is_locked():
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        lock.path.unlink(missing_ok=True)
        return CheckRunHealthResult(WorkerStatus.FAILED, "the process of the run was killed")

    def terminate(self, run_id: str) -> bool:
        """Interrupt the run; one of the command line by the signal that Ctrl-C sends."""
        run = self._instance.get_run_by_id(run_id)
        holder = run_lock(self._instance, run_id).holder()
        started_here = run and run.remote_job_origin is None
        if not (run and started_here and holder and holder.host == socket.gethostname()):
            return bool(super().terminate(run_id))  # type: ignore[no-untyped-call]
        self._instance.report_run_canceling(run)
        os.kill(holder.pid, signal.SIGINT)
        return True


def run_lock(instance: dg.DagsterInstance, run_id: str) -> FileLock:
    """The lock that a run holds while its process lives. The file is deleted when the run ends."""
    return FileLock(Path(instance.root_directory) / "running" / run_id)
