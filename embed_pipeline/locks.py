"""Locks between the processes of one machine: flock on a file that says who holds it.

Linux and macOS (fcntl), on a local file system. A lock dies with its process, however that ends.
Threads of one process exclude each other too, and child processes do not inherit a lock.
"""

import fcntl
import json
import os
import socket
import time
import weakref
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from embed_pipeline.errors import EmbedPipelineError

_POLL_SECONDS = 0.005


@dataclass(frozen=True)
class Holder:
    """Who holds a lock. since: ISO-8601, UTC. label: the holder's work, say a run id."""

    pid: int
    host: str
    since: str
    label: str

    def __str__(self) -> str:
        """For messages: `process 4711 on host-a (run 5f0c…, since 2026-01-31T12:00:00+00:00)`."""
        if not self.pid:
            return "a process that could not write its name"
        return f"process {self.pid} on {self.host} ({self.label}, since {self.since})"


_NAMELESS = Holder(0, "", "", "")


class Locked(EmbedPipelineError):
    """The lock was held for as long as we were willing to wait."""

    retryable = True

    def __init__(self, path: Path, holder: Holder) -> None:
        super().__init__(f"{path}: held by {holder}; try again, or end that process if it hangs")
        self.path = path
        self.holder = holder


class FileLock:
    """Held by at most one thread of one process of this machine.

    with FileLock(path).acquire(wait_seconds=30, label=run_id):
        ...

    The file stays when the lock is let go: deleting it would let two processes lock two files.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    @property
    def held(self) -> bool:
        """Whether this object holds the lock."""
        return self._descriptor is not None

    def acquire(self, wait_seconds: float, label: str) -> Self:
        """Take the lock, trying at least once. Raises Locked after `wait_seconds`."""
        deadline = time.monotonic() + wait_seconds
        while not self._take(label):
            # Without a holder the file was only being looked at, by `holder` in another process.
            if time.monotonic() >= deadline and (holder := self.holder()):
                raise Locked(self.path, holder)
            time.sleep(_POLL_SECONDS)
        return self

    def release(self) -> None:
        """Let go. Nothing happens if this object does not hold the lock."""
        if self._descriptor is None:
            return
        descriptor, self._descriptor = self._descriptor, None
        os.ftruncate(descriptor, 0)
        # Closing alone would leave the lock with a process forked in another thread just now.
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)

    def holder(self) -> Holder | None:
        """Who holds the lock now, in this process or another; None if nobody does."""
        for _ in range(10):
            if not self.is_locked():
                return None
            if holder := self._read():
                return holder
            time.sleep(0.002)  # locked, and about to write its name
        return _NAMELESS

    def is_locked(self) -> bool:
        """Whether anybody holds the lock now."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        else:
            return False
        finally:
            os.close(descriptor)

    def __enter__(self) -> Self:
        """Hold the lock that `acquire` took."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Let go."""
        self.release()

    def _take(self, label: str) -> bool:
        # Opened anew at each try: the file that we waited for may have been deleted.
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if isinstance(error, BlockingIOError):
                return False
            raise
        self._descriptor = descriptor
        _held.add(self)
        self._write(descriptor, label)
        return True

    def _write(self, descriptor: int, label: str) -> None:
        since = datetime.now(UTC).isoformat(timespec="seconds")
        text = json.dumps(asdict(Holder(os.getpid(), socket.gethostname(), since, label))).encode()
        with suppress(OSError):  # a full disk may hide the name, it must not stop the work
            os.pwrite(descriptor, text, 0)
            os.ftruncate(descriptor, len(text))

    def _read(self) -> Holder | None:
        try:
            return Holder(**json.loads(self.path.read_bytes()))
        except (OSError, ValueError, TypeError):
            return None

    def _forget(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


class FairFileLock(FileLock):
    """A lock for short turns: who lets go and wants it again goes behind whoever already waits.

    flock alone is not fair: a process that locks in a loop keeps all others out. So each first
    passes a turnstile, a second lock that it keeps only until it has the first.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._turnstile = FileLock(path.with_name(f"{path.name}.turnstile"))

    def acquire(self, wait_seconds: float, label: str) -> Self:
        """Queue up and take the lock. Raises Locked after `wait_seconds`, of both together."""
        deadline = time.monotonic() + wait_seconds
        try:
            with self._turnstile.acquire(wait_seconds, label):
                return super().acquire(deadline - time.monotonic(), label)
        except Locked as error:
            raise Locked(self.path, self.holder() or error.holder) from None

    def is_wanted(self) -> bool:
        """Whether somebody waits for the lock."""
        return self._turnstile.is_locked()


_held: "weakref.WeakSet[FileLock]" = weakref.WeakSet()


def _forget_all() -> None:
    for lock in list(_held):
        lock._forget()  # noqa: SLF001  # of this module  # noqa: SLF001  # the same module


# A forked child shares its parent's descriptors, and with them the lock, until it closes them.
os.register_at_fork(after_in_child=_forget_all)
