"""Which of a project's images a query or a selection looks at."""

from collections.abc import Sequence

import polars as pl

from embed_pipeline.errors import QueryError
from embed_pipeline.search.query import Scope

NESTED = "/"


def in_scope(manifest: pl.DataFrame, scope: Scope) -> pl.DataFrame:
    """The manifest's rows that are looked at. Raises QueryError for a dataset that is nowhere.

    Images that the project does not have are left out: a list may be older than the project.
    """
    if scope.datasets is not None:
        datasets = dataset_ids(manifest, scope.datasets)
        manifest = manifest.filter(pl.col("dataset_id").is_in(datasets))
    if scope.image_ids is not None:
        manifest = manifest.filter(pl.col("image_id").is_in(list(scope.image_ids)))
    return manifest


def dataset_ids(manifest: pl.DataFrame, given: Sequence[str]) -> list[str]:
    """Ids of the datasets given by id or name, and of those nested in them; sorted."""
    datasets = manifest.select("dataset_id", "dataset_name").unique()
    found: set[str] = set()
    for each in given:
        named = datasets.filter((pl.col("dataset_id") == each) | (pl.col("dataset_name") == each))
        roots = {each, *named["dataset_name"]}
        within = [pl.col("dataset_name").str.starts_with(root + NESTED) for root in roots]
        ids = datasets.filter(pl.any_horizontal(*within))["dataset_id"].to_list()
        if named.is_empty() and not ids:
            raise QueryError(f"{each}: no such dataset in the project; {_choices(datasets)}")
        found.update(named["dataset_id"], ids)
    return sorted(found)


def _choices(datasets: pl.DataFrame) -> str:
    names = datasets["dataset_name"].unique().sort()
    more = ", …" if len(names) > 10 else ""  # noqa: PLR2004  # as many as a line takes
    return f"it has: {', '.join(names.head(10))}{more}"
