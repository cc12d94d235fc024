"""Walking a project's folder: which files are its images, and of which dataset."""

import errno
import os
import stat
from collections.abc import Iterator
from typing import NamedTuple

from embed_pipeline.errors import SourceUnavailable

# A test holds this against the formats that the decoder allows.
EXTENSIONS = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".bmp", ".dib", ".gif"),
        *(".tif", ".tiff", ".pcx", ".avif", ".heic", ".heif"),
    }
)
_VANISHED = (FileNotFoundError, NotADirectoryError)


class Entry(NamedTuple):
    """One image file: path and dataset relative to the project's folder; times in nanoseconds."""

    path: bytes
    dataset: bytes
    size: int
    mtime_ns: int
    ctime_ns: int


class Walk:
    """The images under `base`, in no order; `ignored` counts the other files seen so far.

    Links that lead out of `root`, hidden names and what vanishes meanwhile are left out. A folder
    that cannot be listed raises SourceUnavailable: half a listing is never taken for the whole.
    """

    def __init__(self, base: bytes, root: bytes, *, recurse: bool = True) -> None:
        self.base = base
        self.root = os.path.realpath(root)
        self.recurse = recurse
        self.ignored = 0

    def __iter__(self) -> Iterator[Entry]:
        if is_supervisely(self.base):
            yield from self._supervisely(self.base, b"")
        else:
            yield from self._plain()

    def _plain(self) -> Iterator[Entry]:
        # Each folder with the identities of those above it: a link back up would never end.
        pending: list[tuple[bytes, frozenset[tuple[int, int]]]] = [(b"", frozenset())]
        while pending:
            folder, above = pending.pop()
            for item in self._list(folder):
                path = os.path.join(folder, item.name)
                info = self._stat(item)
                if info is None:
                    continue
                if not stat.S_ISDIR(info.st_mode):
                    yield from self._image(path, folder, info)
                elif self.recurse and (identity := (info.st_dev, info.st_ino)) not in above:
                    pending.append((path, above | {identity}))

    def _supervisely(self, folder: bytes, dataset: bytes) -> Iterator[Entry]:
        for item in self._list(os.path.relpath(folder, self.base)):
            name = os.path.join(dataset, item.name)
            images = os.path.relpath(os.path.join(item.path, b"img"), self.base)
            if item.is_dir() and os.path.isdir(os.path.join(self.base, images)):
                for image in self._list(images):
                    if info := self._stat(image):
                        yield from self._image(os.path.join(images, image.name), name, info)
            nested = os.path.join(item.path, b"datasets")
            if os.path.isdir(nested):
                yield from self._supervisely(nested, name)

    def _image(self, path: bytes, dataset: bytes, info: os.stat_result) -> Iterator[Entry]:
        if stat.S_ISREG(info.st_mode) and is_image(path):
            yield Entry(path, dataset, info.st_size, info.st_mtime_ns, info.st_ctime_ns)
        else:
            self.ignored += 1

    def _list(self, folder: bytes) -> list[os.DirEntry[bytes]]:
        path = os.path.join(self.base, folder)
        try:
            with os.scandir(path) as items:
                return sorted(filter(self._visible, items), key=lambda item: item.name)
        except _VANISHED as error:
            if folder in (b"", b"."):
                raise unavailable(path, error) from error
            return []
        except OSError as error:
            raise unavailable(path, error) from error

    def _visible(self, item: os.DirEntry[bytes]) -> bool:
        return not item.name.startswith(b".") and inside(item, self.root)

    def _stat(self, item: os.DirEntry[bytes]) -> os.stat_result | None:
        try:
            return item.stat()
        except _VANISHED:
            return None
        except OSError as error:
            if error.errno == errno.ELOOP:
                return None
            raise unavailable(item.path, error) from error


def is_image(path: bytes) -> bool:
    """Whether the name has an extension of a known image format."""
    return os.path.splitext(path)[1].lower().decode(errors="replace") in EXTENSIONS


def is_supervisely(folder: bytes) -> bool:
    """Whether the folder is a project in Supervisely's own format: `meta.json` and `DATASET/img`."""
    if not os.path.isfile(os.path.join(folder, b"meta.json")):
        return False
    with os.scandir(folder) as items:
        return any(os.path.isdir(os.path.join(item.path, b"img")) for item in items)


def inside(item: os.DirEntry[bytes], root: bytes) -> bool:
    """Whether an item is, or as a link leads to, something inside `root`, a real path."""
    if not item.is_symlink():
        return True
    return os.path.commonpath([os.path.realpath(item.path), root]) == root


def unavailable(path: bytes, error: OSError) -> SourceUnavailable:
    """Say of a folder that it cannot be listed, and what to do."""
    return SourceUnavailable(
        f"{os.fsdecode(path)}: cannot be listed ({error.strerror}); nothing was removed. "
        "Check that it is mounted and readable, then sync again"
    )
