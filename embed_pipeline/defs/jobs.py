"""The job that brings one project up to date."""

import dagster as dg

from embed_pipeline.defs.assets import GROUP

sync_project = dg.define_asset_job(
    "sync_project",
    selection=dg.AssetSelection.groups(GROUP),
    description="Make one project's collection equal to its source, and prove it.",
    # A run whose process died begins anew: the listing may be old by now, and is cheap.
    tags={"dagster/retry_strategy": "ALL_STEPS"},
)
