"""Checks of a project's collection: the audit, which fails a run, and what people should know."""

import warnings
from datetime import UTC, datetime, timedelta
from functools import partial

import dagster as dg

from embed_pipeline.collection_state import CollectionState
from embed_pipeline.defs.assets import collection_state
from embed_pipeline.defs.partitions import projects
from embed_pipeline.defs.resources import EmbedPipeline
from embed_pipeline.vector_health import vector_health

# More than one image in twenty that cannot be embedded points to a cause outside the images.
MAX_FAILED_SHARE = 0.05
SAMPLE_POINTS = 10_000
# From the moment that a run was asked for to its end.
MAX_LAG = timedelta(hours=1)

# Dagster warns that a check's partitions are a preview. Without them a check has one result for all
# projects, the last one's, and its history does not say whose each was.
warnings.filterwarnings("ignore", ".*partitions_def on an AssetCheckSpec", dg.PreviewWarning)
project_check = partial(dg.asset_check, asset=collection_state, partitions_def=projects)


@project_check(blocking=True)
def collection_equals_source(
    context: dg.AssetCheckExecutionContext, pipeline: EmbedPipeline
) -> dg.AssetCheckResult:
    """Manifest against a scroll after the sync: no difference but recorded failures.

    The next run mends what differs.
    """
    state = _state(context, pipeline)
    return dg.AssetCheckResult(
        passed=state.equal,
        description=state.differences,
        metadata={name: getattr(state, name) for name in ("missing", "stale", "extra", "failed")},
    )


@project_check()
def vectors_are_sound(
    context: dg.AssetCheckExecutionContext, pipeline: EmbedPipeline
) -> dg.AssetCheckResult:
    """Stored vectors are finite and of unit norm: a sample of 10,000, where the run wrote points."""
    run, state = pipeline.project_run(context), _state(context, pipeline)
    wrote = state.run_id == context.run.run_id and (state.embed or state.reuse)
    if not wrote:
        return dg.AssetCheckResult(passed=True, description="no vector was written")
    health = vector_health(run.collection, SAMPLE_POINTS)
    return dg.AssetCheckResult(
        passed=health.sound,
        description=str(health),
        metadata={"points looked at": health.points},
    )


@project_check()
def few_images_failed(
    context: dg.AssetCheckExecutionContext, pipeline: EmbedPipeline
) -> dg.AssetCheckResult:
    """At most one image in twenty cannot be embedded; image_embeddings says which, and why."""
    state = _state(context, pipeline)
    share = state.failed / state.images if state.images else 0.0
    return dg.AssetCheckResult(
        passed=share <= MAX_FAILED_SHARE,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"{state.failed:,} of {state.images:,} images failed",
        metadata={"failed": state.failed, "images": state.images, "share": round(share, 4)},
    )


@project_check()
def changes_are_searchable_soon(
    context: dg.AssetCheckExecutionContext, pipeline: EmbedPipeline
) -> dg.AssetCheckResult:
    """The lag: within an hour of being asked for, the run has made its changes searchable."""
    state = _state(context, pipeline)
    record = context.instance.get_run_record_by_id(context.run.run_id)
    asked = record.create_timestamp.replace(tzinfo=UTC) if record else state.finished_at
    lag = datetime.now(UTC) - asked
    return dg.AssetCheckResult(
        passed=lag <= MAX_LAG,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"{lag.total_seconds():,.0f} s from the request to the end",
        metadata={"lag in seconds": round(lag.total_seconds(), 1)},
    )


checks = [
    collection_equals_source,
    vectors_are_sound,
    few_images_failed,
    changes_are_searchable_soon,
]


def _state(context: dg.AssetCheckExecutionContext, pipeline: EmbedPipeline) -> CollectionState:
    """Of the last sync. Raises Failure where there was none."""
    state = CollectionState.read(pipeline.project_run(context).home.state)
    if state is None:
        raise dg.Failure("the project was never synced; materialise all of it", allow_retries=False)
    return state
