"""The embedded store among processes: kills, waiting, damage, a full disk."""

import json
import multiprocessing
import os
import random
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.context import SpawnProcess
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal
from qdrant_edge import EdgeShard

from embed_pipeline.errors import CollectionMissing, OutOfSpace, StoreError, StoreLocked
from embed_pipeline.points import POINTS
from embed_pipeline.stores import qdrant_edge, shard, turns
from embed_pipeline.stores.qdrant_edge import EdgeCollection, QdrantEdgeStore
from embed_pipeline_tests.store_samples import (
    BATCH,
    DIMENSION,
    SPACE,
    batch_ids,
    drop_and_die,
    edge_collection,
    hold_a_turn,
    make_and_die,
    points,
    vectors,
    write_for_ever,
)

Start = Callable[..., SpawnProcess]
spawn = multiprocessing.get_context("spawn")


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a function in another process; killed at the end if it still runs."""
    processes: list[SpawnProcess] = []

    def start(target: Callable[..., None], *args: object, **kwargs: object) -> SpawnProcess:
        processes.append(spawn.Process(target=target, args=args, kwargs=kwargs))
        processes[-1].start()
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.join()


def rows(collection: EdgeCollection) -> pl.DataFrame:
    """Everything that a collection holds, by point id."""
    return pl.concat([POINTS.to_frame(), *collection.scroll()]).sort("point_id")


def wait_for(condition: Callable[[], bool]) -> None:
    """Until the condition holds; fails after 20 s."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def only_directory(root: Path) -> Path:
    """The directory of the only shard."""
    (directory,) = [path for path in (root / SPACE).iterdir() if path.is_dir()]
    return directory


def test_killed_during_upserts(tmp_path: Path, start: Start) -> None:
    """Kill a writer at any moment: every acknowledged batch is there, and none in part."""
    acknowledged = tmp_path / "acknowledged"
    for seed in range(4):
        before = acknowledged.stat().st_size if seed else 0
        writer = start(write_for_ever, tmp_path, "p", acknowledged)
        wait_for(lambda b=before: acknowledged.exists() and acknowledged.stat().st_size > b)
        time.sleep(random.Random(seed).uniform(0, 0.3))
        writer.kill()
        writer.join()
        there = rows(edge_collection(tmp_path, "p"))
        batches = acknowledged.stat().st_size
        assert there.height in {batches * BATCH, (batches + 1) * BATCH}
        ids = [i for batch in range(batches) for i in batch_ids(batch)]
        expected = points("p", ids).sort("point_id")
        assert_frame_equal(expected, there.join(expected, on="point_id", how="semi"))


class Recorder:
    """A shard that notes what is called."""

    def __init__(self, opened: EdgeShard) -> None:
        self.opened = opened
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> object:
        self.calls.append(name)
        return getattr(self.opened, name)


def test_writes_are_flushed_before_they_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No turn that wrote ends without a flush: the engine itself leaves that to the next power cut."""
    opened = shard.ShardDirectory.open
    monkeypatch.setattr(shard.ShardDirectory, "open", lambda self: Recorder(opened(self)))
    monkeypatch.setattr(qdrant_edge, "TURN_SECONDS", 0)
    mine = edge_collection(tmp_path, "p")
    many = points("p", [f"{i}" for i in range(1000)])
    for write in (
        lambda: mine.upsert(many, vectors(1000)),
        lambda: mine.relabel(many[:2]),
        lambda: mine.delete(many["point_id"][:999]),
    ):
        write()
        recorder = mine._turns._shard
        assert isinstance(recorder, Recorder)
        writes = [call for call in recorder.calls if call in {"update", "flush"}]
        assert writes == ["update", "flush", "update", "flush", "flush"]
        recorder.calls.clear()


def test_locked_by_a_process(tmp_path: Path, start: Start) -> None:
    """Who waits in vain is told who is at it, after its time; other projects and `exists` do not wait."""
    holding = spawn.Event()
    mine = edge_collection(tmp_path, "p", wait_seconds=0.5)
    mine.upsert(points("p", ["a"]), vectors(1))
    holder = start(hold_a_turn, tmp_path, "p", holding)
    assert holding.wait(20)
    started = time.monotonic()
    with pytest.raises(StoreLocked, match=rf"^p: .* process {holder.pid} on .*\(upsert, since"):
        mine.count()
    assert 0.5 <= time.monotonic() - started < 2
    assert mine.exists()
    others = edge_collection(tmp_path, "other", wait_seconds=0)
    others.upsert(points("other", ["a"]), vectors(1))
    assert others.count() == 1


def test_searches_while_another_process_writes(tmp_path: Path, start: Start) -> None:
    """While one process writes without pause, each search of another waits for a turn or two at most."""
    acknowledged = tmp_path / "acknowledged"
    start(write_for_ever, tmp_path, "p", acknowledged)
    wait_for(acknowledged.exists)
    mine = edge_collection(tmp_path, "p")
    wait_for(mine.exists)
    waits, progress = [], []
    for _ in range(10):
        started = time.monotonic()
        mine.nearest(vectors(1)[0], 5)
        waits.append(time.monotonic() - started)
        progress.append(acknowledged.stat().st_size)
        time.sleep(0.05)
    assert max(waits) < 2
    assert progress[-1] > progress[0]


def test_shard_stays_open_until_wanted(tmp_path: Path) -> None:
    """A second call opens nothing, and another process gets in at once although the shard is open."""
    mine, other = edge_collection(tmp_path, "p"), edge_collection(tmp_path, "p")
    mine.upsert(points("p", ["a"]), vectors(1))
    opened = mine._turns._shard
    assert mine.count() == 1
    assert mine._turns._shard is opened
    assert other.count() == 1
    assert mine._turns._shard is None
    assert mine.count() == 1


def test_turns_back_to_back_let_others_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process whose turns leave no gap between them lets a waiter in at the end of each."""
    monkeypatch.setattr(turns.Keeper, "keep", lambda *_: None)
    mine, other = edge_collection(tmp_path, "p"), edge_collection(tmp_path, "p")
    mine.upsert(points("p", ["a"]), vectors(1))
    stop = threading.Event()

    def count_for_ever() -> None:
        while not stop.is_set():
            mine.count()

    counting = threading.Thread(target=count_for_ever)
    counting.start()
    started = time.monotonic()
    assert other.count() == 1
    assert time.monotonic() - started < 2
    other._turns.let_go()
    stop.set()
    counting.join()


def test_unused_shard_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shard that was not used for a while is closed, and the thread that watched it ends."""
    monkeypatch.setattr(turns, "_IDLE_SECONDS", 0.05)
    mine = edge_collection(tmp_path, "p")
    mine.upsert(points("p", ["a"]), vectors(1))
    wait_for(lambda: mine._turns._shard is None and not mine._turns._lock.held)
    wait_for(lambda: "embedded-store" not in {thread.name for thread in threading.enumerate()})


def test_threads_share_one_shard(tmp_path: Path) -> None:
    """Threads of one process write and read the same collection at the same time."""
    store = QdrantEdgeStore(tmp_path, 20)
    errors: list[Exception] = []

    def work(thread: int) -> None:
        try:
            for i in range(10):
                collection = store.collection(SPACE, DIMENSION, "p")
                collection.upsert(points("p", [f"{thread}/{i}"]), vectors(1))
                collection.nearest(vectors(1)[0], 3)
        except Exception as error:  # noqa: BLE001  # reported below, in the test's own thread
            errors.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert store.collection(SPACE, DIMENSION, "p").count() == 40
    store.close()


@pytest.mark.parametrize("at_sync", [1, 9, -1])
def test_killed_while_made(tmp_path: Path, start: Start, at_sync: int) -> None:
    """Kill a process while it makes a shard: the collection is missing or empty, and can be written."""
    start(make_and_die, tmp_path, "p", at_sync).join()
    mine = edge_collection(tmp_path, "p")
    assert mine.exists() == (at_sync == -1)
    mine.upsert(points("p", ["b"]), vectors(1))
    assert_frame_equal(points("p", ["b"]), rows(mine))
    assert only_directory(tmp_path).name == mine._turns.directory.path.name


@pytest.mark.parametrize("renamed", [True, False])
def test_killed_while_dropped(tmp_path: Path, start: Start, *, renamed: bool) -> None:
    """Kill a process while it drops a shard: all of it is there, or nothing."""
    mine = edge_collection(tmp_path, "p")
    mine.upsert(points("p", ["a", "b"]), vectors(2))
    start(drop_and_die, tmp_path, "p", renamed=renamed).join()
    assert mine.exists() != renamed
    if not renamed:
        assert mine.count() == 2
    mine.drop()
    assert not any(path.is_dir() for path in (tmp_path / SPACE).iterdir())


@pytest.mark.parametrize(
    ("file", "how"),
    [
        ("collection.json", "delete"),
        ("collection.json", "truncate"),
        ("shard/wal/first-index", "truncate"),
        ("shard/segments/*/segment.json", "delete"),
        ("shard/segments/*/vector_storage/vectors/status.dat", "truncate"),  # the engine panics
    ],
)
def test_damaged_shard(tmp_path: Path, file: str, how: str) -> None:
    """A damaged shard is an error in one line with the remedy, and the remedy works."""
    mine = edge_collection(tmp_path, "p")
    mine.upsert(points("p", ["a", "b"]), vectors(2))
    mine._turns.let_go()
    directory = only_directory(tmp_path)
    (victim,) = directory.glob(file)
    if how == "delete":
        victim.unlink()
    else:
        os.truncate(victim, victim.stat().st_size // 2)
    with pytest.raises(
        StoreError, match=f"{re.escape(str(directory))}: .* delete this directory"
    ) as caught:
        rows(mine)
    assert "\n" not in str(caught.value)
    shutil.rmtree(directory)
    with pytest.raises(CollectionMissing):
        mine.count()
    mine.upsert(points("p", ["a"]), vectors(1))
    assert mine.count() == 1


def test_damaged_shard_can_be_dropped(tmp_path: Path) -> None:
    """Dropping does not open the shard, so it works on a damaged one."""
    mine = edge_collection(tmp_path, "p")
    mine.upsert(points("p", ["a"]), vectors(1))
    mine._turns.let_go()
    shutil.rmtree(only_directory(tmp_path) / "shard")
    mine.drop()
    assert not mine.exists()


def test_other_version_is_refused(tmp_path: Path) -> None:
    """A shard of another version of the store is refused, with both versions and the remedy."""
    mine = edge_collection(tmp_path, "p")
    mine.upsert(points("p", ["a"]), vectors(1))
    mine._turns.let_go()
    note = only_directory(tmp_path) / "collection.json"
    content = json.loads(note.read_text())
    assert content == {"project_id": "p", "space": SPACE, "dimension": DIMENSION, "version": 1}
    note.write_text(json.dumps({**content, "version": 2}))
    with pytest.raises(StoreError, match=r"version 2 .* reads 1; update embed-pipeline, or delete"):
        mine.count()


def test_store_deleted_while_open(tmp_path: Path) -> None:
    """When the directory is deleted under an open shard, the collection is missing, not a ghost."""
    mine = edge_collection(tmp_path / "root", "p")
    mine.upsert(points("p", ["a"]), vectors(1))
    assert mine._turns._shard is not None
    shutil.rmtree(tmp_path / "root")
    with pytest.raises(CollectionMissing):
        mine.count()
    other = edge_collection(tmp_path / "root", "p")
    other.upsert(points("p", ["b", "c"]), vectors(2))
    assert mine.count() == 2


def test_full_disk_is_noticed_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too little room: OutOfSpace, and what was there stays; with room again it goes on."""
    mine = edge_collection(tmp_path, "p")
    mine.upsert(points("p", ["a"]), vectors(1))
    with monkeypatch.context() as patch:
        patch.setattr(shard, "RESERVE_BYTES", 2**60)
        for write in (mine, edge_collection(tmp_path, "new")):
            with pytest.raises(OutOfSpace, match="the disk is full"):
                write.upsert(points("p", ["b"]), vectors(1))
    assert_frame_equal(points("p", ["a"]), rows(mine))
    mine.upsert(points("p", ["b"]), vectors(1))
    assert mine.count() == 2


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 100 MB, of which a file fills 20 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=100m", "tmpfs", str(disk)]
    if (
        not sys.platform.startswith("linux")
        or subprocess.run(mount, capture_output=True, check=False).returncode
    ):
        pytest.skip("may not mount a small disk here: a disk that really fills up was not tested")
    (disk / "filler").write_bytes(bytes(20 * 2**20))
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_full_disk(small_disk: Path) -> None:
    """A disk that really fills up: OutOfSpace, not a crash, and everything acknowledged is kept."""
    mine = edge_collection(small_disk, "p")
    acknowledged = small_disk / "acknowledged"
    with pytest.raises(OutOfSpace):
        write_for_ever(small_disk, "p", acknowledged)
    (small_disk / "filler").unlink()
    assert mine.count() == acknowledged.stat().st_size * BATCH > 0
    mine._turns.let_go()


def test_no_permission(tmp_path: Path) -> None:
    """A store that may not be read is an error in one line, with the remedy."""
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    mine = edge_collection(tmp_path, "p")
    mine.upsert(points("p", ["a"]), vectors(1))
    mine._turns.let_go()
    (tmp_path / SPACE).chmod(0)
    with pytest.raises(StoreError, match="mend its owner or mode"):
        mine.upsert(points("p", ["a"]), vectors(1))
    (tmp_path / SPACE).chmod(0o700)


def test_embedded_store_does_not_import_the_client() -> None:
    """qdrant-client takes a second to import: the embedded store does without."""
    code = (
        "import sys, embed_pipeline.stores.qdrant_edge; from embed_pipeline.stores import open_store;"
        "from embed_pipeline.settings import load_settings; open_store(load_settings()).check();"
        "assert 'qdrant_client' not in sys.modules"
    )
    environment = {k: v for k, v in os.environ.items() if k != "QDRANT_URL"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
