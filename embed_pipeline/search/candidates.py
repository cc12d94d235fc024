"""What a selection chooses from: the images in scope that have a vector, copies as one point."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from embed_pipeline.durable import explained
from embed_pipeline.errors import QueryError
from embed_pipeline.search.distances import Numbers, slices
from embed_pipeline.search.scope import in_scope
from embed_pipeline.search.selection import Selection
from embed_pipeline.search.taking import Quotas, Taking
from embed_pipeline.search.view import View
from embed_pipeline.vector_library import BLOCK_ROWS, Halves, VectorLibrary

WRITTEN_AT_ONCE = 1 << 24  # bytes


@dataclass(frozen=True)
class Candidates:
    """images: rows of the manifest with their `point`, sorted by point and image id.

    points: vectors of contents, (n, dimension), in the order of their first image's id. before: vectors of
    the images chosen before. used: the points among these.
    """

    images: pl.DataFrame
    points: Halves
    before: Halves
    used: list[int]

    def taking(self, quotas: Quotas = ()) -> Taking:
        """A choice among these, nothing taken yet."""
        return Taking(self.images, quotas, self.used)


def candidates_of(view: View, selection: Selection, found: Sequence[str] | None) -> Candidates:
    """The candidates of a selection; where `found` is given, only those among these image ids.

    Raises QueryError for a dataset that is nowhere, or an image `chosen` that the project does not have.
    Images chosen before that have no vector count for nothing.
    """
    images = _among(in_scope(view.manifest, selection), found, selection.chosen)
    contents = images["content_hash"].unique(maintain_order=True)
    points, known = _gathered(view, contents)
    numbers = pl.DataFrame({"content_hash": contents[known]}).with_row_index("point")
    earlier = _chosen_before(view.manifest, selection.chosen)
    before, _ = _gathered(view, earlier)
    used = numbers.join(earlier.to_frame(), on="content_hash", how="semi")["point"]
    return Candidates(
        images.join(numbers, on="content_hash").sort("point", "image_id"),
        points,
        before,
        used.to_list(),
    )


def _among(
    images: pl.DataFrame, found: Sequence[str] | None, chosen: Sequence[str]
) -> pl.DataFrame:
    readable = images.filter(
        pl.col("content_hash").is_not_null() & ~pl.col("image_id").is_in(list(chosen))
    )
    if found is not None:
        readable = readable.filter(pl.col("image_id").is_in(list(found)))
    return readable.sort("image_id")


def _chosen_before(manifest: pl.DataFrame, chosen: Sequence[str]) -> pl.Series:
    """The contents of these images, each once, in an order that does not depend on theirs."""
    rows = manifest.filter(pl.col("image_id").is_in(list(chosen))).sort("image_id")
    missing = set(chosen).difference(rows["image_id"])
    if missing:
        raise QueryError(f"{min(missing)}: no such image in the project; `chosen` takes image ids")
    return rows["content_hash"].drop_nulls().unique(maintain_order=True)


def _gathered(view: View, contents: pl.Series) -> tuple[Halves, Numbers]:
    settings = view.deployment.settings
    return gathered(view.library, contents, settings.selection_bytes, settings.home)


def gathered(
    library: VectorLibrary, contents: pl.Series, most_bytes: int, folder: Path
) -> tuple[Halves, Numbers]:
    """The vectors of those of `contents` that have one, in their order, and which ones these are.

    They are in memory up to `most_bytes`, beyond that in a file under `folder` that nobody else sees.
    Raises OutOfSpace.
    """
    matrix = _room(len(contents), library.dimension, most_bytes, folder)
    places = pl.DataFrame({"content_hash": contents}).with_row_index("place")
    there = np.zeros(len(contents), bool)
    for hashes, vectors in library.blocks(contents):
        block = hashes.to_frame("content_hash")
        at = block.join(places, on="content_hash", how="left", maintain_order="left")["place"]
        matrix[at.to_numpy()] = vectors
        there[at.to_numpy()] = True
    known = np.flatnonzero(there)
    if len(known) < len(contents):
        for rows in slices(len(known), BLOCK_ROWS):  # moved up, in place
            matrix[rows] = matrix[known[rows]]
    return matrix[: len(known)], known


def _room(rows: int, dimension: int, most_bytes: int, folder: Path) -> Halves:
    shape, size = (rows, dimension), rows * dimension * np.dtype(np.float16).itemsize
    if size <= most_bytes:
        return np.empty(shape, np.float16)
    with explained(folder), tempfile.TemporaryFile(dir=folder) as file:
        # Written, not only made that long: a full disk is to be an error here, not a signal later.
        for part in slices(size, WRITTEN_AT_ONCE):
            file.write(bytes(part.stop - part.start))
        file.flush()
        return np.memmap(file, np.float16, "r+", shape=shape)
