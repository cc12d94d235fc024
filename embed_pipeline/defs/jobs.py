"""The job that brings one project up to date."""

import dagster as dg

from embed_pipeline.defs.assets import GROUP
from embed_pipeline.defs.partitions import projects

sync_project = dg.define_asset_job(
    "sync_project",
    selection=dg.AssetSelection.groups(GROUP),
    partitions_def=projects,
    description="Make one project's collection equal to its source, and prove it.",
)
