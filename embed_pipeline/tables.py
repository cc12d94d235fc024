"""Parquet tables of ours: written whole or not at all, checked when read."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import polars as pl

from embed_pipeline.durable import replace_durably
from embed_pipeline.errors import TableError, TableMissing

KIND_KEY = "embed_pipeline.table"
VERSION_KEY = "embed_pipeline.version"


@dataclass(frozen=True)
class Table:
    """A kind of table: its name, the version of its form, and its columns."""

    name: str
    version: int
    schema: pl.Schema

    def empty(self) -> pl.DataFrame:
        """No rows, all columns."""
        return self.schema.to_frame()

    def write(self, frame: pl.DataFrame, path: Path, notes: Mapping[str, str] = {}) -> None:
        """Write durably under a temporary name, then rename: a reader sees the old table or the new one.

        `notes` travel with the table. Raises OutOfSpace, leaving the old table as it was.
        """
        metadata = {KIND_KEY: self.name, VERSION_KEY: str(self.version), **notes}
        rows = frame.select(self.schema.names()).cast(self.schema)
        replace_durably(path, lambda temporary: rows.write_parquet(temporary, metadata=metadata))

    def read(self, path: Path) -> pl.DataFrame:
        """The table at `path`. Raises TableMissing, or TableError for a damaged or newer file."""
        with self._open(path) as file:
            try:
                return pl.read_parquet(file, columns=self.schema.names()).cast(self.schema)
            except (pl.exceptions.PolarsError, OSError) as error:
                raise self._damaged(path, str(error)) from error

    def read_or_empty(self, path: Path) -> pl.DataFrame:
        """The table at `path`; no rows where there is no file."""
        try:
            return self.read(path)
        except TableMissing:
            return self.empty()

    def notes(self, path: Path) -> dict[str, str]:
        """What was noted when the table was written. Raises as `read`."""
        with self._open(path) as file:
            return dict(pl.read_parquet_metadata(file))

    def check(self, path: Path) -> None:
        """Raise TableError unless the file at `path` is a whole table of this kind and version."""
        with self._open(path):
            pass

    @contextmanager
    def _open(self, path: Path) -> Iterator[BinaryIO]:
        """The checked file, opened once: a path may be another file a moment later."""
        try:
            file = path.open("rb")
        except FileNotFoundError as error:
            raise TableMissing(
                f"{path}: there is no {self.name} of this project yet; sync the whole project first"
            ) from error
        except OSError as error:
            raise self._damaged(path, str(error)) from error
        with file:
            self._check(path, file)
            file.seek(0)
            yield file

    def _check(self, path: Path, file: BinaryIO) -> None:
        try:
            metadata = pl.read_parquet_metadata(file)
        except (pl.exceptions.PolarsError, OSError) as error:
            raise self._damaged(path, str(error)) from error
        if metadata.get(KIND_KEY) != self.name:
            raise self._damaged(path, f"it is not a table of kind {self.name!r}")
        version = metadata.get(VERSION_KEY, "")
        if version != str(self.version):
            raise TableError(
                f"{path}: written by another version of embed-pipeline ({self.name} {version}, this one "
                f"reads {self.version}); update embed-pipeline, or delete the file to have it made again"
            )

    def _damaged(self, path: Path, reason: str) -> TableError:
        first_line = reason.splitlines()[0] if reason else "unreadable"
        return TableError(
            f"{path}: damaged table ({first_line}); delete the file to have it made again"
        )
