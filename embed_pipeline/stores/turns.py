"""Who works on a shard of the embedded store, and for how long.

Opening a shard costs 30 ms at 10,000 points and 150 ms at 100,000, in which no other thread of the
process runs. So a process keeps the shard, and the lock, after its turn, until somebody waits for it or it
was not used for a while; and who takes turn after turn keeps it for TURN_SECONDS, whoever waits.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from qdrant_edge import EdgeShard

from embed_pipeline.errors import CollectionMissing, EmbedPipelineError, StoreError, StoreLocked
from embed_pipeline.locks import FairFileLock, Holder, Locked
from embed_pipeline.stores.shard import ShardDirectory

TURN_SECONDS = 0.4
# Who has not come back after that long is doing something else. Not less: each time that a shard changes
# hands, searches of all projects in that process wait until it is opened again.
_BREATH_SECONDS = 0.15
_IDLE_SECONDS = 2.0
_POLL_SECONDS = 0.01


class Turns:
    """Turns at one shard, for all threads of this process."""

    def __init__(self, directory: ShardDirectory, keeper: "Keeper", wait_seconds: float) -> None:
        self.directory = directory
        self._keeper = keeper
        self._wait_seconds = wait_seconds
        self._threads = threading.Lock()
        self._lock = FairFileLock(directory.path.with_suffix(".lock"))
        self._shard: EdgeShard | None = None
        self._inode: int | None = None
        self._taken_at = 0.0
        self._used_at = 0.0

    @contextmanager
    def shard(self, label: str, *, make: bool = False) -> Iterator[EdgeShard]:
        """Take a turn: the shard is ours alone inside the block. Be quick, flush what you wrote.

        label: what a process that waits in vain is told. make: make the shard if there is none.
        Raises CollectionMissing, having created nothing; StoreLocked, StoreError, OutOfSpace.
        """
        if not make:
            self._require()
        with self._exclusive(label):
            if self._shard is None:
                if make and not self.directory.exists():
                    self.directory.make()
                self._require()
                self._inode = self.directory.inode()
                self._shard = self.directory.open()
                self._keeper.keep(self)
            with self.directory.explained(label):
                yield self._shard

    def drop(self) -> None:
        """Delete the shard, also a damaged one. No error where there is none."""
        if self.directory.path.parent.exists():
            with self._exclusive("drop"):
                self.discard()

    def discard(self) -> None:
        """Delete the shard, inside a turn."""
        self._close()
        self.directory.drop()

    def let_go(self) -> None:
        """Close the shard if this process keeps it open, so that others need not wait."""
        with self._threads:
            self._let_go()

    def let_go_if_unused(self) -> bool:
        """Close the shard if somebody waits for it, or nobody used it of late. True if closed."""
        if not self._threads.acquire(blocking=False):
            return False
        try:
            unused = time.monotonic() - self._used_at
            if unused > _IDLE_SECONDS or (unused > _BREATH_SECONDS and self._lock.is_wanted()):
                self._let_go()
            return self._shard is None
        finally:
            self._threads.release()

    @contextmanager
    def _exclusive(self, label: str) -> Iterator[None]:
        deadline = time.monotonic() + self._wait_seconds
        if not self._threads.acquire(timeout=self._wait_seconds):
            raise self._locked(self._lock.holder())
        try:
            self._acquire(label, deadline)
            yield
            self._used_at = time.monotonic()
            if self._shard is None or (self._is_long() and self._lock.is_wanted()):
                self._let_go()
        except BaseException:
            self._let_go()
            raise
        finally:
            self._threads.release()

    def _acquire(self, label: str, deadline: float) -> None:
        if self._lock.held and self.directory.inode() != self._inode:
            self._let_go()  # the directory was deleted under us: its files are nobody's any more
        if not self._lock.held:
            try:
                self._lock.acquire(deadline - time.monotonic(), label)
                self._taken_at = time.monotonic()
            except Locked as error:
                raise self._locked(error.holder) from None
            except OSError as error:
                path = self._lock.path
                raise StoreError(f"{path}: {error.strerror}; mend its owner or mode") from error

    def _is_long(self) -> bool:
        return time.monotonic() - self._taken_at > TURN_SECONDS

    def _let_go(self) -> None:
        try:
            self._close()
        finally:
            self._lock.release()

    def _close(self) -> None:
        shard, self._shard = self._shard, None
        if shard is not None:
            with self.directory.explained("be closed"):
                shard.close()

    def _require(self) -> None:
        if not self.directory.exists():
            note = self.directory.note
            raise CollectionMissing(
                f"{note.project_id}: no collection in space {note.space}; sync the project first"
            )

    def _locked(self, holder: Holder | None) -> StoreLocked:
        return StoreLocked(
            f"{self.directory.note.project_id}: collection in use by {holder or 'another thread'}; "
            f"waited {self._wait_seconds:g} s; try again, or end that process if it hangs"
        )


class Keeper:
    """Watches the shards that are kept open, from one thread that lives while there are any."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: set[Turns] = set()
        self._watching = False

    def keep(self, turns: Turns) -> None:
        """Watch a shard that was just opened."""
        with self._lock:
            self._kept.add(turns)
            if not self._watching:
                self._watching = True
                threading.Thread(target=self._watch, name="embedded-store", daemon=True).start()

    def _watch(self) -> None:
        while True:
            time.sleep(_POLL_SECONDS)
            with self._lock:
                self._kept = {turns for turns in self._kept if not self._is_closed(turns)}
                if not self._kept:
                    self._watching = False
                    return

    def _is_closed(self, turns: Turns) -> bool:
        try:
            return turns.let_go_if_unused()
        except (EmbedPipelineError, OSError):
            # What it had to keep was flushed in its last turn; nobody may wait for it for ever.
            with suppress(EmbedPipelineError, OSError):
                turns.let_go()
            return True
