"""The Dagster code location."""

import dagster as dg

from embed_pipeline.defs.asset_checks import collection_equals_source
from embed_pipeline.defs.assets import (
    collection_state,
    image_diff,
    image_embeddings,
    image_manifest,
)
from embed_pipeline.defs.jobs import sync_project
from embed_pipeline.defs.resources import EmbedPipeline

defs = dg.Definitions(
    assets=[image_manifest, image_diff, image_embeddings, collection_state],
    asset_checks=[collection_equals_source],
    jobs=[sync_project],
    resources={"pipeline": EmbedPipeline()},
    # One run is one project in one process: the model is loaded once, the lease is held throughout,
    # and a killed run leaves no process behind.
    executor=dg.in_process_executor,
)
