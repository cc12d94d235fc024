"""The Dagster code location."""

import dagster as dg

from embed_pipeline.defs.asset_checks import checks
from embed_pipeline.defs.assets import (
    collection_audit,
    collection_state,
    image_diff,
    image_embeddings,
    image_manifest,
)
from embed_pipeline.defs.image_search import ImageSearch
from embed_pipeline.defs.jobs import audit_projects, clean_up, query_project, sync_project
from embed_pipeline.defs.resources import EmbedPipeline
from embed_pipeline.defs.schedules import schedules
from embed_pipeline.defs.sensors import project_changes
from embed_pipeline.settings import load_settings

_settings = load_settings()

defs = dg.Definitions(
    assets=[image_manifest, image_diff, image_embeddings, collection_state, collection_audit],
    asset_checks=checks,
    jobs=[sync_project, audit_projects, query_project, clean_up],
    sensors=[project_changes(_settings)],
    schedules=schedules(_settings),
    resources={"pipeline": EmbedPipeline(), "search": ImageSearch()},
    # One run is one project in one process: the model is loaded once, the lease is held throughout,
    # and a killed run leaves no process behind.
    executor=dg.in_process_executor,
)
