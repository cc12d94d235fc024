"""Runs of projects, started and stopped through the Dagster UI, and read from Dagster's storage."""

import logging
from contextlib import ExitStack
from functools import cached_property
from http import HTTPStatus
from threading import Lock
from urllib.parse import urlsplit

import dagster as dg
import httpx
from dagster._core.storage.tags import PARTITION_NAME_TAG
from dagster_graphql import DagsterGraphQLClient, DagsterGraphQLClientError

from embed_pipeline.api.errors import RETRY_AFTER_SECONDS, ApiError
from embed_pipeline.changes import LastRun
from embed_pipeline.defs.jobs import sync_project
from embed_pipeline.defs.partitions import projects
from embed_pipeline.defs.run_history import UNFINISHED, DagsterRuns
from embed_pipeline.deployment import Deployment
from embed_pipeline.errors import LeaseHeld
from embed_pipeline.lease import lease_holder
from embed_pipeline.runs import dagster_instance
from embed_pipeline.sources.names import partition_key
from embed_pipeline.stopping import Stopped, stop_project

logger = logging.getLogger(__name__)

# Dagster launches a process, or asks one that it started to end.
ANSWER_SECONDS = 20
_GREETING_SECONDS = 2
_LONGEST_REASON = 200


def is_up(dagster_url: str) -> bool:
    """Whether a Dagster UI answers there, within two seconds."""
    try:
        return httpx.get(f"{dagster_url}/server_info", timeout=_GREETING_SECONDS).is_success
    except (httpx.HTTPError, httpx.InvalidURL):
        return False


class Runs:
    """The runs of a deployment's projects. To be shared between threads. Nothing is embedded here."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        self._open = ExitStack()
        self._lock = Lock()
        self._starting = Lock()

    def start(self, project: str, *, force: bool) -> str:
        """Start a run of the project; returns its id. force: embed everything anew.

        Raises LeaseHeld where a run is queued or working, and ApiError where Dagster takes none.
        """
        with self._starting:  # else two requests at once start two
            if self.is_working(project):
                raise LeaseHeld(f"[Project: {project}] Embeddings creation is already in progress.")
            key = partition_key(project)
            self.instance.add_dynamic_partitions(str(projects.name), [key])
            return self._submit(key, force=force)

    def stop(self, project: str) -> Stopped:
        """See `stopping.stop_project`. Raises ApiError where Dagster does not answer."""
        return stop_project(self._deployment, self.instance, project, self._terminate)

    def is_working(self, project: str) -> bool:
        """Whether a run of the project is queued or works, here or elsewhere."""
        holder = lease_holder(self._deployment.project_home(project))
        if holder and holder.label.startswith("run "):
            return True
        tags = {PARTITION_NAME_TAG: partition_key(project)}
        return bool(self.instance.get_runs(dg.RunsFilter(statuses=UNFINISHED, tags=tags), limit=1))

    def last(self, project: str) -> LastRun | None:
        """The newest finished run."""
        return DagsterRuns(self.instance).last(project)

    @property
    def instance(self) -> dg.DagsterInstance:
        """Dagster's storage."""
        with self._lock:
            return self._instance

    @cached_property
    def _instance(self) -> dg.DagsterInstance:
        return self._open.enter_context(dagster_instance(self._deployment.settings))

    def close(self) -> None:
        """Let go of the storage."""
        self._open.close()

    def _submit(self, key: str, *, force: bool) -> str:
        try:
            return self._client().submit_job_execution(
                sync_project.name,
                run_config={"ops": {"image_diff": {"config": {"force": force}}}},
                tags={PARTITION_NAME_TAG: key},
            )
        except DagsterGraphQLClientError as error:
            raise self._unavailable(error) from error

    def _terminate(self, run_id: str) -> None:
        try:
            self._client().terminate_run(run_id)
        except DagsterGraphQLClientError as error:
            if error.__cause__:
                raise self._unavailable(error) from error
            # It may have ended by itself; who stops a project looks again.
            logger.info("run %s: Dagster does not end it: %s", run_id, error)

    def _client(self) -> DagsterGraphQLClient:
        """One for each request: it cannot be shared between threads, and connects only when asked."""
        address = urlsplit(self._deployment.settings.dagster_url)
        return DagsterGraphQLClient(
            address.hostname or "",
            port_number=address.port,
            use_https=address.scheme == "https",
            timeout=ANSWER_SECONDS,
            path_prefix=address.path.rstrip("/"),
        )

    def _unavailable(self, error: Exception) -> ApiError:
        cause: BaseException = error
        while cause.__cause__ and not isinstance(cause, OSError):
            cause = cause.__cause__
        said = "it does not answer" if isinstance(cause, OSError) else str(cause)
        reason = " ".join(said.split())[:_LONGEST_REASON]
        url = self._deployment.settings.dagster_url
        return ApiError(
            HTTPStatus.SERVICE_UNAVAILABLE,
            "dagster_unavailable",
            f"Dagster at EMBED_DAGSTER_URL={url} takes no runs ({reason}); start it: embed-pipeline dev",
            retry_after_seconds=RETRY_AFTER_SECONDS,
        )
