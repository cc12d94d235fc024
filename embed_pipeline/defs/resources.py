"""What the assets need: the deployment that the settings name, and the project's lease."""

import multiprocessing
import time
from contextlib import ExitStack
from contextvars import ContextVar
from dataclasses import dataclass, replace

import dagster as dg
from dagster._core.execution.plan.objects import ErrorSource
from pydantic import PrivateAttr

from embed_pipeline import reporting
from embed_pipeline.defs.run_launcher import hold_run_lock
from embed_pipeline.deployment import Deployment, open_deployment
from embed_pipeline.lease import working_lease
from embed_pipeline.process import collect_rarely, give_way
from embed_pipeline.progress import Progress, silent, told_to
from embed_pipeline.project_run import ProjectRun
from embed_pipeline.run_progress import Pace, ProgressFile
from embed_pipeline.sources.names import project_of

REVISION_TAG = "embed_pipeline/revision"
OBSERVE_SECONDS = 15.0
LOOK_SECONDS = 1.0


@dataclass(frozen=True)
class Launcher:
    """Who runs a job in its own process: the deployment it has open, and its bar."""

    deployment: Deployment
    progress: Progress


launcher: ContextVar[Launcher | None] = ContextVar("launcher", default=None)


class EmbedPipeline(dg.ConfigurableResource):  # type: ignore[type-arg]  # it is what Dagster resolves to
    """Source, store and model: the launcher's, or else as the EMBED_* environment names them.

    The first step of a run takes the project's lease; it is let go when the run ends, however.
    """

    _held: ExitStack = PrivateAttr(default_factory=ExitStack)
    _run: ProjectRun | None = PrivateAttr(default=None)

    def setup_for_execution(self, context: dg.InitResourceContext) -> None:
        """Show that the run's process is alive; where it has one of its own, that gives way to searches."""
        if multiprocessing.parent_process():
            give_way()
            collect_rarely()
        if context.instance and context.run:
            hold_run_lock(context.instance, context.run.run_id)

    @property
    def deployment(self) -> Deployment:
        """What the settings name."""
        here = launcher.get()
        return here.deployment if here else open_deployment()

    def project_run(
        self, context: dg.AssetExecutionContext | dg.AssetCheckExecutionContext
    ) -> ProjectRun:
        """The run's project, under its lease. Raises LeaseHeld when another run works on it."""
        if self._run is None:
            self._run = self._start(context)
        if isinstance(context, dg.AssetExecutionContext):
            observed = told_to(self._run.progress, Observations(context))
            return replace(self._run, progress=observed)
        return self._run

    def _start(
        self, context: dg.AssetExecutionContext | dg.AssetCheckExecutionContext
    ) -> ProjectRun:
        run_id = context.run.run_id
        if not context.has_partition_key:
            raise dg.Failure(
                "a check needs a project: materialize collection_state for it", allow_retries=False
            )
        _require_wanted(context.instance, context.run)
        deployment, project = self.deployment, project_of(context.partition_key)
        home, wait = deployment.project_home(project), deployment.settings.lease_wait_seconds
        self._held.enter_context(working_lease(home, project, run_id, wait))
        file = ProgressFile(home, run_id)
        self._held.callback(file.close)
        here = launcher.get()
        progress = told_to(file, here.progress if here else silent)
        run = ProjectRun(deployment, project, run_id, progress)
        deployment.source.begin(project)
        self._held.callback(_report_end, run, context.instance)
        return run

    def teardown_after_execution(self, context: dg.InitResourceContext) -> None:  # noqa: ARG002  Dagster's signature
        """Let go of the lease."""
        self._held.close()


class Observations:
    """A Progress that the Dagster UI shows: an observation of the step's asset every 15 s."""

    def __init__(self, context: dg.AssetExecutionContext) -> None:
        self._context = context
        self._pace = Pace(context.run.run_id)
        self._told_at = self._looked_at = time.monotonic()

    def __call__(self, step: str, done: int, total: int | None) -> None:
        """Observe where it is time to."""
        now = time.monotonic()
        if now - self._looked_at < LOOK_SECONDS:
            return
        self._looked_at = now
        at = self._pace.at(step, done, total)
        if now - self._told_at < OBSERVE_SECONDS:
            return
        self._told_at = now
        metadata = {"done": done} if total is None else {"done": done, "total": total}
        self._context.log_event(
            dg.AssetObservation(
                asset_key=self._context.asset_key,
                partition=self._context.partition_key,
                description=str(at),
                metadata=metadata,
            )
        )


def _report_end(run: ProjectRun, instance: dg.DagsterInstance) -> None:
    """Tell the source how the run ended, and Dagster which revision it was about."""
    left_at = reporting.end(run, _failure(instance, run.run_id))
    if left_at:
        instance.add_run_tags(run.run_id, {REVISION_TAG: left_at})


def _failure(instance: dg.DagsterInstance, run_id: str) -> str | None:
    """What the run's page says went wrong; None where nothing did, or somebody stopped it."""
    failed = instance.get_records_for_run(run_id, of_type=dg.DagsterEventType.STEP_FAILURE).records
    for record in failed:
        if (event := record.event_log_entry.dagster_event) and (data := event.step_failure_data):
            if data.error_source is ErrorSource.INTERRUPT:
                continue  # somebody stopped it
            told = data.user_failure_data
            return (told and told.description) or f"{event.message} See the run's page in Dagster."
    return None


def _require_wanted(instance: dg.DagsterInstance, run: dg.DagsterRun) -> None:
    """A run that was forced to end while it was starting may start all the same."""
    ended = dg.DagsterEventType.RUN_CANCELED
    if instance.get_records_for_run(run.run_id, of_type=ended).records:
        instance.report_run_canceling(run, "It was stopped before it began.")
        raise dg.DagsterExecutionInterruptedError
