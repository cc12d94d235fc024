"""What Dagster's storage tells of a project's runs."""

from collections.abc import Sequence
from datetime import UTC, datetime

import dagster as dg
from dagster._core.storage.dagster_run import FINISHED_STATUSES, NOT_FINISHED_STATUSES, RunRecord
from dagster._core.storage.tags import PARTITION_NAME_TAG

from embed_pipeline.changes import LastRun
from embed_pipeline.defs.resources import REVISION_TAG
from embed_pipeline.sources.names import partition_key, project_of

UNFINISHED = list(NOT_FINISHED_STATUSES)
# As many failures as double the delay to its longest.
LOOK_BACK = 12
_ENDED = {
    dg.DagsterRunStatus.SUCCESS: "success",
    dg.DagsterRunStatus.FAILURE: "failed",
    dg.DagsterRunStatus.CANCELED: "canceled",
}


class DagsterRuns:
    """See `watching.RunHistory`."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self._instance = instance

    def unfinished(self) -> set[str]:
        """The projects with a queued or working run."""
        runs = self._instance.get_runs(dg.RunsFilter(statuses=UNFINISHED))
        keys = (run.tags.get(PARTITION_NAME_TAG) for run in runs)
        return {project_of(key) for key in keys if key}

    def last(self, project: str) -> LastRun | None:
        """The newest finished run, of our job or of what was materialized in the UI."""
        filters = dg.RunsFilter(
            tags={PARTITION_NAME_TAG: partition_key(project)},
            statuses=list(FINISHED_STATUSES),
        )
        records = self._instance.get_run_records(filters, limit=LOOK_BACK)
        return _last_run(records) if records else None


def note_revision(instance: dg.DagsterInstance, project: str, revision: str) -> None:
    """Say that the project's newest run was about this revision: only we changed the token since."""
    filters = dg.RunsFilter(tags={PARTITION_NAME_TAG: partition_key(project)})
    for run in instance.get_runs(filters, limit=1):
        instance.add_run_tags(run.run_id, {REVISION_TAG: revision})


def _last_run(records: Sequence[RunRecord]) -> LastRun:
    newest = records[0]
    run = newest.dagster_run
    failed = [record.dagster_run.status is dg.DagsterRunStatus.FAILURE for record in records]
    return LastRun(
        status=_ENDED[run.status],  # type: ignore[arg-type]  # its values are the literals
        revision=run.tags.get(REVISION_TAG),
        created_at=newest.create_timestamp.replace(tzinfo=UTC),
        ended_at=datetime.fromtimestamp(newest.end_time or 0, UTC),
        failures=failed.index(False) if False in failed else len(failed),
    )
