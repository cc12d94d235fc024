"""The audit as a check: a run fails where the collection does not equal the source."""

import dagster as dg

from embed_pipeline.collection_state import CollectionState
from embed_pipeline.defs.assets import collection_state
from embed_pipeline.defs.resources import EmbedPipeline


@dg.asset_check(asset=collection_state, blocking=True)
def collection_equals_source(
    context: dg.AssetCheckExecutionContext, pipeline: EmbedPipeline
) -> dg.AssetCheckResult:
    """Manifest against a scroll after the sync: no difference but recorded failures."""
    run = pipeline.project_run(context)
    state = CollectionState.read(run.home.state)
    if state is None:
        return dg.AssetCheckResult(passed=False, description="the project was never synced")
    return dg.AssetCheckResult(
        passed=state.equal,
        description=state.differences,
        metadata={name: getattr(state, name) for name in ("missing", "stale", "extra", "failed")},
    )
