"""Four assets with a partition for each project: manifest, diff, embeddings, collection state.

And one without: the audit of all projects.
"""

from datetime import timedelta
from functools import partial

import dagster as dg
from pydantic import Field

from embed_pipeline import sync
from embed_pipeline.audit import audit_all
from embed_pipeline.defs import metadata
from embed_pipeline.defs.explained import explained
from embed_pipeline.defs.partitions import projects
from embed_pipeline.defs.resources import REVISION_TAG, EmbedPipeline
from embed_pipeline.manifest import data_version

GROUP = "image_search"
OWNERS = ["team:embed-pipeline"]
FORCED_TAG = "embed_pipeline/forced"
RETRY_NUMBER_TAG = "dagster/retry_number"

project_asset = partial(
    dg.asset,
    partitions_def=projects,
    group_name=GROUP,
    owners=OWNERS,
    code_version="1",
)


@project_asset(kinds={"polars", "parquet"})
@explained
def image_manifest(
    context: dg.AssetExecutionContext, pipeline: EmbedPipeline
) -> dg.MaterializeResult[None]:
    """What the project holds now: one row per image, with the hash of its content."""
    run = pipeline.project_run(context)
    manifest = sync.scan(run)
    context.instance.add_run_tags(run.run_id, {REVISION_TAG: run.revision()})
    return dg.MaterializeResult(
        metadata=metadata.of_manifest(run, manifest),
        data_version=dg.DataVersion(data_version(manifest)),
    )


class DiffConfig(dg.Config):
    """What a person wants done again."""

    force: bool = Field(
        False,
        description="embed everything anew, in place; searches find what they found meanwhile",
    )


@project_asset(deps=[image_manifest], kinds={"polars", "parquet"})
@explained
def image_diff(
    context: dg.AssetExecutionContext, pipeline: EmbedPipeline, config: DiffConfig
) -> dg.MaterializeResult[None]:
    """What must happen: manifest against what the collection says it holds, one row per action."""
    run = pipeline.project_run(context)
    difference = sync.diff(run, force=config.force and not _goes_on(context.run))
    if config.force:
        context.instance.add_run_tags(run.run_id, {FORCED_TAG: "true"})
    return dg.MaterializeResult(metadata=metadata.of_diff(run.spaces()[-1], difference))


def _goes_on(run: dg.DagsterRun) -> bool:
    """Whether Dagster launched it in the place of one whose process died after it had forced."""
    return RETRY_NUMBER_TAG in run.tags and FORCED_TAG in run.tags


@project_asset(deps=[image_diff], kinds={"pytorch", "parquet"})
@explained
def image_embeddings(
    context: dg.AssetExecutionContext, pipeline: EmbedPipeline
) -> dg.MaterializeResult[None]:
    """Vectors of the contents that have none, or are forced, searchable as the batches finish."""
    run = pipeline.project_run(context)
    return dg.MaterializeResult(metadata=metadata.of_embeddings(run.spaces()[-1], sync.embed(run)))


class ApplyConfig(dg.Config):
    """What a person decides about one run."""

    confirm_removals: int | None = Field(
        None, description="the number of removals that an earlier run withheld and asked about"
    )


@project_asset(deps=[image_embeddings], kinds={"qdrant"})
@explained
def collection_state(
    context: dg.AssetExecutionContext, pipeline: EmbedPipeline, config: ApplyConfig
) -> dg.MaterializeResult[None]:
    """The collection made equal to the project: points written, relabelled, removed, audited.

    A run that would remove too many images fails instead, and says how to confirm that.
    """
    run = pipeline.project_run(context)
    state = sync.apply(run, config.confirm_removals)
    return dg.MaterializeResult(metadata=metadata.of_state(run, state))


class AuditConfig(dg.Config):
    """What an audit looks at."""

    vectors: bool = Field(
        False, description="also compare every stored vector with the vector library's: reads all"
    )


@dg.asset(
    group_name=GROUP,
    owners=OWNERS,
    deps=[collection_state],
    kinds={"qdrant"},
    # It is made every night: without one for so long, nothing proves that search is right.
    freshness_policy=dg.FreshnessPolicy.time_window(
        fail_window=timedelta(hours=50), warn_window=timedelta(hours=26)
    ),
)
@explained
def collection_audit(
    context: dg.AssetExecutionContext, pipeline: EmbedPipeline, config: AuditConfig
) -> dg.MaterializeResult[None]:
    """Every project's collection against its source.

    The sensor asks for runs of those that differ, unless they are paused or stopped.
    """
    audited = audit_all(pipeline.deployment, vectors=config.vectors)
    for project, reason in audited.skipped.items():
        context.log.warning("%s: not verified: %s", project, reason)
    return dg.MaterializeResult(metadata=metadata.of_audit(audited))
