"""The jobs: bring one project up to date, audit all of them, delete old runs."""

import dagster as dg

from embed_pipeline.defs.assets import GROUP, collection_audit
from embed_pipeline.defs.old_runs import delete_old_runs
from embed_pipeline.defs.resources import EmbedPipeline

audit = dg.AssetSelection.assets(collection_audit)

sync_project = dg.define_asset_job(
    "sync_project",
    selection=dg.AssetSelection.groups(GROUP) - audit,
    description="Make one project's collection equal to its source, and prove it.",
    # A run whose process died begins anew: the listing may be old by now, and is cheap.
    tags={"dagster/retry_strategy": "ALL_STEPS"},
)
audit_projects = dg.define_asset_job(
    "audit_projects",
    selection=audit,
    description="Verify all projects in one run; the sensor sees to those that differ.",
)


@dg.op(out=dg.Out(dg.Nothing))
def delete_runs(context: dg.OpExecutionContext, pipeline: EmbedPipeline) -> None:
    """Delete runs older than EMBED_KEEP_RUNS_DAYS, but for each project's last success."""
    deleted = delete_old_runs(context.instance, pipeline.deployment.settings.keep_runs_days)
    context.add_output_metadata({"deleted runs": deleted})


@dg.job(description="Delete runs older than EMBED_KEEP_RUNS_DAYS; each takes some 100 kB of disk.")
def clean_up() -> None:
    """One op."""
    delete_runs()
