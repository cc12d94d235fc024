"""Locks between processes: who may go in, who is told what, and that nobody starves."""

import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from multiprocessing.context import SpawnProcess
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from embed_pipeline.locks import FairFileLock, FileLock, Holder, Locked

spawn = multiprocessing.get_context("spawn")


def hold(path: Path, holding: Event) -> None:
    """Take the lock and keep it."""
    with FileLock(path).acquire(5, "run abc"):
        holding.set()
        time.sleep(60)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A lock file whose folder is not there yet."""
    return tmp_path / "made on demand" / "x.lock"


@pytest.fixture
def holder(path: Path) -> Iterator[SpawnProcess]:
    """Another process that holds the lock."""
    holding = spawn.Event()
    process = spawn.Process(target=hold, args=(path, holding))
    process.start()
    assert holding.wait(20)
    yield process
    process.kill()
    process.join()


def named(path: Path) -> Holder:
    """Whoever holds the lock now."""
    holder = FileLock(path).holder()
    assert holder is not None
    return holder


def test_holder_is_named(path: Path, holder: SpawnProcess) -> None:
    """Whoever waits in vain is told, after the time it gave, which process holds the lock and for what."""
    started = time.monotonic()
    with pytest.raises(Locked) as caught:
        FileLock(path).acquire(0.3, "me")
    assert 0.3 <= time.monotonic() - started < 2
    assert (holder.pid, "run abc") == (caught.value.holder.pid, caught.value.holder.label)
    assert f"process {holder.pid} on {os.uname().nodename} (run abc, since 20" in str(caught.value)


def test_lock_dies_with_its_process(path: Path, holder: SpawnProcess) -> None:
    """A killed holder is no holder, and the lock is free at once."""
    assert named(path).pid == holder.pid
    holder.kill()
    holder.join()
    assert path.read_text()
    assert FileLock(path).holder() is None
    FileLock(path).acquire(0, "me").release()


def test_free_lock_has_no_holder(path: Path) -> None:
    """Nobody holds a lock that was never taken, or was let go; asking makes no file."""
    lock = FileLock(path)
    assert lock.holder() is None
    assert not path.exists()
    with lock.acquire(0, "me"):
        assert lock.held
        assert named(path).pid == os.getpid()
    assert not lock.held
    assert lock.holder() is None


def test_threads_exclude_each_other(path: Path) -> None:
    """One thread of a process at a time, through one object or several."""
    lock = FileLock(path)
    inside: list[int] = []
    most: list[int] = []

    def work(mine: FileLock) -> None:
        for _ in range(20):
            with mine.acquire(20, "thread"):
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    threads = [
        threading.Thread(target=work, args=(m,)) for m in (lock, FileLock(path), FileLock(path))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) == 60
    assert max(most) == 1


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_children_do_not_inherit(path: Path) -> None:
    """A child, forked or started anew, does not keep its parent's lock."""
    lock = FileLock(path).acquire(0, "parent")
    started_anew = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    read, write = os.pipe()
    if not (forked := os.fork()):
        os.close(write)
        os.read(read, 1)  # until the parent is done with its test
        os._exit(0)
    os.close(read)
    assert lock._descriptor is not None
    os.close(lock._descriptor)  # as if the parent had been killed: nobody unlocks
    lock._descriptor = None
    FileLock(path).acquire(5, "next").release()
    os.close(write)
    os.waitpid(forked, 0)
    started_anew.communicate(b"\n")


def test_deleted_file_is_no_lock(path: Path) -> None:
    """When the lock file is deleted under its holder, the next one locks the file of that name."""
    old = FileLock(path).acquire(0, "old")
    path.unlink()
    with FileLock(path).acquire(0, "new"):
        assert named(path).label == "new"
        old.release()
        assert named(path).label == "new"


def test_looking_does_not_get_in_the_way(path: Path) -> None:
    """A lock that is only being looked at can be taken without waiting."""
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            FileLock(path).holder()

    looker = threading.Thread(target=look)
    looker.start()
    for _ in range(200):
        FileLock(path).acquire(0, "me").release()
    stop.set()
    looker.join()


def test_fair_lock_lets_waiters_in(path: Path) -> None:
    """Who locks again and again goes behind a waiter each time, so nobody waits for long."""
    stop = threading.Event()

    def hog() -> None:
        lock = FairFileLock(path)
        while not stop.is_set():
            with lock.acquire(20, "hog"):
                time.sleep(0.02)

    hogs = threading.Thread(target=hog)
    hogs.start()
    waits = []
    for _ in range(10):
        started = time.monotonic()
        with FairFileLock(path).acquire(20, "waiter"):
            waits.append(time.monotonic() - started)
        time.sleep(0.01)
    stop.set()
    hogs.join()
    assert max(waits) < 0.5


def test_fair_lock_knows_that_it_is_wanted(path: Path) -> None:
    """The holder can see that somebody waits, and who waits in vain is told of the holder, not the queue."""
    held = FairFileLock(path).acquire(0, "holder")
    assert not held.is_wanted()
    errors: list[Locked] = []

    def wait() -> None:
        try:
            FairFileLock(path).acquire(0.5, "waiter")
        except Locked as error:
            errors.append(error)

    waiters = [threading.Thread(target=wait) for _ in range(2)]
    for waiter in waiters:
        waiter.start()
    time.sleep(0.1)
    assert held.is_wanted()
    for waiter in waiters:
        waiter.join()
    held.release()
    assert [error.holder.label for error in errors] == ["holder", "holder"]
    assert not held.is_wanted()
