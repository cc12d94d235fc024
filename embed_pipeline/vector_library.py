"""The vector library: the vectors of one space by content hash, shared by all projects.

It is the record of vectors: a lost collection is filled from it with no model call. Parts are
immutable Parquet files. A content may stand in several of them: the vector in the newest counts.
A part's age is in its name. Whatever is merged takes the place of its sources: what was added in
the meantime is newer.
"""

import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from embed_pipeline.durable import explained
from embed_pipeline.errors import TableError
from embed_pipeline.locks import FileLock, Locked
from embed_pipeline.tables import Table

# A look-up over a thousand parts takes about 60 ms, so merging is rare and nothing cleverer is needed.
MERGE_ABOVE_PARTS = 200
SMALL_PART_ROWS = 50_000
MERGE_AT_MOST_ROWS = 500_000
KEEP_REPLACED_SECONDS = 24 * 3600
REPLACED = ".replaced"
LOCK_SECONDS = 60.0
BLOCK_ROWS = 65_536

Vectors = NDArray[np.float32]
Halves = NDArray[np.float16]


class VectorLibrary:
    """The parts under `root`: unit-norm vectors of length `dimension`, stored as float16."""

    def __init__(self, root: Path, dimension: int) -> None:
        self.root = root
        self.dimension = dimension
        columns = {"content_hash": pl.Binary(), "vector": pl.Array(pl.Float16(), dimension)}
        self._table = Table("vectors", 1, pl.Schema(columns))
        self._checked: set[Path] = set()

    @classmethod
    def at(cls, root: Path) -> "VectorLibrary":
        """The library under `root`, which has parts, of whatever dimension."""
        part = next(root.glob("part-*.parquet"))
        return cls(root, pl.read_parquet_schema(part)["vector"].shape[0])  # type: ignore[attr-defined]

    def content_hashes(self) -> pl.Series:
        """Every content that has a vector, once."""
        parts = self.parts()
        if not parts:
            return self._table.empty()["content_hash"]
        return self._scan(parts).select("content_hash").unique().collect()["content_hash"]

    def known(self, content_hashes: pl.Series) -> pl.Series:
        """Those of `content_hashes` (32 bytes each) that have a vector; each once, in no order."""
        return self._rows_of(content_hashes, ["content_hash"])["content_hash"]

    def vectors(self, content_hashes: pl.Series) -> tuple[pl.Series, Vectors]:
        """The known ones of `content_hashes`, each once, and their vectors in the same order.

        Vectors: (n, dimension) float32, exactly what a collection was given.
        """
        rows = self._rows_of(content_hashes, self._table.schema.names())
        return rows["content_hash"], self._to_float32(rows)

    def blocks(self, content_hashes: pl.Series) -> Iterator[tuple[pl.Series, Halves]]:
        """Contents among `content_hashes` with their vectors as stored, at most BLOCK_ROWS at a time.

        A content may come again: the last one counts. What has no vector does not come.
        """
        asked = pl.LazyFrame({"content_hash": content_hashes.drop_nulls().unique()})
        with self._damage_explained():
            for part in self.parts():
                rows = self._scan([part])
                hashes = rows.select("content_hash").with_row_index("row")
                wanted = hashes.join(asked, on="content_hash", how="semi").sort("row").collect()
                in_blocks = wanted.with_columns(block=pl.col("row") // BLOCK_ROWS)
                for block in in_blocks.partition_by("block"):
                    first, last = block["row"][0], block["row"][-1]
                    near = rows.slice(first, last - first + 1).collect()
                    found = near[block["row"] - first]
                    yield found["content_hash"], self._halves(found)

    def add(self, content_hashes: pl.Series, vectors: Vectors) -> Vectors:
        """Add a part of `vectors` (len(content_hashes), dimension). Durable when it returns.

        Returns the vectors as the library has them from now on, rounded to float16: newer than any
        that it had before. Raises OutOfSpace, leaving the library as it was; Locked where another
        process has been adding for long.
        """
        halves = vectors.astype(np.float16)
        column = pl.Series(halves, dtype=self._table.schema["vector"])
        rows = pl.DataFrame({"content_hash": content_hashes, "vector": column})
        with self._adding():
            self._write(rows, self._next_age())
        return halves.astype(np.float32)

    def parts(self) -> list[Path]:
        """The parts in use, oldest first."""
        # In this order: what took the place of a part is there before the part is marked.
        replaced = {marker.name for marker in self.root.glob("*" + REPLACED)}
        parts = sorted(self.root.glob("part-*.parquet"))
        return [part for part in parts if part.name + REPLACED not in replaced]

    def merge(self) -> int:
        """Merge small parts where they have piled up; returns how many were replaced.

        Replaced parts stay a day, for readers that listed them before. Does nothing where another
        process is merging.
        """
        if len(self.parts()) <= MERGE_ABOVE_PARTS:
            return 0
        try:
            with FileLock(self.root / "merge.lock").acquire(0, "merge"):
                self._remove_old()
                return self._merge_small()
        except Locked:
            return 0

    def remove(self, content_hashes: pl.Series) -> None:
        """Remove vectors. Their room is free a day later, as readers may have listed the parts before.

        Raises Locked where another process is merging.
        """
        gone = pl.DataFrame({"content_hash": content_hashes})
        with FileLock(self.root / "merge.lock").acquire(LOCK_SECONDS, "remove"):
            self._remove_old()
            for part in self.parts():
                rows = self._table.read(part)
                kept = rows.join(gone, on="content_hash", how="anti")
                if kept.height < rows.height:
                    self._replace([part], kept)

    def _merge_small(self) -> int:
        merged = 0
        for parts in self._neighbours():
            if len(parts) > 1:
                self._replace(parts, _newest(self._scan(parts).collect()))
                merged += len(parts)
        return merged

    def _replace(self, parts: Sequence[Path], rows: pl.DataFrame) -> None:
        """Put `rows` in the place of `parts`, neighbours in age."""
        if rows.height:
            self._write(rows, _age(parts[-1]))
        for part in parts:
            part.with_name(part.name + REPLACED).touch()

    def _neighbours(self) -> Iterator[list[Path]]:
        """Small parts to merge. A large one between two keeps its place, and so keeps them apart."""
        neighbours: list[Path] = []
        total = 0
        for part in self.parts():
            rows = pl.scan_parquet(part).select(pl.len()).collect().item()
            small = rows < SMALL_PART_ROWS
            if not small or total + rows > MERGE_AT_MOST_ROWS:
                yield neighbours
                neighbours, total = [], 0
            if small:
                neighbours.append(part)
                total += rows
        yield neighbours

    def _remove_old(self) -> None:
        for marker in self.root.glob("*" + REPLACED):
            if time.time() - marker.stat().st_mtime > KEEP_REPLACED_SECONDS:
                marker.with_name(marker.name.removesuffix(REPLACED)).unlink(missing_ok=True)
                marker.unlink()

    def _rows_of(self, content_hashes: pl.Series, columns: Sequence[str]) -> pl.DataFrame:
        parts = self.parts()
        if not parts or content_hashes.is_empty():
            return self._table.empty().select(columns)
        asked = pl.LazyFrame({"content_hash": content_hashes.drop_nulls().unique()})
        rows = self._scan(parts).select(columns)
        found = rows.join(asked, on="content_hash", how="semi", maintain_order="left")
        with self._damage_explained():
            return _newest(found.collect())

    @contextmanager
    def _damage_explained(self) -> Iterator[None]:
        try:
            yield
        except pl.exceptions.PolarsError as error:
            reason = str(error).splitlines()[0]
            raise TableError(
                f"{self.root}: a part is damaged ({reason}); delete that file, its images are "
                "embedded again by the next sync"
            ) from error

    def _scan(self, parts: Sequence[Path]) -> pl.LazyFrame:
        for part in set(parts) - self._checked:
            self._table.check(part)
        self._checked.update(parts)
        return pl.scan_parquet(list(parts))

    def _to_float32(self, rows: pl.DataFrame) -> Vectors:
        return self._halves(rows).astype(np.float32)

    def _halves(self, rows: pl.DataFrame) -> Halves:
        return rows["vector"].to_numpy().reshape(-1, self.dimension)

    def _adding(self) -> FileLock:
        """One part at a time is added: each is newer than all that could be seen before it."""
        with explained(self.root):
            return FileLock(self.root / "add.lock").acquire(LOCK_SECONDS, "add")

    def _next_age(self) -> int:
        # The clock may have been set back.
        newer = (_age(part) + 1 for part in self.root.glob("part-*.parquet"))
        return max([time.time_ns(), *newer])

    def _write(self, rows: pl.DataFrame, age: int) -> None:
        # Age first, so that a sorted listing is in order of age; the rest keeps names apart.
        name = f"part-{age:020d}-{secrets.token_hex(4)}.parquet"
        self._table.write(rows, self.root / name)


def _age(part: Path) -> int:
    """Nanoseconds since 1970, when it was added."""
    return int(part.name.split("-")[1])


def _newest(rows: pl.DataFrame) -> pl.DataFrame:
    """The last row of each content."""
    return rows.unique("content_hash", keep="last", maintain_order=True)
