"""Tables, the vector library and the failures: what is on disk is whole, ours, and of this version."""

import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event

import numpy as np
import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from embed_pipeline import vector_library
from embed_pipeline.errors import ImageError, OutOfSpace, TableError
from embed_pipeline.failures import FAILURES, failure_row, not_due, record
from embed_pipeline.tables import Table
from embed_pipeline.vector_library import VectorLibrary

TABLE = Table("things", 1, pl.Schema({"name": pl.String(), "hash": pl.Binary()}))
ROWS = pl.DataFrame({"name": ["é\n", "b"], "hash": [b"\0\xff", None]}, schema=TABLE.schema)


class TestTable:
    def test_what_is_written_is_read(self, tmp_path: Path) -> None:
        """Rows and notes come back as they were."""
        TABLE.write(ROWS, tmp_path / "t.parquet", {"revision": "7"})
        assert TABLE.read(tmp_path / "t.parquet").equals(ROWS)
        assert TABLE.notes(tmp_path / "t.parquet")["revision"] == "7"

    def test_a_reader_sees_one_table_while_it_is_replaced(self, tmp_path: Path) -> None:
        """Never a part of the old one and a part of the new one, as search reads while a run writes."""
        path, over = tmp_path / "t.parquet", Event()
        tables = [pl.concat([ROWS] * size) for size in (10, 700, 5_000)]
        TABLE.write(tables[0], path)

        def read() -> set[int]:
            sizes = set()
            while not over.is_set():
                sizes.add(TABLE.read(path).height)
            return sizes

        with ThreadPoolExecutor(1) as pool:
            seen = pool.submit(read)
            for number in range(100):
                TABLE.write(tables[number % 3], path)
            over.set()
            assert seen.result() <= {table.height for table in tables}

    def test_another_version_is_refused(self, tmp_path: Path) -> None:
        """A table of a newer embed-pipeline is refused by name, version and remedy."""
        Table("things", 2, TABLE.schema).write(ROWS, tmp_path / "t.parquet")
        with pytest.raises(TableError, match=r"t\.parquet: .*things 2.*update embed-pipeline"):
            TABLE.read(tmp_path / "t.parquet")

    @pytest.mark.parametrize("damage", [b"", b"PAR1", b"nonsense" * 100])
    def test_a_damaged_file_is_refused(self, tmp_path: Path, damage: bytes) -> None:
        """What is no Parquet, or no table of this kind, is a one-line error with the remedy."""
        (tmp_path / "t.parquet").write_bytes(damage)
        with pytest.raises(
            TableError, match=r"t\.parquet: damaged table .*delete the file"
        ) as refused:
            TABLE.read(tmp_path / "t.parquet")
        assert "\n" not in str(refused.value)
        ROWS.write_parquet(tmp_path / "other.parquet")
        with pytest.raises(TableError, match="not a table of kind 'things'"):
            TABLE.read(tmp_path / "other.parquet")

    def test_a_failed_write_leaves_the_old_table(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A full disk is OutOfSpace; the old table stays and no temporary file is left."""
        TABLE.write(ROWS, tmp_path / "t.parquet")

        def full(descriptor: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OutOfSpace, match="free some space"):
            TABLE.write(TABLE.empty(), tmp_path / "t.parquet")
        assert TABLE.read(tmp_path / "t.parquet").equals(ROWS)
        assert [path.name for path in tmp_path.iterdir()] == ["t.parquet"]


def vectors_of(hashes: list[bytes]) -> np.ndarray:
    """A unit vector for each hash, the same every time."""
    raw = np.array([np.frombuffer(h, np.uint8)[:8] for h in hashes], np.float32) - 100
    return raw / np.linalg.norm(raw, axis=1, keepdims=True)


class TestVectorLibrary:
    @pytest.fixture
    def hashes(self) -> list[bytes]:
        """Forty contents."""
        rng = np.random.default_rng(0)
        return [rng.bytes(32) for _ in range(40)]

    def test_vectors_come_back_by_content(self, tmp_path: Path, hashes: list[bytes]) -> None:
        """Whatever part they stand in, vectors are found by hash, rounded to float16 and no worse."""
        library = VectorLibrary(tmp_path, 8)
        assert library.known(pl.Series(hashes)).is_empty()
        for start in range(0, 40, 10):
            part = hashes[start : start + 10]
            library.add(pl.Series(part), vectors_of(part))
        asked = pl.Series([hashes[33], b"?" * 32, hashes[3], hashes[3]])
        found, vectors = VectorLibrary(tmp_path, 8).vectors(asked)
        assert sorted(found) == sorted([hashes[3], hashes[33]])
        np.testing.assert_allclose(vectors, vectors_of(list(found)), atol=1e-3)
        assert set(library.known(pl.Series(hashes))) == set(hashes)

    def test_merging_loses_nothing_and_keeps_readers_going(
        self, tmp_path: Path, hashes: list[bytes], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Many small parts become one; those who listed the old ones can read them for a day."""
        monkeypatch.setattr(vector_library, "MERGE_ABOVE_PARTS", 10)
        library = VectorLibrary(tmp_path, 8)
        for content in hashes:
            library.add(pl.Series([content]), vectors_of([content]))
        before = library.parts()
        assert library.merge() == 40
        assert len(library.parts()) == 1
        assert all(part.exists() for part in before)
        found, vectors = library.vectors(pl.Series(hashes))
        assert set(found) == set(hashes)
        np.testing.assert_allclose(vectors, vectors_of(list(found)), atol=1e-3)

        a_day_ago = time.time() - 25 * 3600
        for marker in tmp_path.glob("*.replaced"):
            os.utime(marker, (a_day_ago, a_day_ago))
        for content in hashes[:11]:
            library.add(pl.Series([content]), vectors_of([content]))
        library.merge()
        assert not any(part.exists() for part in before)
        assert set(library.known(pl.Series(hashes))) == set(hashes)

    def test_a_large_library_goes_on_merging(
        self, tmp_path: Path, hashes: list[bytes], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """However much it holds: what was merged before only keeps its place."""
        monkeypatch.setattr(vector_library, "MERGE_ABOVE_PARTS", 5)
        monkeypatch.setattr(vector_library, "SMALL_PART_ROWS", 5)
        monkeypatch.setattr(vector_library, "MERGE_AT_MOST_ROWS", 10)
        library = VectorLibrary(tmp_path, 8)
        for content in hashes:
            library.add(pl.Series([content]), vectors_of([content]))
            library.merge()
        assert len(library.parts()) <= 10
        assert set(library.known(pl.Series(hashes))) == set(hashes)

    def test_a_half_written_part_is_not_there(self, tmp_path: Path, hashes: list[bytes]) -> None:
        """What a killed writer left under a temporary name is not looked at."""
        library = VectorLibrary(tmp_path, 8)
        library.add(pl.Series(hashes), vectors_of(hashes))
        (tmp_path / ".writing-0-part-1.parquet").write_bytes(b"half")
        assert set(library.known(pl.Series(hashes))) == set(hashes)

    def test_a_damaged_part_is_named(self, tmp_path: Path, hashes: list[bytes]) -> None:
        """The error says which file, and what deleting it costs."""
        library = VectorLibrary(tmp_path, 8)
        library.add(pl.Series(hashes), vectors_of(hashes))
        part = library.parts()[0]
        part.write_bytes(part.read_bytes()[:-20])
        with pytest.raises(TableError, match=part.name):
            VectorLibrary(tmp_path, 8).known(pl.Series(hashes))


CONTENTS = [bytes([number]) * 32 for number in range(4)]
# Contents to add; a merge; a merge while contents are added; contents to remove; ns that the clock goes on.
step = st.one_of(
    st.tuples(st.just("add"), st.sets(st.sampled_from(CONTENTS), min_size=1)),
    st.tuples(st.sampled_from(["merge", "merge and add"]), st.sets(st.sampled_from(CONTENTS))),
    st.tuples(st.just("remove"), st.sets(st.sampled_from(CONTENTS), max_size=1)),
    st.tuples(st.just("clock"), st.integers(-3, 3)),
)


class Newest:
    """A library of two dimensions, and the number of the newest vector of each content beside it."""

    def __init__(self, root: Path) -> None:
        self.library = VectorLibrary(root, 2)
        self.numbers: dict[bytes, int] = {}
        self.added = 0

    def add(self, contents: set[bytes]) -> None:
        """A vector for each: an angle that none had before."""
        self.added += 1
        self.numbers |= dict.fromkeys(contents, self.added)
        angle = np.full(len(contents), self.added / 1000)
        vectors = np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)
        self.library.add(pl.Series(sorted(contents)), vectors)

    def remove(self, contents: set[bytes]) -> None:
        """As `prune` does."""
        self.numbers = {c: number for c, number in self.numbers.items() if c not in contents}
        self.library.remove(pl.Series(sorted(contents), dtype=pl.Binary))

    def merge_and_add(self, contents: set[bytes]) -> None:
        """Contents are added after the merge has listed the parts, before it replaces them."""
        replace = self.library._replace

        def replace_late(parts: Sequence[Path], rows: pl.DataFrame) -> None:
            if contents:
                self.add(contents)
            replace(parts, rows)

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(self.library, "_replace", replace_late)
            self.library.merge()

    def held(self) -> dict[bytes, int]:
        """Contents that the library knows, and the numbers of their vectors."""
        hashes, vectors = self.library.vectors(pl.Series(CONTENTS))
        numbers = np.rint(1000 * np.arctan2(vectors[:, 1], vectors[:, 0])).astype(int)
        return dict(zip(hashes, numbers.tolist(), strict=True))


# A large part between two small ones.
@example(
    steps=[
        ("add", {CONTENTS[0]}),
        ("add", {*CONTENTS[:3]}),
        ("add", {CONTENTS[3]}),
        ("merge", set()),
    ]
)
@given(steps=st.lists(step, min_size=2, max_size=20))
@settings(deadline=None, max_examples=150)
def test_the_newest_vector_counts(steps: list[tuple[str, set[bytes] | int]]) -> None:
    """Through any adding, merging and removing, also at once, and whatever the clock does meanwhile."""
    clock = 10
    with TemporaryDirectory() as root, pytest.MonkeyPatch.context() as patched:
        patched.setattr(vector_library, "MERGE_ABOVE_PARTS", 1)
        patched.setattr(vector_library, "SMALL_PART_ROWS", 3)
        patched.setattr(vector_library, "MERGE_AT_MOST_ROWS", 5)
        patched.setattr("embed_pipeline.durable.os.fsync", lambda _: None)
        patched.setattr(time, "time_ns", lambda: clock)
        newest = Newest(Path(root))
        for name, given_ in steps:
            match name, given_:
                case "clock", int(forward):
                    clock = max(0, clock + forward)
                case "add", set(contents):
                    newest.add(contents)
                case "remove", set(contents):
                    newest.remove(contents)
                case "merge", _:
                    newest.library.merge()
                case "merge and add", set(contents):
                    newest.merge_and_add(contents)
            assert newest.held() == newest.numbers


class TestFailures:
    def test_permanent_failures_are_not_tried_again(self) -> None:
        """A permanent failure is never due; a transient one waits a minute, then twice as long."""
        now = datetime.now(UTC)
        broken = failure_row(b"1" * 32, "a", "s", "l", ImageError("decode", "corrupt", "x"))
        gone = failure_row(
            b"2" * 32, "b", "s", "l", ImageError("fetch", "vanished", "x", transient=True)
        )
        once = record(FAILURES.empty(), pl.concat([broken, gone]))
        twice = record(once, gone)

        def waiting(failures: pl.DataFrame, minutes: float) -> set[str]:
            return set(not_due(failures, now + timedelta(minutes=minutes))["image_id"])

        assert waiting(once, 0.5) == {"a", "b"}
        assert waiting(once, 1.5) == {"a"}
        assert waiting(twice, 1.5) == {"a", "b"}
        assert waiting(twice, 2.5) == {"a"}
        assert waiting(once, 10_000_000) == {"a"}
        assert sorted(twice["attempts"]) == [1, 2]
