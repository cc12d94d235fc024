"""A Qdrant server: one collection per space for all projects, each call filtered by project."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import polars as pl
from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import ResponseHandlingException

from embed_pipeline.errors import CollectionMissing, EmbedPipelineError, StoreError
from embed_pipeline.points import point_ids as ids_of_images
from embed_pipeline.stores.protocol import Filter, Vectors
from embed_pipeline.stores.records import (
    DATASET_FIELD,
    PROJECT_FIELD,
    nearest_frame,
    payloads,
    points_frame,
    qdrant_ids,
    unit_vectors,
    vectors_array,
)

_BATCH_POINTS = 256
_PAGE_POINTS = 10_000
_PAGE_POINTS_WITH_VECTORS = 1_000
_TIMEOUT_SECONDS = 60


def connect(url: str, api_key: str | None) -> "QdrantServerStore":
    """Make a store on the server at `url`, such as http://localhost:6333. Nothing is sent yet."""
    client = QdrantClient(
        url=url,
        api_key=api_key,
        prefer_grpc=True,
        timeout=_TIMEOUT_SECONDS,
        check_compatibility=False,  # it asks the server from a thread; `check` does it in the open
    )
    return QdrantServerStore(client, url)


class QdrantServerStore:
    """All projects of a space share the collection `images_<space>`.

    where: what messages call the server.
    """

    def __init__(self, client: QdrantClient, where: str = "in memory") -> None:
        self._client = client
        self._where = where

    def collection(self, space: str, dimension: int, project_id: str) -> "ServerCollection":
        """A handle; touches nothing until used."""
        return ServerCollection(self._client, self._where, f"images_{space}", dimension, project_id)

    def check(self) -> str:
        """Where the server is and how many collections it holds. Raises StoreError."""
        with _explained(self._where):
            names = self._client.get_collections().collections
        return f"Qdrant at {self._where}: {len(names)} collections"

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


class ServerCollection:
    """One project's points in a shared collection. See `stores.protocol.Collection`.

    A point whose payload was given another project_id by hand belongs to that project.
    """

    def __init__(
        self, client: QdrantClient, where: str, name: str, dimension: int, project_id: str
    ) -> None:
        self._client = client
        self._where = where
        self._name = name
        self._dimension = dimension
        self._project_id = project_id
        self._is_ours = models.FieldCondition(
            key=PROJECT_FIELD, match=models.MatchValue(value=project_id)
        )

    def exists(self) -> bool:
        """Whether the project has any point here."""
        with _explained(self._where):
            if not self._client.collection_exists(self._name):
                return False
            return self._client.count(self._name, count_filter=self._ours()).count > 0

    def upsert(self, points: pl.DataFrame, vectors: Vectors) -> None:
        """Insert or replace whole points, 256 per request."""
        unit = unit_vectors(vectors, points.height, self._dimension)
        if points.is_empty():
            return
        with _explained(self._where):
            self._make()
            for start in range(0, points.height, _BATCH_POINTS):
                rows = points[start : start + _BATCH_POINTS]
                batch = models.Batch(
                    ids=_ids(rows["point_id"]),
                    vectors=unit[start : start + _BATCH_POINTS].tolist(),
                    payloads=payloads(rows),
                )
                self._client.upsert(self._name, points=batch, wait=True)

    def relabel(self, points: pl.DataFrame) -> None:
        """Replace the payload of points; those that are not there stay away."""
        if not self.exists():
            return
        with _explained(self._where):
            for start in range(0, points.height, _BATCH_POINTS):
                rows = points[start : start + _BATCH_POINTS]
                changes = zip(_ids(rows["point_id"]), payloads(rows), strict=True)
                self._client.batch_update_points(
                    self._name,
                    update_operations=[self._relabelled(*change) for change in changes],
                    wait=True,
                )

    def delete(self, point_ids: pl.Series) -> None:
        """Delete by id. A project that has no point left has no collection."""
        if not self.exists():
            return
        ids = _ids(point_ids)
        with _explained(self._where):
            for start in range(0, len(ids), _BATCH_POINTS):
                selected = self._ours(_has(ids[start : start + _BATCH_POINTS]))
                selector = models.FilterSelector(filter=selected)
                self._client.delete(self._name, points_selector=selector, wait=True)

    def scroll(self) -> Iterator[pl.DataFrame]:
        """Pages of 10,000 points, in the order of their ids."""
        for records in self._pages(_PAGE_POINTS, with_vectors=False):
            yield _frame(records)

    def scroll_vectors(self) -> Iterator[tuple[pl.DataFrame, Vectors]]:
        """Pages of 1,000 points, in the order of their ids."""
        for records in self._pages(_PAGE_POINTS_WITH_VECTORS, with_vectors=True):
            yield _frame(records), vectors_array([r.vector for r in records], self._dimension)

    def count(self) -> int:
        """Exact number of points."""
        self._require()
        with _explained(self._where):
            return self._client.count(self._name, count_filter=self._ours(), exact=True).count

    def nearest(self, vector: Vectors, limit: int, where: Filter = Filter()) -> pl.DataFrame:
        """Search among the project's points, with an index over each project where it is large."""
        query = unit_vectors(vector[None], 1, self._dimension)[0].tolist()
        selected = self._selected(where)

        def fetch(wanted: int) -> list[models.ScoredPoint]:
            return self._client.query_points(
                self._name, query=query, query_filter=selected, limit=wanted, with_payload=True
            ).points

        self._require()
        with _explained(self._where):
            return nearest_frame(fetch, limit)

    def drop(self) -> None:
        """Delete the project's points."""
        if self.exists():
            with _explained(self._where):
                selector = models.FilterSelector(filter=self._ours())
                self._client.delete(self._name, points_selector=selector, wait=True)

    def _make(self) -> None:
        if not self._client.collection_exists(self._name):
            self._client.create_collection(
                self._name,
                vectors_config=models.VectorParams(
                    size=self._dimension,
                    distance=models.Distance.COSINE,
                    datatype=models.Datatype.FLOAT16,
                ),
            )
        info = self._client.get_collection(self._name)
        self._check_dimension(info)
        # At every upsert: whoever made the collection may have died before it had its indexes.
        for field in {PROJECT_FIELD, DATASET_FIELD} - info.payload_schema.keys():
            schema = models.KeywordIndexParams(
                type=models.KeywordIndexType.KEYWORD, is_tenant=field == PROJECT_FIELD
            )
            self._client.create_payload_index(self._name, field, field_schema=schema, wait=True)

    def _check_dimension(self, info: models.CollectionInfo) -> None:
        params = info.config.params.vectors
        if not isinstance(params, models.VectorParams) or params.size != self._dimension:
            raise StoreError(
                f"{self._name} of Qdrant at {self._where} was not made for one vector of dimension "
                f"{self._dimension} per point; rename or delete that collection and sync again"
            )

    def _require(self) -> None:
        if not self.exists():
            raise CollectionMissing(
                f"{self._project_id}: no points in {self._name} of Qdrant at {self._where}; "
                "sync the project first"
            )

    def _pages(self, size: int, *, with_vectors: bool) -> Iterator[list[models.Record]]:
        self._require()
        start: Any = None
        while True:
            with _explained(self._where):
                records, start = self._client.scroll(
                    self._name,
                    scroll_filter=self._ours(),
                    limit=size,
                    offset=start,
                    with_payload=True,
                    with_vectors=with_vectors,
                )
            if records:
                yield records
            if start is None:
                return

    def _relabelled(
        self, point_id: models.ExtendedPointId, payload: dict[str, Any]
    ) -> models.OverwritePayloadOperation:
        # By filter, as by id a missing point is an error that stops the rest.
        change = models.SetPayload(payload=payload, filter=self._ours(_has([point_id])))
        return models.OverwritePayloadOperation(overwrite_payload=change)

    def _selected(self, where: Filter) -> models.Filter:
        must: list[models.Condition] = []
        if where.datasets is not None:
            match = models.MatchAny(any=list(where.datasets))
            must.append(models.FieldCondition(key=DATASET_FIELD, match=match))
        if where.image_ids is not None:
            must.append(self._has_images(where.image_ids))
        return self._ours(*must, must_not=[self._has_images(where.exclude_image_ids)])

    def _has_images(self, image_ids: tuple[str, ...]) -> models.HasIdCondition:
        series = pl.Series(image_ids, dtype=pl.String)
        return _has(_ids(ids_of_images(self._project_id, series)))

    def _ours(
        self, *must: models.Condition, must_not: list[models.Condition] | None = None
    ) -> models.Filter:
        return models.Filter(must=[self._is_ours, *must], must_not=must_not)


def _ids(point_ids: pl.Series) -> list[models.ExtendedPointId]:
    return [raw if isinstance(raw, int) else str(raw) for raw in qdrant_ids(point_ids)]


def _has(ids: list[models.ExtendedPointId]) -> models.HasIdCondition:
    return models.HasIdCondition(has_id=ids)


def _frame(records: list[models.Record]) -> pl.DataFrame:
    return points_frame([r.id for r in records], [r.payload for r in records])


@contextmanager
def _explained(where: str) -> Iterator[None]:
    """Turn whatever the client raises into a StoreError with the server's address and a remedy."""
    try:
        yield
    except EmbedPipelineError:
        raise
    except Exception as error:
        reason = _reason(error)
        if isinstance(error, ResponseHandlingException) or "UNAVAILABLE" in reason:
            remedy = "start it, or unset QDRANT_URL to use the embedded store"
            raise StoreError(f"Qdrant at {where} does not answer ({reason}); {remedy}") from error
        remedy = "check QDRANT_URL and QDRANT_API_KEY, and the server's log"
        raise StoreError(f"Qdrant at {where} refused: {reason}; {remedy}") from error


def _reason(error: Exception) -> str:
    """One line. A gRPC error's own text has several, and may hold what was sent."""
    code, details = getattr(error, "code", None), getattr(error, "details", None)
    if callable(code) and callable(details):
        return f"{code().name}: {details()}".partition("\n")[0]
    return str(error).partition("\n")[0] or type(error).__name__
