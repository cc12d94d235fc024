"""What a vector store is to the rest of the project."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import polars as pl
from numpy.typing import NDArray

Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class Filter:
    """Which points a search may return. None: no restriction.

    datasets: dataset ids. image_ids: image ids. exclude_image_ids: never returned.
    """

    datasets: tuple[str, ...] | None = None
    image_ids: tuple[str, ...] | None = None
    exclude_image_ids: tuple[str, ...] = ()


class Collection(Protocol):
    """One project's points in one space. No call reaches another project's points.

    Writes are durable when they return: a kill or a power cut afterwards loses nothing.
    Writes create the collection where it is missing; reads never do.
    Every call raises StoreLocked or StoreError, and reads raise CollectionMissing.
    """

    def exists(self) -> bool:
        """Whether the project has points here: a collection lasts from its first point to its last."""
        ...

    def upsert(self, points: pl.DataFrame, vectors: Vectors) -> None:
        """Insert or replace whole points. `points`: POINTS columns; `vectors`: (len(points), dimension).

        Raises InvalidPoints, before anything is written, for NaN, infinite or mis-sized vectors.
        """
        ...

    def relabel(self, points: pl.DataFrame) -> None:
        """Replace the payload of existing points, vectors untouched. `points`: POINTS columns."""
        ...

    def delete(self, point_ids: pl.Series) -> None:
        """Delete by id (16 bytes each); ids that are not there are no error."""
        ...

    def scroll(self) -> Iterator[pl.DataFrame]:
        """Every point once, in pages of POINTS columns. A damaged payload field comes back as null."""
        ...

    def scroll_vectors(self) -> Iterator[tuple[pl.DataFrame, Vectors]]:
        """As `scroll`, each page with its vectors (len(page), dimension)."""
        ...

    def of_images(self, image_ids: Sequence[str]) -> tuple[pl.DataFrame, Vectors]:
        """The points of those of `image_ids` that have one, in no order: POINTS columns, (n, dimension)."""
        ...

    def count(self) -> int:
        """Exact number of points."""
        ...

    def nearest(
        self, vector: Vectors, limit: int, where: Filter = Filter(), *, with_vectors: bool = False
    ) -> pl.DataFrame:
        """The `limit` points nearest to `vector` (dimension,), best first, exact ties by point id.

        POINTS columns and `score`: cosine similarity, Float64. with_vectors: also the column `vector`, an
        Array of Float32; NaN where a point has none.
        """
        ...

    def drop(self) -> None:
        """Delete the collection's points in this space, whatever their dimension. No error where none are."""
        ...


class VectorStore(Protocol):
    """All collections of one deployment."""

    def collection(self, space: str, dimension: int, project_id: str) -> Collection:
        """A handle; touches nothing until used."""
        ...

    def spaces(self, project_id: str) -> list[str]:
        """The spaces in which the project has points, sorted. Reads only. Raises StoreError."""
        ...

    def check(self) -> str:
        """One line about the store for `doctor`. Raises StoreError if it cannot be used."""
        ...

    def close(self) -> None:
        """Let go of connections and shards. The next use opens them again."""
        ...
