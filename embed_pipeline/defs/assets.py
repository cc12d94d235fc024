"""The four assets: manifest, diff, embeddings, collection state. One partition is one project."""

from functools import partial

import dagster as dg

from embed_pipeline import sync
from embed_pipeline.defs import metadata
from embed_pipeline.defs.partitions import projects
from embed_pipeline.defs.resources import EmbedPipeline
from embed_pipeline.manifest import data_version

GROUP = "image_search"

project_asset = partial(
    dg.asset,
    partitions_def=projects,
    group_name=GROUP,
    owners=["team:embed-pipeline"],
    code_version="1",
)


@project_asset(kinds={"polars", "parquet"})
def image_manifest(
    context: dg.AssetExecutionContext, pipeline: EmbedPipeline
) -> dg.MaterializeResult[None]:
    """What the project holds now: one row per image, with the hash of its content."""
    run = pipeline.project_run(context)
    manifest = sync.scan(run)
    return dg.MaterializeResult(
        metadata=metadata.of_manifest(run, manifest),
        data_version=dg.DataVersion(data_version(manifest)),
    )


@project_asset(deps=[image_manifest], kinds={"polars", "parquet"})
def image_diff(
    context: dg.AssetExecutionContext, pipeline: EmbedPipeline
) -> dg.MaterializeResult[None]:
    """What must happen: manifest against what the collection says it holds, one row per action."""
    run = pipeline.project_run(context)
    return dg.MaterializeResult(metadata=metadata.of_diff(run, sync.diff(run)))


@project_asset(deps=[image_diff], kinds={"pytorch", "parquet"})
def image_embeddings(
    context: dg.AssetExecutionContext, pipeline: EmbedPipeline
) -> dg.MaterializeResult[None]:
    """Vectors of the contents that nobody embedded before, searchable as the batches finish."""
    run = pipeline.project_run(context)
    return dg.MaterializeResult(metadata=metadata.of_embeddings(run, sync.embed(run)))


class ApplyConfig(dg.Config):
    """`confirm_removals`: the number of removals that an earlier run withheld and asked about."""

    confirm_removals: int | None = None


@project_asset(deps=[image_embeddings], kinds={"qdrant"})
def collection_state(
    context: dg.AssetExecutionContext, pipeline: EmbedPipeline, config: ApplyConfig
) -> dg.MaterializeResult[None]:
    """The collection made equal to the project: points written, relabelled, removed, audited."""
    run = pipeline.project_run(context)
    state = sync.apply(run, config.confirm_removals)
    return dg.MaterializeResult(metadata=metadata.of_state(run, state))
