"""A Qdrant server: one collection per space for all projects, each call filtered by project."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NoReturn

import polars as pl
from qdrant_client import QdrantClient, models

from embed_pipeline.errors import CollectionMissing
from embed_pipeline.patience import Patience
from embed_pipeline.points import POINTS
from embed_pipeline.stores.protocol import Filter, Vectors
from embed_pipeline.stores.qdrant_connection import Connection, Route, Updated
from embed_pipeline.stores.qdrant_filters import Filters, has, ids
from embed_pipeline.stores.qdrant_schema import SEARCH, Known, Quantization, Schema
from embed_pipeline.stores.records import (
    nearest_frame,
    payloads,
    points_frame,
    unit_vectors,
    vectors_array,
)
from embed_pipeline.stores.retrying import READS, WRITES

_PREFIX = "images_"
_BATCH_POINTS = 256
_PAGE_POINTS = 10_000
_PAGE_POINTS_WITH_VECTORS = 1_000


def connect(
    url: str,
    api_key: str | None = None,
    grpc_port: int = 6334,
    quantization: Quantization = "int8",
    *,
    reads: Patience = READS,
    writes: Patience = WRITES,
) -> "QdrantServerStore":
    """Make a store on the server at `url`, such as http://localhost:6333. Nothing is sent yet."""
    connection = Connection(Route(url, api_key, grpc_port), reads, writes)
    return QdrantServerStore(connection, quantization)


class QdrantServerStore:
    """All projects of a space share the collection `images_<space>`.

    quantization: of collections that this store makes; see `Schema`.
    """

    def __init__(self, connection: Connection, quantization: Quantization = "int8") -> None:
        self._connection = connection
        self._quantization = quantization
        self._known = Known()

    def collection(self, space: str, dimension: int, project_id: str) -> "ServerCollection":
        """A handle; touches nothing until used."""
        name = _PREFIX + space
        schema = Schema(self._connection, name, dimension, self._quantization, self._known)
        return ServerCollection(self._connection, schema, name, dimension, project_id)

    def spaces(self, project_id: str) -> list[str]:
        """The spaces whose collections hold a point of the project."""
        names = self._names(f"list the spaces of {project_id}")
        spaces = [name.removeprefix(_PREFIX) for name in names if name.startswith(_PREFIX)]
        # The dimension matters to no question that `exists` asks.
        return sorted(s for s in spaces if self.collection(s, 1, project_id).exists())

    def check(self) -> str:
        """Where the server is and how many collections it holds. Raises StoreError."""
        names = self._names("list the collections")
        return f"Qdrant at {self._connection.where}: {len(names)} collections"

    def close(self) -> None:
        """Close the connections. What other threads still wait for ends with StoreUnavailable."""
        self._connection.close()

    def _names(self, what: str) -> list[str]:
        listed = self._connection.read(what, QdrantClient.get_collections)
        return [collection.name for collection in listed.collections]


class ServerCollection:
    """One project's points in a shared collection. See `stores.protocol.Collection`.

    A point whose payload was given another project_id by hand belongs to that project.
    """

    def __init__(
        self,
        connection: Connection,
        schema: Schema,
        name: str,
        dimension: int,
        project_id: str,
    ) -> None:
        self._connection = connection
        self._schema = schema
        self._name = name
        self._dimension = dimension
        self._project_id = project_id
        self._filters = Filters(project_id)

    def exists(self) -> bool:
        """Whether the project has any point here."""

        def first(client: QdrantClient) -> list[models.Record]:
            return client.scroll(
                self._name, scroll_filter=self._filters.ours(), limit=1, with_payload=False
            )[0]

        try:
            return bool(self._connection.read(self._what("look for"), first))
        except CollectionMissing:
            return False

    def upsert(self, points: pl.DataFrame, vectors: Vectors) -> None:
        """Insert or replace whole points, 256 per request, three requests at once."""
        unit = unit_vectors(vectors, points.height, self._dimension)
        if points.is_empty():
            return
        self._schema.ensure()
        write = partial(self._write_batches, "upsert", points.height)
        upsert = partial(self._upsert, points, unit)
        try:
            write(upsert)
        except CollectionMissing:  # deleted since this process looked at it
            self._schema.forget()
            self._schema.ensure()
            write(upsert)

    def relabel(self, points: pl.DataFrame) -> None:
        """Replace the payload of points; those that are not there stay away."""
        with suppress(CollectionMissing):
            self._schema.require(self._connection.write)
            self._write_batches("relabel", points.height, partial(self._relabel, points))

    def delete(self, point_ids: pl.Series) -> None:
        """Delete by id. A project that has no point left has no collection."""
        delete = partial(self._delete, ids(point_ids))
        with suppress(CollectionMissing):
            self._schema.require(self._connection.write)
            self._write_batches("delete", len(point_ids), delete)

    def scroll(self) -> Iterator[pl.DataFrame]:
        """Pages of 10,000 points, in the order of their ids."""
        for records in self._pages(_PAGE_POINTS, with_vectors=False):
            yield _frame(records)

    def scroll_vectors(self) -> Iterator[tuple[pl.DataFrame, Vectors]]:
        """Pages of 1,000 points, in the order of their ids."""
        for records in self._pages(_PAGE_POINTS_WITH_VECTORS, with_vectors=True):
            yield _frame(records), vectors_array([r.vector for r in records], self._dimension)

    def of_images(self, image_ids: Sequence[str]) -> tuple[pl.DataFrame, Vectors]:
        """In one request."""
        if not image_ids:
            return POINTS.to_frame(), vectors_array([], self._dimension)
        chosen = self._filters.selected(Filter(image_ids=tuple(image_ids)))

        def read(client: QdrantClient) -> list[models.Record]:
            return client.scroll(
                self._name, scroll_filter=chosen, limit=len(image_ids), with_vectors=True
            )[0]

        self._schema.require(self._connection.read)
        records = self._connection.read(self._what("read"), read)
        if not records and not self.exists():
            self._missing()
        found = points_frame([r.id for r in records], [r.payload for r in records])
        return found, vectors_array([r.vector for r in records], self._dimension)

    def count(self) -> int:
        """Exact number of points."""

        def count(client: QdrantClient) -> int:
            return client.count(self._name, count_filter=self._filters.ours(), exact=True).count

        self._schema.require(self._connection.read)
        return self._connection.read(self._what("count"), count) or self._missing()

    def nearest(
        self, vector: Vectors, limit: int, where: Filter = Filter(), *, with_vectors: bool = False
    ) -> pl.DataFrame:
        """Search among the project's points, with an index over each project where it is large."""
        query = unit_vectors(vector[None], 1, self._dimension)[0].tolist()
        selected = self._filters.selected(where)

        def fetch(client: QdrantClient, wanted: int) -> Sequence[models.ScoredPoint]:
            return client.query_points(
                self._name,
                query=query,
                query_filter=selected,
                search_params=SEARCH,
                limit=wanted,
                with_payload=True,
                with_vectors=with_vectors,
            ).points

        def search(client: QdrantClient) -> pl.DataFrame:
            return nearest_frame(
                partial(fetch, client), limit, self._dimension if with_vectors else None
            )

        self._schema.require(self._connection.read)
        found = self._connection.read(self._what("search"), search)
        if found.is_empty() and not self.exists():
            self._missing()
        return found

    def drop(self) -> None:
        """Delete the project's points."""

        def drop(client: QdrantClient) -> models.UpdateResult:
            selector = models.FilterSelector(filter=self._filters.ours())
            return client.delete(self._name, points_selector=selector, wait=True)

        with suppress(CollectionMissing):
            self._schema.require_version(self._connection.write)
            self._connection.write_all(self._what("drop"), [drop])

    def _write_batches(
        self, verb: str, rows: int, write: Callable[[slice, QdrantClient], Updated]
    ) -> None:
        batches = [slice(i, i + _BATCH_POINTS) for i in range(0, rows, _BATCH_POINTS)]
        self._connection.write_all(self._what(verb), [partial(write, batch) for batch in batches])

    def _upsert(
        self, points: pl.DataFrame, unit: Vectors, batch: slice, client: QdrantClient
    ) -> models.UpdateResult:
        rows = points[batch]
        sent = models.Batch(
            ids=ids(rows["point_id"]), vectors=unit[batch].tolist(), payloads=payloads(rows)
        )
        return client.upsert(self._name, points=sent, wait=True)

    def _relabel(
        self, points: pl.DataFrame, batch: slice, client: QdrantClient
    ) -> list[models.UpdateResult]:
        rows = points[batch]
        changes = zip(ids(rows["point_id"]), payloads(rows), strict=True)
        operations = [self._relabelled(*change) for change in changes]
        return client.batch_update_points(self._name, update_operations=operations, wait=True)

    def _delete(
        self, chosen: list[models.ExtendedPointId], batch: slice, client: QdrantClient
    ) -> models.UpdateResult:
        selector = models.FilterSelector(filter=self._filters.ours(has(chosen[batch])))
        return client.delete(self._name, points_selector=selector, wait=True)

    def _pages(self, size: int, *, with_vectors: bool) -> Iterator[list[models.Record]]:
        def page(client: QdrantClient) -> tuple[list[models.Record], Any]:
            return client.scroll(
                self._name,
                scroll_filter=self._filters.ours(),
                limit=size,
                offset=start,
                with_payload=True,
                with_vectors=with_vectors,
            )

        self._schema.require(self._connection.write)
        start: Any = None
        first = True
        while first or start is not None:
            records, start = self._connection.write(self._what("scroll"), page)
            if records:
                yield records
            elif first:
                self._missing()
            first = False

    def _missing(self) -> NoReturn:
        raise CollectionMissing(
            f"{self._project_id}: no points in {self._name} of Qdrant at {self._connection.where}; "
            "sync the project first"
        )

    def _what(self, verb: str) -> str:
        return f"{verb} {self._project_id} in {self._name}"

    def _relabelled(
        self, point_id: models.ExtendedPointId, payload: dict[str, Any]
    ) -> models.OverwritePayloadOperation:
        # By filter, as by id a missing point is an error that stops the rest.
        change = models.SetPayload(payload=payload, filter=self._filters.ours(has([point_id])))
        return models.OverwritePayloadOperation(overwrite_payload=change)


def _frame(records: list[models.Record]) -> pl.DataFrame:
    return points_frame([r.id for r in records], [r.payload for r in records])
