"""Between our tables and what Qdrant keeps: ids, payloads, vectors. Shared by both stores."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol
from uuid import UUID

import numpy as np
import polars as pl

from embed_pipeline.errors import InvalidPoints
from embed_pipeline.points import PAYLOAD, POINTS
from embed_pipeline.stores.protocol import Vectors

DATASET_FIELD = "dataset_id"
PROJECT_FIELD = "project_id"

_UPDATED_AT_FORMAT = "%Y-%m-%dT%H:%M:%S%.6f+00:00"
_HASH_BYTES = 32

# What Qdrant knows a point by. Ours are UUIDs; numbers are points that somebody planted by hand.
QdrantId = UUID | int


def qdrant_ids(point_ids: pl.Series) -> list[QdrantId]:
    """From 16 bytes each. The inverse of the ids in `points_frame`."""
    return [_qdrant_id(point_id) for point_id in point_ids]


def payloads(points: pl.DataFrame) -> list[dict[str, Any]]:
    """One JSON-like dict per row of POINTS columns: content_hash in hex, updated_at ISO-8601."""
    return points.select(
        pl.col(PAYLOAD.names()).exclude("content_hash", "updated_at"),
        pl.col("content_hash").bin.encode("hex"),
        pl.col("updated_at").dt.strftime(_UPDATED_AT_FORMAT),
    ).to_dicts()


def points_frame(
    ids: Sequence[UUID | str | int], payloads: Sequence[dict[str, Any] | None]
) -> pl.DataFrame:
    """POINTS columns from what Qdrant returned. A missing or damaged field becomes null."""
    rows = [payload or {} for payload in payloads]
    columns = {name: _strings([row.get(name) for row in rows]) for name in PAYLOAD.names()}
    content_hash = pl.col("content_hash").str.decode("hex", strict=False)
    return pl.DataFrame(
        {"point_id": pl.Series([_id_bytes(raw) for raw in ids], dtype=pl.Binary), **columns}
    ).with_columns(
        pl.when(content_hash.bin.size() == _HASH_BYTES).then(content_hash),
        pl.col("updated_at")
        .str.to_datetime(_UPDATED_AT_FORMAT, time_unit="us", time_zone="UTC", strict=False)
        .cast(POINTS["updated_at"]),
    )


def unit_vectors(vectors: Vectors, rows: int, dimension: int) -> Vectors:
    """Check the vectors and bring them to unit norm: (rows, dimension) float32.

    Qdrant takes NaN without a word and leaves very short vectors as they are, so both end here.
    Raises InvalidPoints for NaN, infinite, zero or mis-sized vectors.
    """
    vectors = np.asarray(vectors)
    if vectors.shape != (rows, dimension):
        raise InvalidPoints(
            f"vectors of shape {vectors.shape} for {rows} points of dimension {dimension}; "
            "nothing was written"
        )
    wide = vectors.astype(np.float64)
    norms = np.linalg.norm(wide, axis=1, keepdims=True)
    bad = np.flatnonzero(~(np.isfinite(norms) & (norms > 0)))
    if bad.size:
        raise InvalidPoints(
            f"{bad.size} of {rows} vectors are NaN, infinite or zero, the first at row {bad[0]}; "
            "nothing was written"
        )
    unit: Vectors = (wide / norms).astype(np.float32)
    return unit


def vectors_array(raw: Sequence[Any], dimension: int) -> Vectors:
    """(len(raw), dimension) float32 from lists of numbers; a point without a vector gets NaN."""
    missing = [np.nan] * dimension
    rows = [vector if isinstance(vector, list) and vector else missing for vector in raw]
    return np.array(rows, dtype=np.float32).reshape(len(rows), dimension)


class Hit(Protocol):
    """A point that either engine found."""

    @property
    def id(self) -> UUID | str | int: ...  # noqa: D102
    @property
    def score(self) -> float: ...  # noqa: D102
    @property
    def payload(self) -> dict[str, Any] | None: ...  # noqa: D102
    @property
    def vector(self) -> Any: ...  # noqa: D102


def nearest_frame(
    fetch: Callable[[int], Sequence[Hit]], limit: int, dimension: int | None = None
) -> pl.DataFrame:
    """POINTS columns and `score` of the `limit` best; `fetch(n)` finds the n best, best first.

    dimension: where hits have vectors of that length, they become the column `vector`.

    The engines order exact ties as they like, also those on either side of the limit. So we fetch
    until the last score is below the one at the limit, and put ties in the order of point ids.
    """
    hits: Sequence[Hit] = []
    wanted = limit + 1
    while limit > 0:
        hits = fetch(wanted)
        if len(hits) < wanted or hits[-1].score < hits[limit - 1].score:
            break
        wanted *= 2
    best = sorted(hits, key=lambda hit: (-hit.score, _id_bytes(hit.id)))[:limit]
    points = points_frame([hit.id for hit in best], [hit.payload for hit in best])
    found = [pl.Series("score", [hit.score for hit in best], dtype=pl.Float64)]
    if dimension is not None:
        vectors = vectors_array([hit.vector for hit in best], dimension)
        found.append(pl.Series("vector", vectors, dtype=pl.Array(pl.Float32(), dimension)))
    return points.hstack(found)


def _id_bytes(raw: UUID | str | int) -> bytes:
    if isinstance(raw, UUID):
        return raw.bytes
    return raw.to_bytes(16, "big") if isinstance(raw, int) else UUID(raw).bytes


def _qdrant_id(point_id: bytes) -> QdrantId:
    # The version digit of a UUID lies in the first half, so that half is never zero.
    return UUID(bytes=point_id) if any(point_id[:8]) else int.from_bytes(point_id, "big")


def _strings(values: list[Any]) -> pl.Series:
    try:
        return pl.Series(values, dtype=pl.String)
    except (TypeError, pl.exceptions.PolarsError):
        return pl.Series([v if isinstance(v, str) else None for v in values], dtype=pl.String)
