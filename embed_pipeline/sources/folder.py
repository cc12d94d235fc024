"""Folders as a source: each sub-folder of the root is a project, its sub-folders are datasets.

A sub-folder in Supervisely's own format (`meta.json`, `DATASET/img/*`) is read as such. Images
directly in the root are one more project, with the root's name (and a `/` after it where a
sub-folder has that name already).
"""

import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice, repeat
from pathlib import Path

import polars as pl

from embed_pipeline.errors import ImageError, ProjectNotFound, TableError
from embed_pipeline.images.decode import image_size
from embed_pipeline.manifest import MANIFEST
from embed_pipeline.models.protocol import ORIGINAL
from embed_pipeline.sources.names import from_text, readable, to_text
from embed_pipeline.sources.protocol import CHANGED, Listing, ShowsNothing, Wanted
from embed_pipeline.sources.walk import Entry, Walk, inside, is_image, is_supervisely, unavailable
from embed_pipeline.tables import Table

PAGE_IMAGES = 10_000
HEAD_BYTES = 8 << 20
# A file can be written again within one tick of the file system's clock. A remembered hash is
# trusted only where the file was last touched this long before it was hashed (as git's index does).
SETTLED_NS = 2_000_000_000

HASHES = Table(
    "hashes",
    1,
    pl.Schema(
        {
            "path": pl.Binary(),
            "size": pl.Int64(),
            "mtime_ns": pl.Int64(),
            "ctime_ns": pl.Int64(),
            "hashed_at_ns": pl.Int64(),
            "content_hash": pl.Binary(),
            "width": pl.Int32(),
            "height": pl.Int32(),
        }
    ),
)


class FolderSource(ShowsNothing):
    """The projects under `root`. `hashes_of` names the file that remembers a project's hashes."""

    def __init__(self, root: Path, source_id: str, hashes_of: Callable[[str], Path]) -> None:
        self.root = os.fsencode(root)
        self.source_id = source_id
        self._hashes_of = hashes_of

    def projects(self) -> list[str]:
        """The sub-folders, and the root itself where it holds images directly."""
        items = [item for item in self._root_items() if not item.name.startswith(b".")]
        if is_supervisely(self.root):
            return [self._root_name]
        names = {to_text(item.name) for item in items if item.is_dir() and inside(item, self.root)}
        if any(item.is_file() and is_image(item.name) for item in items):
            names.add(self._root_name)
        return sorted(names)

    def revision(self, project: str, *, as_listed: bool = False) -> tuple[int, str]:
        """The number of images, and a digest of every image's path, size and times."""
        entries = sorted(self._walk(project))
        digest = hashlib.sha256()
        for entry in entries:
            digest.update(b"%b\0%d %d %d\0" % (entry.path, *entry[2:]))
        return len(entries), digest.hexdigest()[:16]

    def scan(self, project: str) -> Iterator[Listing]:
        """Read and hash the files whose size or times changed; remember the hashes of all."""
        walk = self._walk(project)
        remembered = self._remembered(project)
        seen: list[pl.DataFrame] = []
        entries = iter(walk)
        try:
            while page := list(islice(entries, PAGE_IMAGES)):
                hashed = self._hashed(walk.base, page, remembered)
                seen.append(hashed.select(HASHES.schema.names()))
                yield Listing(_manifest_rows(hashed))
        except BaseException:
            self._remember(project, [*seen, remembered])  # not to hash them again
            raise
        yield Listing(MANIFEST.empty(), walk.ignored)
        now = pl.concat([HASHES.empty(), *seen])
        if not now.equals(remembered):
            self._remember(project, [now])

    def rendition(self, side: int) -> str:
        """Files are read whole."""
        return ORIGINAL

    def fetch(self, project: str, wanted: Wanted, stop: threading.Event) -> bytes:
        """The file's bytes."""
        path = os.path.join(self._base(project), from_text(wanted.locator))
        try:
            data = _read(path, wanted.max_bytes)
        except FileNotFoundError as error:
            raise ImageError("fetch", "vanished", "the file is gone", transient=True) from error
        except OSError as error:
            raise ImageError("fetch", "unreadable", str(error.strerror), transient=True) from error
        if hashlib.sha256(data).digest() != wanted.content_hash:
            raise ImageError("fetch", "changed", CHANGED, transient=True)
        return data

    def changed(self, project: str, wanted: Sequence[Wanted]) -> set[bytes]:
        """None: `fetch` compared the content itself."""
        return set()

    def where(self, project: str, locator: str) -> str:
        """The file's path."""
        return os.fsdecode(os.path.join(self._base(project), from_text(locator)))

    @property
    def _root_name(self) -> str:
        name = os.path.basename(self.root.rstrip(b"/")) or b"root"
        return to_text(name + b"/" if os.path.isdir(os.path.join(self.root, name)) else name)

    def _root_items(self) -> list[os.DirEntry[bytes]]:
        try:
            with os.scandir(self.root) as items:
                return list(items)
        except OSError as error:
            raise unavailable(self.root, error) from error

    def _base(self, project: str) -> bytes:
        return (
            self.root if project == self._root_name else os.path.join(self.root, from_text(project))
        )

    def _walk(self, project: str) -> Walk:
        base = self._base(project)
        if not os.path.isdir(base):
            self._root_items()  # an unmounted root is not a project that is gone
            known = ", ".join(self.projects()[:10]) or "none"
            raise ProjectNotFound(
                f"{project}: no such project in {os.fsdecode(self.root)}; projects there: {known}"
            )
        # The root's sub-folders are projects of their own, unless the root is one in Supervisely's format.
        return Walk(base, self.root, recurse=base != self.root)

    def _remembered(self, project: str) -> pl.DataFrame:
        try:
            return HASHES.read(self._hashes_of(project))
        except TableError:
            return HASHES.empty()  # only a cache: every file is hashed again

    def _remember(self, project: str, hashes: list[pl.DataFrame]) -> None:
        known = pl.concat(hashes).unique("path", keep="first", maintain_order=True)
        HASHES.write(known, self._hashes_of(project))

    def _hashed(self, base: bytes, page: list[Entry], remembered: pl.DataFrame) -> pl.DataFrame:
        """The page's entries with their hashes: HASHES columns and dataset."""
        columns = ("path", "dataset", "size", "mtime_ns", "ctime_ns")
        entries = pl.DataFrame(page, schema=columns, orient="row")
        settled = remembered.filter(
            pl.max_horizontal("mtime_ns", "ctime_ns") + SETTLED_NS < pl.col("hashed_at_ns")
        )
        same_file = ["path", "size", "mtime_ns", "ctime_ns"]
        known = entries.join(settled, on=same_file, how="inner")
        changed = entries.join(settled, on=same_file, how="anti")
        return pl.concat([known, _hash(base, changed)], how="diagonal_relaxed")


def _read(path: bytes, max_bytes: int) -> bytes:
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > max_bytes:
            detail = f"{size:,} bytes; EMBED_MAX_IMAGE_BYTES allows {max_bytes:,}"
            raise ImageError("fetch", "too_many_bytes", detail)
        return file.read()


def _hash(base: bytes, entries: pl.DataFrame) -> pl.DataFrame:
    """Hash the entries' files side by side; those that vanished are left out."""
    paths = [os.path.join(base, path) for path in entries["path"]]
    started = time.time_ns()
    stopped = threading.Event()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            hashes = list(pool.map(_hash_file, paths, repeat(stopped)))
        except BaseException:
            stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    columns = {
        "content_hash": pl.Binary(),
        "width": pl.Int32(),
        "height": pl.Int32(),
        "gone": pl.Boolean(),
    }
    found = pl.DataFrame(hashes, schema=columns, orient="row")
    hashed = entries.with_columns(found).with_columns(hashed_at_ns=pl.lit(started))
    return hashed.filter(~pl.col("gone")).drop("gone")


def _hash_file(
    path: bytes, stopped: threading.Event
) -> tuple[bytes | None, int | None, int | None, bool]:
    """(sha256, width, height, whether the file is gone); no hash where it cannot be read."""
    try:
        with open(path, "rb") as file:
            head = file.read(HEAD_BYTES)
            digest = hashlib.sha256(head)
            while not stopped.is_set() and (more := file.read(HEAD_BYTES)):
                digest.update(more)
    except FileNotFoundError:
        return None, None, None, True
    except OSError:
        return None, None, None, False
    width, height = image_size(head) or (None, None)
    return digest.digest(), width, height, False


def _manifest_rows(hashed: pl.DataFrame) -> pl.DataFrame:
    ids = [to_text(path) for path in hashed["path"]]
    datasets = [to_text(dataset) for dataset in hashed["dataset"]]
    return hashed.select(
        pl.Series("image_id", ids, dtype=pl.String),
        pl.Series("dataset_id", datasets, dtype=pl.String),
        pl.Series("dataset_name", datasets, dtype=pl.String),
        pl.Series("name", [readable(path) for path in hashed["path"]], dtype=pl.String),
        "content_hash",
        pl.from_epoch(pl.col("mtime_ns"), "ns").dt.replace_time_zone("UTC").alias("updated_at"),
        "size",
        "width",
        "height",
        pl.Series("locator", ids, dtype=pl.String),
    ).cast(MANIFEST.schema)
