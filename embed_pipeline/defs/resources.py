"""What the assets need: the deployment that the settings name, and the project's lease."""

from contextlib import ExitStack
from contextvars import ContextVar
from dataclasses import dataclass

import dagster as dg
from pydantic import PrivateAttr

from embed_pipeline.defs.run_launcher import run_lock
from embed_pipeline.deployment import Deployment, open_deployment
from embed_pipeline.lease import lease
from embed_pipeline.progress import Progress, silent
from embed_pipeline.project_run import ProjectRun
from embed_pipeline.sources.names import project_of


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

    def project_run(
        self, context: dg.AssetExecutionContext | dg.AssetCheckExecutionContext
    ) -> ProjectRun:
        """The run's project, under its lease. Raises LeaseHeld when another run works on it."""
        if self._run is None:
            here = launcher.get() or Launcher(open_deployment(), silent)
            deployment = here.deployment
            project = project_of(context.partition_key)
            home, wait = deployment.project_home(project), deployment.settings.lease_wait_seconds
            run_id = context.run.run_id
            alive = self._held.enter_context(run_lock(context.instance, run_id).acquire(0, "run"))
            self._held.callback(alive.path.unlink, missing_ok=True)
            self._held.enter_context(lease(home, project, run_id, wait))
            self._run = ProjectRun(deployment, project, run_id, here.progress)
        return self._run

    def teardown_after_execution(self, context: dg.InitResourceContext) -> None:  # noqa: ARG002  Dagster's signature
        """Let go of the lease."""
        self._held.close()
