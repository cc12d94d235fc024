"""One collection of the embedded store on disk: the engine's shard, and a note of whose it is.

    <space>/<hash of the project id>/collection.json   for people, and checked before opening
    <space>/<hash of the project id>/shard/            Qdrant Edge's own files

Nothing here locks: call it only in a turn (turns.py).
"""

import errno
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from qdrant_edge import (
    Distance,
    EdgeConfig,
    EdgeShard,
    EdgeVectorParams,
    PayloadSchemaType,
    UpdateOperation,
    VectorStorageDatatype,
)

from embed_pipeline.durable import explained_when_full, sync
from embed_pipeline.errors import EmbedPipelineError, OutOfSpace, StoreError, StoreLocked
from embed_pipeline.stores.records import DATASET_FIELD

SCHEMA_VERSION = 1

# The engine writes through memory maps of sparse files: on a full disk, opening or writing ends the
# process with SIGBUS, which nobody can catch. So we stop well before (a batch takes a few MB).
RESERVE_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Note:
    """What a shard directory says about itself."""

    project_id: str
    space: str
    dimension: int
    version: int = SCHEMA_VERSION


class ShardDirectory:
    """A collection's directory: there whole or not at all, whenever we are killed."""

    def __init__(self, path: Path, note: Note) -> None:
        self.path = path
        self.note = note
        self._note_path = path / "collection.json"

    def exists(self) -> bool:
        """Whether the collection was made and not dropped."""
        return self.inode() is not None

    def inode(self) -> int | None:
        """Which directory lies here: another after it was deleted and made again; None if none."""
        with self.explained("be looked at"):
            try:
                return self.path.stat().st_ino
            except FileNotFoundError:
                return None

    def make(self) -> None:
        """Make an empty shard under another name, sync it, and rename it. Raises OutOfSpace."""
        being_made = self.path.with_suffix(".making")
        self._clear_leftovers()
        with self.explained("be made"):
            being_made.mkdir(parents=True)
            require_space(being_made)
            _create_shard(being_made / "shard", self.note.dimension)
            (being_made / "collection.json").write_text(json.dumps(asdict(self.note), indent=2))
            for path in being_made.rglob("*"):
                sync(path)
            being_made.rename(self.path)
            sync(self.path.parent)

    def open(self) -> EdgeShard:
        """Load the shard. Raises OutOfSpace, or StoreError for a damaged one or another version."""
        self._check_note()
        require_space(self.path)
        with self.explained("be opened"):
            return EdgeShard.load(str(self.path / "shard"))

    def drop(self) -> None:
        """Delete the directory: first its name, so that a kill leaves all of it or nothing."""
        self._clear_leftovers()
        with self.explained("be dropped"):
            if self.exists():
                self.path.rename(self.path.with_suffix(".dropped"))
                sync(self.path.parent)
        self._clear_leftovers()

    @contextmanager
    def explained(self, what: str) -> Iterator[None]:
        """Turn the engine's bare exceptions into OutOfSpace or StoreError with the remedy."""
        try:
            with explained_when_full(self.path):
                yield
        except EmbedPipelineError:
            raise
        except BaseException as error:
            if not _is_failure(error):
                raise
            raise self._failure(what, error) from error

    def _failure(self, what: str, error: BaseException) -> StoreError:
        reason = str(error).partition("\n")[0] or type(error).__name__
        if "WouldBlock" in reason:
            return StoreLocked(f"{self.path}: another program has the shard open; close it")
        if isinstance(error, PermissionError) or f"os error {errno.EACCES}" in reason:
            return StoreError(f"{self.path}: no permission ({reason}); mend its owner or mode")
        return self._damaged(f"could not {what}: {reason}")

    def _check_note(self) -> None:
        try:
            found = json.loads(self._note_path.read_text())
            version = found["version"]
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise self._damaged(f"collection.json is unreadable: {error}") from error
        if version != SCHEMA_VERSION:
            raise StoreError(
                f"{self.path}: version {version} of the embedded store, this embed-pipeline reads "
                f"{SCHEMA_VERSION}; update embed-pipeline, or delete the directory and sync again"
            )
        if found != asdict(self.note):
            raise self._damaged(f"holds {found}, not {asdict(self.note)}")

    def _damaged(self, reason: str) -> StoreError:
        return StoreError(
            f"{self.path}: {reason}; delete this directory, and the next sync fills it again from "
            "the vector library, with nothing to embed"
        )

    def _clear_leftovers(self) -> None:
        for suffix in (".making", ".dropped"):
            with self.explained("be cleared"):
                leftover = self.path.with_suffix(suffix)
                if leftover.exists():
                    shutil.rmtree(leftover)


def require_space(path: Path) -> None:
    """Raise OutOfSpace unless the disk of `path` has room for more than the next batch."""
    free = shutil.disk_usage(path).free
    if free < RESERVE_BYTES:
        raise OutOfSpace(
            f"{path}: the disk is full ({free // 2**20} MB free, the embedded store keeps "
            f"{RESERVE_BYTES // 2**20} MB in reserve); free some space and sync again "
            "(what was already recorded is kept)"
        )


def _create_shard(path: Path, dimension: int) -> None:
    path.mkdir()
    vectors = EdgeVectorParams(
        size=dimension, distance=Distance.Cosine, datatype=VectorStorageDatatype.Float16
    )
    # Without a write-ahead log the engine does not notice a second process, and tears batches.
    config = EdgeConfig(vectors=vectors, max_search_threads=1, wal_enabled=True)
    shard = EdgeShard.create(str(path), config)
    # Filtered searches of 100,000 points: 2 ms with this index, 95 ms and more without.
    shard.update(UpdateOperation.create_field_index(DATASET_FIELD, PayloadSchemaType.Keyword))
    shard.flush()
    shard.close()


def _is_failure(error: BaseException) -> bool:
    """Whether the engine or the disk failed, and not a line of ours.

    The engine raises bare Exceptions, and panics of a class that cannot be imported.
    """
    panicked = type(error).__name__ == "PanicException"
    return type(error) is Exception or isinstance(error, OSError) or panicked
