"""What the sensor decides: for tables that a test makes up, and for folders that really change."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embed_pipeline import changes
from embed_pipeline.audit import audit_all
from embed_pipeline.changes import (
    Known,
    LastRun,
    Noticed,
    Seen,
    decide,
    read_noticed,
    write_noticed,
)
from embed_pipeline.errors import SourceUnavailable
from embed_pipeline.lease import lease
from embed_pipeline.pause import pause, resume
from embed_pipeline.project_run import ProjectRun
from embed_pipeline.prune import prune
from embed_pipeline.sync import sync
from embed_pipeline.watching import Tick, look_again, look_around
from embed_pipeline_tests.conftest import draw, draw_many

Start = Callable[..., ProjectRun]

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


def ended(
    status: str, revision: str | None = "A", ago: timedelta = 10 * MINUTE, failures: int = 0
) -> LastRun:
    """A run that took a minute and ended `ago`."""
    return LastRun(status, revision, NOW - ago - MINUTE, NOW - ago, failures)  # type: ignore[arg-type]


def judged(
    known: Known, row: Noticed | None = None, revision: str = "A", *, working: bool = False
) -> str:
    """What is decided about one project."""
    seen = {"cats": Seen(revision, 10)}
    noticed = {"cats": row or Noticed("cats")}
    unfinished = {"cats"} if working else set[str]()
    decision = decide({"cats"}, seen, noticed, unfinished, lambda _: known, NOW)
    return "asked for" if decision.requests else next(iter(decision.skipped))


class TestOneProject:
    """Each state of a project and its last run, and what follows from it."""

    @pytest.mark.parametrize(
        ("known", "what"),
        [
            (Known(), "asked for"),
            (Known(reached="A"), "unchanged"),
            (Known(reached="B"), "asked for"),
            (Known(reached="B", last_run=ended("success")), "asked for"),
            (Known(reached="B", last_run=ended("success", "B")), "asked for"),
            (Known(last_run=ended("canceled")), "stopped until it changes or is resumed"),
            (Known(last_run=ended("canceled", None)), "stopped until it changes or is resumed"),
            (Known(last_run=ended("canceled", "B")), "asked for"),
            (Known(last_run=ended("canceled"), resumed_at=NOW), "asked for"),
            (
                Known(last_run=ended("canceled"), resumed_at=NOW - 60 * MINUTE),
                "stopped until it changes or is resumed",
            ),
            (Known(paused=True), "paused"),
            (Known(reached="A", retry_at=NOW + MINUTE), "unchanged"),
            (Known(reached="A", retry_at=NOW - MINUTE), "asked for"),
        ],
    )
    def test_its_last_run_decides(self, known: Known, what: str) -> None:
        """A changed project is asked for; a stopped one only after it changed again or was resumed."""
        assert judged(known) == what

    @pytest.mark.parametrize(
        ("failures", "waits"),
        [(1, MINUTE), (2, 2 * MINUTE), (5, 16 * MINUTE), (40, timedelta(days=1))],
    )
    def test_a_failed_run_is_asked_for_again_later_and_later(
        self, failures: int, waits: timedelta
    ) -> None:
        """A minute after the first failure, then twice as long each time, at most a day."""
        second = timedelta(seconds=1)
        early = Known(last_run=ended("failed", ago=waits - second, failures=failures))
        late = Known(last_run=ended("failed", ago=waits, failures=failures))
        assert judged(early) == "failed, tried again later"
        assert judged(late) == "asked for"
        changed = Known(last_run=ended("failed", "B", ago=second, failures=failures))
        assert judged(changed) == "asked for", "its images changed: that may be the remedy"

    def test_what_a_person_must_confirm_is_not_tried_again(self) -> None:
        """Withheld removals wait, until the images change, or somebody has confirmed them."""
        held = Known(withheld=True, last_run=ended("failed", ago=timedelta(days=2), failures=1))
        assert judged(held) == "waits until removals are confirmed, or it changes"
        assert judged(held, revision="B") == "asked for"
        failed = Noticed("cats", failed="A", retry_at=NOW + MINUTE)
        assert judged(Known(reached="A"), failed) == "unchanged", "the command line was quicker"

    def test_a_run_that_is_on_its_way_is_not_asked_for_twice(self) -> None:
        """Between the request and the run in Dagster's storage, and while it is queued or works."""
        asked = Noticed("cats", asked_at=NOW - timedelta(seconds=10))
        assert judged(Known(), asked) == "just asked for"
        assert judged(Known(), working=True) == "working"
        lost = Noticed("cats", asked_at=NOW - 3 * MINUTE)
        assert judged(Known(), lost) == "asked for", "a request that never became a run"

    def test_a_project_that_goes_back_is_asked_for_each_time(self) -> None:
        """A, B, A: each is a change."""
        row = Noticed("cats", settled="A")
        for revision, before in (("B", "A"), ("A", "B")):
            known = Known(reached=before, last_run=ended("success", before))
            assert judged(known, row, revision) == "asked for"
            row = replace(row, settled=revision)

    def test_a_settled_project_is_not_looked_up(self) -> None:
        """Where nothing changed, neither tables nor Dagster's storage are asked."""
        stopped = "stopped until it changes or is resumed"
        seen = {"cats": Seen("A", 10), "dogs": Seen("A", 10)}
        noticed = {
            "cats": Noticed("cats", settled="A"),
            "dogs": Noticed("dogs", settled="A", reason=stopped),
        }

        def never(project: str) -> Known:
            raise AssertionError(project)

        decision = decide(seen.keys(), seen, noticed, set(), never, NOW)
        assert decision.skipped == {"unchanged": ["cats"], stopped: ["dogs"]}


class TestManyProjects:
    def test_requests_are_bounded_and_small_projects_come_first(self) -> None:
        """At most 100 at a time and 200 in the queue; what is left out is asked for later."""
        seen = {f"p{n:04}": Seen("A", 10_000 - n) for n in range(3_000)}
        noticed: dict[str, Noticed] = {}
        asked: list[str] = []
        while len(asked) < 3_000:
            done = set(asked)
            known = {name: Known(reached="A" if name in done else None) for name in seen}
            decision = decide(seen.keys(), seen, noticed, set(), known.__getitem__, NOW)
            assert 0 < len(decision.requests) <= changes.MAX_REQUESTS
            asked += [request.project for request in decision.requests]
            noticed = decision.noticed
        assert asked == sorted(seen, reverse=True), "the smallest first, each once"
        full = decide(seen.keys(), seen, {}, {f"q{n}" for n in range(200)}, lambda _: Known(), NOW)
        assert not full.requests

    def test_large_runs_are_known(self) -> None:
        """What has 5,000 images to embed is large; what has as many and needs a few is not."""
        seen = {"new": Seen("A", 20_000), "grown": Seen("A", 20_000), "small": Seen("A", 50)}
        known = {"new": Known(), "grown": Known(indexed=19_990), "small": Known()}
        decision = decide(seen.keys(), seen, {}, set(), known.__getitem__, NOW)
        assert {r.project: r.large for r in decision.requests} == {
            "new": True,
            "grown": False,
            "small": False,
        }

    @given(
        listings=st.lists(st.frozensets(st.sampled_from("abcdefgh")), max_size=8),
        working=st.frozensets(st.sampled_from("abcdefgh"), max_size=2),
    )
    def test_a_project_is_retired_only_after_two_listings_without_it(
        self, listings: list[frozenset[str]], working: frozenset[str]
    ) -> None:
        """Never one that works, never out of an empty listing, never where more than 30 % are gone."""
        noticed = {name: Noticed(name) for name in "abcdefgh"}
        before: frozenset[str] = frozenset("abcdefgh")
        for listed in listings:
            known = set(noticed)
            decision = decide(listed, {}, noticed, working, lambda _: Known(), NOW)
            gone = set(decision.retire)
            assert not gone & (listed | before | working)
            absent = known - listed
            if gone:
                assert listed
                assert len(absent) <= 2 or len(absent) <= 0.3 * (len(absent) + len(listed))
            noticed = {name: row for name, row in decision.noticed.items() if name not in gone}
            before = listed

    def test_one_of_two_may_go(self) -> None:
        """A folder that is gone from two listings is retired, also where there are only two."""
        noticed = {"a": Noticed("a"), "b": Noticed("b")}
        first = decide({"a"}, {}, noticed, set(), lambda _: Known(), NOW)
        assert (first.retire, first.skipped) == ([], {"gone, to be retired": ["b"]})
        second = decide({"a"}, {}, first.noticed, set(), lambda _: Known(), NOW)
        assert second.retire == ["b"]

    def test_the_table_keeps_what_was_noticed(self, tmp_path: Path) -> None:
        """Rows come back as they were written; a lost table is an empty one."""
        rows = [
            Noticed("a", "A x", "unchanged", None, NOW, None, NOW, 0),
            Noticed("b", None, "unchanged", "B x", None, NOW, NOW, 1),
        ]
        assert read_noticed(tmp_path / "noticed.parquet") == {}
        write_noticed({row.project: row for row in rows}, tmp_path / "noticed.parquet")
        assert list(read_noticed(tmp_path / "noticed.parquet").values()) == rows


class Runs:
    """A history of runs that a test makes up."""

    def __init__(self) -> None:
        self.working: set[str] = set()
        self.ended: dict[str, LastRun] = {}

    def unfinished(self) -> set[str]:
        """See `watching.RunHistory`."""
        return self.working

    def last(self, project: str) -> LastRun | None:
        """See `watching.RunHistory`."""
        return self.ended.get(project)


def asked(tick: Tick) -> list[str]:
    """The projects that a look asks runs for."""
    return [request.project for request in tick.requests]


class TestFolders:
    """Looks at real folders, with syncs between them."""

    @pytest.fixture
    def look(self, root: Path, start: Start) -> Callable[[], Tick]:
        """Look around, in a new process as it were; with two projects that are in sync."""
        draw_many(root / "cats", 3)
        draw_many(root / "dogs", 3, first_seed=50)
        for project in ("cats", "dogs"):
            sync(start(project))
        self.runs = Runs()

        def look() -> Tick:
            return look_around(start().deployment, self.runs)

        assert look().requests == [], "the command line had synced them before"
        return look

    def test_every_kind_of_change_is_noticed_once(
        self, look: Callable[[], Tick], root: Path, start: Start
    ) -> None:
        """Added, edited in place, renamed and removed images, and a new folder; then quiet again."""
        some = sorted((root / "cats").iterdir())
        steps: list[Callable[[], object]] = [
            lambda: draw(root / "cats" / "new.png", 9),
            lambda: some[0].write_bytes(some[0].read_bytes()[:-1] + b"x"),
            lambda: some[1].rename(root / "cats" / "renamed.png"),
            some[2].unlink,
        ]
        for step in steps:
            step()
            assert asked(look()) == ["cats"]
            assert asked(look()) == [], "it was just asked for"
            sync(start())
            now = datetime.now(UTC)
            self.runs.ended["cats"] = LastRun("success", None, now, now, 0)
            assert sorted(look().skipped["unchanged"]) == ["cats", "dogs"]
        draw_many(root / "birds", 2, first_seed=70)
        assert asked(look()) == ["birds"]

    def test_another_model_brings_every_project_over(
        self, look: Callable[[], Tick], start: Start, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Another limit is another revision of all projects, as another model is; a sync settles it."""
        monkeypatch.setenv("EMBED_MAX_IMAGE_PIXELS", "12345")
        assert sorted(asked(look())) == ["cats", "dogs"]
        sync(start("cats"))
        assert look().skipped["unchanged"] == ["cats"]

    def test_a_gone_folder_is_retired_with_all_it_had(
        self, look: Callable[[], Tick], root: Path, start: Start
    ) -> None:
        """Two looks later its points and tables are gone; its vectors are kept for when it comes back."""
        shutil.rmtree(root / "dogs")
        run = start("dogs")
        assert look().retired == []
        self.runs.working = {"dogs"}
        assert look().retired == [], "never under an unfinished run"
        self.runs.working = set()
        with lease(run.home, "dogs", "run 1", 0):
            assert look().retired == [], "nor under a lease"
        assert run.collection.count() == 3
        assert look().retired == ["dogs"]
        assert not run.collection.exists()
        assert [path.name for path in run.home.root.iterdir()] == ["lease.lock"]
        assert look().listed == ["cats"]
        draw_many(root / "dogs", 3, first_seed=50)
        assert asked(look()) == ["dogs"]
        assert sync(start("dogs")).reuse == 3

    def test_a_root_that_is_gone_or_empty_changes_nothing(
        self, look: Callable[[], Tick], root: Path, start: Start
    ) -> None:
        """An unreadable root is an error, an empty one retires nothing, however often one looks."""
        root.rename(root.with_name("elsewhere"))
        with pytest.raises(SourceUnavailable):
            look()
        root.mkdir()
        for _ in range(4):
            tick = look()
            assert (tick.retired, tick.requests) == ([], [])
        assert "too many at once" in str(tick)
        draw(root / "only" / "one.png", 1)
        assert look().retired == [], "empty listings do not count"
        shutil.rmtree(root)
        root.with_name("elsewhere").rename(root)
        assert sorted(look().skipped["unchanged"]) == ["cats", "dogs"]
        assert start("dogs").collection.count() == 3

    def test_many_gone_projects_are_retired_when_somebody_says_so(
        self, look: Callable[[], Tick], root: Path, start: Start
    ) -> None:
        """`prune --absent` forgets them at once, and the sensor from its next look on."""
        for name in ("a", "b", "c"):
            draw_many(root / name, 1, first_seed=ord(name))
            sync(start(name))
        look()
        for name in ("a", "b", "c"):
            shutil.rmtree(root / name)
        for _ in range(3):
            gone = look().skipped["gone, but too many at once to be retired"]
            assert sorted(gone) == ["a", "b", "c"]
        assert len(prune(start().deployment, absent=True)) == 3
        assert sorted(look().retired) == ["a", "b", "c"]
        assert sorted(look().skipped["unchanged"]) == ["cats", "dogs"]

    def test_a_lost_table_asks_for_nothing_that_is_in_sync(
        self, look: Callable[[], Tick], root: Path, start: Start
    ) -> None:
        """Everything but library and store can be lost; a folder that is gone is still retired."""
        deployment = start().deployment
        shutil.rmtree(deployment.home.root / "noticed")
        shutil.rmtree(root / "dogs")
        assert look().requests == []
        assert look().retired == ["dogs"]

    def test_a_paused_project_is_left_alone_until_resumed(
        self, look: Callable[[], Tick], root: Path, start: Start
    ) -> None:
        """Pause and resume hold across looks; a stopped project goes on when resumed."""
        home = start().home
        draw(root / "cats" / "new.png", 9)
        pause(home)
        assert look().skipped["paused"] == ["cats"]
        resume(home)
        self.runs.ended["cats"] = LastRun("canceled", None, NOW - MINUTE, NOW, 0)
        assert asked(look()) == ["cats"]

    def test_looking_again_takes_up_what_the_sensor_held_for_settled(
        self, look: Callable[[], Tick], start: Start
    ) -> None:
        """After a stop and `resume`, the same images are asked for."""
        run = start()
        run.home.state.unlink()
        look_again(run.deployment, "cats")
        self.runs.ended["cats"] = LastRun("canceled", None, NOW - MINUTE, NOW, 0)
        assert look().skipped["stopped until it changes or is resumed"] == ["cats"]
        assert look().skipped["stopped until it changes or is resumed"] == ["cats"]
        resume(run.home)
        look_again(run.deployment, "cats")
        assert asked(look()) == ["cats"]

    def test_what_the_audit_finds_is_asked_for(
        self, look: Callable[[], Tick], start: Start
    ) -> None:
        """A point that went missing: the nightly audit notes it, the next look asks, a sync mends it."""
        run = start()
        point = next(iter(run.collection.scroll()))["point_id"].head(1)
        run.collection.delete(point)
        assert asked(look()) == [], "no image changed"
        with lease(start("dogs").home, "dogs", "run 1", 0):
            audited = audit_all(start().deployment)
        assert {audit.project_id: audit.equal for audit in audited.audits} == {"cats": False}
        assert audited.skipped.keys() == {"dogs"}
        assert asked(look()) == ["cats"]
        assert sync(start()).reuse == 1
        assert audit_all(start().deployment).skipped == {}
        self.runs.ended["cats"] = LastRun("success", None, datetime.now(UTC), datetime.now(UTC), 0)
        assert asked(look()) == []

    def test_one_unreadable_project_does_not_hide_the_others(
        self, look: Callable[[], Tick], root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its reason is told, and a change in another project is noticed."""
        from embed_pipeline.sources.folder import FolderSource

        revision = FolderSource.revision

        def failing(
            source: FolderSource, project: str, *, as_listed: bool = False
        ) -> tuple[int, str]:
            if project == "dogs":
                raise SourceUnavailable("dogs: cannot be listed")
            return revision(source, project)

        monkeypatch.setattr(FolderSource, "revision", failing)
        draw(root / "cats" / "new.png", 9)
        tick = look()
        assert asked(tick) == ["cats"]
        assert tick.skipped == {"dogs: cannot be listed": ["dogs"]}
