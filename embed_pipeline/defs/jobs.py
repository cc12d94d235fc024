"""The jobs: bring one project up to date, audit all of them, answer a query, delete old runs."""

import dagster as dg
from pydantic import Field

from embed_pipeline.defs import metadata
from embed_pipeline.defs.assets import GROUP, collection_audit
from embed_pipeline.defs.explained import explained
from embed_pipeline.defs.image_search import ImageSearch
from embed_pipeline.defs.old_runs import delete_old_runs
from embed_pipeline.defs.resources import EmbedPipeline
from embed_pipeline.search.query import query_of

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


class QueryConfig(dg.Config):
    """A query of a project, as `embed-pipeline search` takes it. Images are ids, or names in the project."""

    project: str
    texts: list[str] = Field(default=[])
    like: list[str] = Field(default=[])
    not_texts: list[str] = Field(default=[])
    unlike: list[str] = Field(default=[])
    mode: str = Field("weighted", description="weighted, all or any")
    limit: int = 10
    datasets: list[str] | None = Field(None, description="ids or names; nested ones are included")
    confidence: float | None = Field(None, description="least confidence, 0 to 1")
    diversity: float = 0.0


@dg.op(out=dg.Out(dg.Nothing))
@explained
def answer(context: dg.OpExecutionContext, config: QueryConfig, search: ImageSearch) -> None:
    """Search, and show what was found on the run's page."""
    query = query_of(**config.model_dump(exclude={"project"}))
    found = search.search(config.project, query)
    context.add_output_metadata(metadata.of_answer(search.deployment, config.project, found))


@dg.job(description="Search a project; the run's page shows the answer as a table and a sheet.")
def query_project() -> None:
    """One op."""
    answer()


@dg.op(out=dg.Out(dg.Nothing))
def delete_runs(context: dg.OpExecutionContext, pipeline: EmbedPipeline) -> None:
    """Delete runs older than EMBED_KEEP_RUNS_DAYS, but for each project's last success."""
    deleted = delete_old_runs(context.instance, pipeline.deployment.settings.keep_runs_days)
    context.add_output_metadata({"deleted runs": deleted})


@dg.job(description="Delete runs older than EMBED_KEEP_RUNS_DAYS; each takes some 100 kB of disk.")
def clean_up() -> None:
    """One op."""
    delete_runs()
