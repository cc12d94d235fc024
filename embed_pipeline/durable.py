"""Files that are there whole or not at all, also after a power cut."""

import errno
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from embed_pipeline.errors import NotWritable, OutOfSpace

TEMPORARY_PREFIX = ".writing-"


def replace_durably(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` on a temporary name beside `path`, sync it, and rename it to `path`.

    Raises OutOfSpace or NotWritable; `path` is then what it was before.
    """
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}-{path.name}")
    try:
        with explained(path):
            write(temporary)
            sync(temporary)
            temporary.replace(path)
            sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Force a file or a directory to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn a full disk into OutOfSpace, and one that may not be written into NotWritable."""
    try:
        with explained_when_full(path):
            yield
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise NotWritable(
                f"{path}: cannot be written ({error.strerror}); mend the owner or mode of "
                f"{path.parent}, or set EMBED_HOME to another place"
            ) from error
        raise


@contextmanager
def explained_when_full(path: Path) -> Iterator[None]:
    """Turn a full disk, however the writer words it, into OutOfSpace."""
    try:
        yield
    except Exception as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or "No space left" in str(error) or "os error 28" in str(error):
            raise OutOfSpace(
                f"{path}: the disk is full; free some space under {path.parent} and sync again "
                "(what was already recorded is kept)"
            ) from error
        raise
