"""Deleting old runs, which Dagster never does by itself."""

from datetime import UTC, datetime, timedelta

import dagster as dg
from dagster._core.storage.dagster_run import FINISHED_STATUSES
from dagster._core.storage.tags import PARTITION_NAME_TAG

from embed_pipeline.defs.run_launcher import is_ours


def delete_old_runs(instance: dg.DagsterInstance, keep_days: int) -> int:
    """Delete our finished runs that are older, but for each partition's newest success.

    With a run go its events; without that one, its project would look never materialised.
    """
    before = datetime.now(UTC) - timedelta(days=keep_days)
    filters = dg.RunsFilter(statuses=list(FINISHED_STATUSES), updated_before=before)
    old = [run for run in instance.get_runs(filters) if is_ours(run)]
    kept: dict[str | None, str | None] = {}
    for key in {run.tags.get(PARTITION_NAME_TAG) for run in old}:
        kept[key] = _newest_success(instance, key) if key else None
    deleted = [run for run in old if kept[run.tags.get(PARTITION_NAME_TAG)] != run.run_id]
    for run in deleted:
        instance.delete_run(run.run_id)
    return len(deleted)


def _newest_success(instance: dg.DagsterInstance, key: str) -> str | None:
    filters = dg.RunsFilter(statuses=[dg.DagsterRunStatus.SUCCESS], tags={PARTITION_NAME_TAG: key})
    runs = instance.get_runs(filters, limit=1)
    return runs[0].run_id if runs else None
