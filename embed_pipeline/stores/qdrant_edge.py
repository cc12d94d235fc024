"""The embedded store: Qdrant's engine in this process, a shard and a lock per space and project.

No server to start. Every call is one turn at the shard, or several of at most about half a second,
so that searches go on while a run writes.
"""

import hashlib
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import polars as pl
import qdrant_edge as edge

from embed_pipeline.errors import CollectionMissing, StoreError
from embed_pipeline.points import POINTS
from embed_pipeline.points import point_ids as ids_of_images
from embed_pipeline.stores.protocol import Filter, Vectors
from embed_pipeline.stores.records import (
    DATASET_FIELD,
    QdrantId,
    nearest_frame,
    payloads,
    points_frame,
    qdrant_ids,
    unit_vectors,
    vectors_array,
)
from embed_pipeline.stores.shard import Note, ShardDirectory, require_space
from embed_pipeline.stores.turns import TURN_SECONDS, Keeper, Turns

_BATCH_POINTS = 512
_PAGE_POINTS = 10_000
_PAGE_POINTS_WITH_VECTORS = 2_000
# A filter looks at every point: 1 ms for 100,000. So many hits more take less.
_FEW_LEFT_OUT = 100


class EdgeCollection:
    """One shard. See `stores.protocol.Collection`."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self._dimension = turns.directory.note.dimension
        self._project_id = turns.directory.note.project_id

    def exists(self) -> bool:
        """Whether the shard is there. Waits for nobody."""
        return self._turns.directory.exists()

    def upsert(self, points: pl.DataFrame, vectors: Vectors) -> None:
        """Insert or replace whole points; 512 at a time are there together or not at all."""
        unit = unit_vectors(vectors, points.height, self._dimension)
        if points.is_empty():
            return
        starts = range(0, points.height, _BATCH_POINTS)
        self._write("upsert", (_upsert(points, unit, start) for start in starts), make=True)

    def relabel(self, points: pl.DataFrame) -> None:
        """Replace the payload of points; those that are not there stay away."""
        ids = qdrant_ids(points["point_id"])
        # By filter, as by id a missing point is an error that stops the rest.
        operations = (
            edge.UpdateOperation.overwrite_payload_by_filter(_has([point_id]), payload)
            for point_id, payload in zip(ids, payloads(points), strict=True)
        )
        with suppress(CollectionMissing):
            self._write("relabel", operations)

    def delete(self, point_ids: pl.Series) -> None:
        """Delete by id. A collection that has no point left is dropped."""
        ids = qdrant_ids(point_ids)
        starts = range(0, len(ids), _BATCH_POINTS)
        with suppress(CollectionMissing):
            self._write("delete", (_delete(ids, start) for start in starts))
            with self._turns.shard("delete") as shard:
                if not shard.scroll(edge.ScrollRequest(limit=1, with_payload=False))[0]:
                    self._turns.discard()

    def scroll(self) -> Iterator[pl.DataFrame]:
        """Pages of 10,000 points, in the order of their ids, one turn each."""
        for records in self._pages(_PAGE_POINTS, with_vector=False):
            yield _frame(records)

    def scroll_vectors(self) -> Iterator[tuple[pl.DataFrame, Vectors]]:
        """Pages of 2,000 points, in the order of their ids, one turn each."""
        for records in self._pages(_PAGE_POINTS_WITH_VECTORS, with_vector=True):
            yield _frame(records), vectors_array([r.vector for r in records], self._dimension)

    def of_images(self, image_ids: Sequence[str]) -> tuple[pl.DataFrame, Vectors]:
        """In one turn, without looking at other points."""
        if not image_ids:
            return POINTS.to_frame(), vectors_array([], self._dimension)
        with self._turns.shard("read") as shard:
            records = shard.retrieve(
                [*self._ids_of(image_ids)], with_payload=True, with_vector=True
            )
        return _frame(records), vectors_array([r.vector for r in records], self._dimension)

    def count(self) -> int:
        """Exact number of points."""
        with self._turns.shard("count") as shard:
            return shard.count(edge.CountRequest(exact=True))

    def nearest(
        self, vector: Vectors, limit: int, where: Filter = Filter(), *, with_vectors: bool = False
    ) -> pl.DataFrame:
        """Exact, not approximate: every point that the filter lets through is compared."""
        query = edge.Query.Nearest(unit_vectors(vector[None], 1, self._dimension)[0].tolist())
        dropped = self._ids_of(where.exclude_image_ids[:_FEW_LEFT_OUT])
        filtered = replace(where, exclude_image_ids=where.exclude_image_ids[_FEW_LEFT_OUT:])
        condition = self._condition(filtered)

        with self._turns.shard("search") as shard:

            def fetch(wanted: int) -> list[edge.ScoredPoint]:
                request = edge.QueryRequest(
                    limit=wanted + len(dropped),
                    query=query,
                    filter=condition,
                    with_payload=True,
                    with_vector=with_vectors,
                )
                return [hit for hit in shard.query(request) if hit.id not in dropped][:wanted]

            return nearest_frame(fetch, limit, self._dimension if with_vectors else None)

    def drop(self) -> None:
        """Delete the shard's directory."""
        self._turns.drop()

    def _write(
        self, label: str, operations: Iterable[edge.UpdateOperation], *, make: bool = False
    ) -> None:
        """Apply the operations in as many turns as they take, each flushed before it ends."""
        remaining = iter(operations)
        done = False
        while not done:
            with self._turns.shard(label, make=make) as shard:
                done = _apply(shard, remaining, self._turns.directory.path)
                shard.flush()

    def _pages(self, size: int, *, with_vector: bool) -> Iterator[list[edge.Record]]:
        """Pages by the id that the next one starts with, which holds while others write."""
        start: edge.PointId | None = None
        while True:
            request = edge.ScrollRequest(
                offset=start, limit=size, with_payload=True, with_vector=with_vector
            )
            with self._turns.shard("scroll") as shard:
                records, start = shard.scroll(request)
            if records:
                yield records
            if start is None:
                return

    def _condition(self, where: Filter) -> edge.Filter | None:
        must: list[edge.ConditionType] = []
        if where.datasets is not None:
            match = edge.MatchAny(list(where.datasets))
            must.append(edge.FieldCondition(DATASET_FIELD, match=match))
        if where.image_ids is not None:
            must.append(self._has_images(where.image_ids))
        must_not: list[edge.ConditionType] = []
        if where.exclude_image_ids:
            must_not.append(self._has_images(where.exclude_image_ids))
        return edge.Filter(must=must, must_not=must_not) if must or must_not else None

    def _has_images(self, image_ids: tuple[str, ...]) -> edge.HasIdCondition:
        return edge.HasIdCondition(self._ids_of(image_ids))

    def _ids_of(self, image_ids: Sequence[str]) -> set[QdrantId | str]:
        series = pl.Series(image_ids, dtype=pl.String)
        return set(qdrant_ids(ids_of_images(self._project_id, series)))


class QdrantEdgeStore:
    """All shards under `root`: root/<space>/<20 hex digits of the project id's sha256>.

    wait_seconds: how long a call waits for its turn before it raises StoreLocked.
    Safe to share between threads; open it anew in a forked child.
    """

    def __init__(self, root: Path, wait_seconds: float) -> None:
        self._root = root
        self._wait_seconds = wait_seconds
        self._keeper = Keeper()
        self._turns: dict[Note, Turns] = {}

    def collection(self, space: str, dimension: int, project_id: str) -> EdgeCollection:
        """A handle; touches nothing until used."""
        note = Note(project_id, space, dimension)
        directory = ShardDirectory(self._root / space / _key(project_id), note)
        # setdefault is atomic: two Turns at one shard would wait for each other.
        turns = self._turns.setdefault(note, Turns(directory, self._keeper, self._wait_seconds))
        return EdgeCollection(turns)

    def spaces(self, project_id: str) -> list[str]:
        """The spaces whose directories hold the project's shard."""
        try:
            return sorted(shard.parent.name for shard in self._root.glob(f"*/{_key(project_id)}"))
        except OSError as error:
            raise StoreError(f"{self._root}: {error.strerror}; mend its owner or mode") from error

    def check(self) -> str:
        """Where the store is, how much it holds and how much room there is."""
        nearest_parent = next(p for p in (self._root, *self._root.parents) if p.exists())
        require_space(nearest_parent)
        try:
            collections = sum(1 for _ in self._root.glob("*/*/collection.json"))
        except OSError as error:
            raise StoreError(f"{self._root}: {error.strerror}; mend its owner or mode") from error
        free_gigabytes = shutil.disk_usage(nearest_parent).free / 1e9
        return (
            f"embedded Qdrant in {self._root}: {collections} collections, "
            f"{free_gigabytes:.1f} GB free"
        )

    def close(self) -> None:
        """Close every shard that is still open."""
        for turns in list(self._turns.values()):
            turns.let_go()


def _key(project_id: str) -> str:
    return hashlib.sha256(project_id.encode()).hexdigest()[:20]


def _apply(shard: edge.EdgeShard, operations: Iterator[edge.UpdateOperation], path: Path) -> bool:
    """Apply operations until a turn's time is over. True if there are none left."""
    end = time.monotonic() + TURN_SECONDS
    for operation in operations:
        require_space(path)
        shard.update(operation)
        if time.monotonic() > end:
            return False
    return True


def _upsert(points: pl.DataFrame, unit: Vectors, start: int) -> edge.UpdateOperation:
    batch = points[start : start + _BATCH_POINTS]
    rows = zip(
        qdrant_ids(batch["point_id"]),
        unit[start : start + _BATCH_POINTS].tolist(),
        payloads(batch),
        strict=True,
    )
    return edge.UpdateOperation.upsert_points([edge.Point(*row) for row in rows])


def _delete(ids: Sequence[QdrantId], start: int) -> edge.UpdateOperation:
    return edge.UpdateOperation.delete_points([*ids[start : start + _BATCH_POINTS]])


def _has(ids: list[QdrantId]) -> edge.Filter:
    return edge.Filter(must=[edge.HasIdCondition(set(ids))])


def _frame(records: list[edge.Record]) -> pl.DataFrame:
    return points_frame([r.id for r in records], [r.payload for r in records])
