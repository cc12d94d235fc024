"""Qdrant's filters: every one holds to one project, whatever else it asks for."""

import polars as pl
from qdrant_client import models

from embed_pipeline.points import point_ids as ids_of_images
from embed_pipeline.stores.protocol import Filter
from embed_pipeline.stores.records import DATASET_FIELD, PROJECT_FIELD, qdrant_ids


class Filters:
    """The filters of one project."""

    def __init__(self, project_id: str) -> None:
        self._project_id = project_id
        self._is_ours = models.FieldCondition(
            key=PROJECT_FIELD, match=models.MatchValue(value=project_id)
        )

    def ours(
        self, *must: models.Condition, must_not: list[models.Condition] | None = None
    ) -> models.Filter:
        """The project's points that meet all of `must` and none of `must_not`."""
        return models.Filter(must=[self._is_ours, *must], must_not=must_not)

    def selected(self, where: Filter) -> models.Filter:
        """The project's points that a search may return."""
        must: list[models.Condition] = []
        if where.datasets is not None:
            match = models.MatchAny(any=list(where.datasets))
            must.append(models.FieldCondition(key=DATASET_FIELD, match=match))
        if where.image_ids is not None:
            must.append(self._has_images(where.image_ids))
        return self.ours(*must, must_not=[self._has_images(where.exclude_image_ids)])

    def _has_images(self, image_ids: tuple[str, ...]) -> models.HasIdCondition:
        series = pl.Series(image_ids, dtype=pl.String)
        return has(ids(ids_of_images(self._project_id, series)))


def ids(point_ids: pl.Series) -> list[models.ExtendedPointId]:
    """As the client takes them, from 16 bytes each."""
    return [raw if isinstance(raw, int) else str(raw) for raw in qdrant_ids(point_ids)]


def has(chosen: list[models.ExtendedPointId]) -> models.HasIdCondition:
    """Points by their ids."""
    return models.HasIdCondition(has_id=chosen)
