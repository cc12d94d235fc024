"""Which projects need a run: what the sensor remembers of each, and what it decides. Pure.

A project's *revision* is what a run makes its collection equal to: the source's token, and the
conditions (space, limits, store). A project is settled at a revision when nothing is left to do
there: its collection equals it, or somebody stopped the run that was to see to that.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

import polars as pl

from embed_pipeline.tables import Table

# One row per project of the source. settled: see above, for a reason; null where something is to do.
# failed: the revision that the last run failed at. retry_at: when to look again at a settled project
# (images failed that may be readable by then) or a failed one. absent: complete listings without it,
# one after another.
NOTICED = Table(
    "noticed",
    1,
    pl.Schema(
        {
            "project": pl.String(),
            "settled": pl.String(),
            "reason": pl.String(),
            "failed": pl.String(),
            "asked_at": pl.Datetime("us", "UTC"),
            "retry_at": pl.Datetime("us", "UTC"),
            "looked_at": pl.Datetime("us", "UTC"),
            "absent": pl.Int32(),
        }
    ),
)

# Dagster makes about eight runs a second; more requests would only be a longer queue.
MAX_REQUESTS = 100
MAX_UNFINISHED = 200
# Projects that are looked up in tables and in Dagster's storage, at some 5 ms each.
MAX_LOOKUPS = 1_000
# Images to embed from which on a run counts as large.
LARGE_IMAGES = 5_000
# Between an answer of ours and the run in Dagster's storage.
REQUEST_GRACE = timedelta(minutes=2)
FIRST_RETRY = timedelta(minutes=1)
LAST_RETRY = timedelta(days=1)
ABSENT_LISTINGS = 2
# What a person who knows that a project is gone sets `absent` to.
CONFIRMED = 1_000_000
FREE_ABSENT = 2
FREE_ABSENT_SHARE = 0.3

UNCHANGED = "unchanged"
FAILED = "failed, tried again later"
NEVER = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Noticed:
    """A row of NOTICED."""

    project: str
    settled: str | None = None
    reason: str = UNCHANGED
    failed: str | None = None
    asked_at: datetime | None = None
    retry_at: datetime | None = None
    looked_at: datetime = NEVER
    absent: int = 0


@dataclass(frozen=True)
class Seen:
    """A project as the source has it now. images: how many it has."""

    revision: str
    images: int


@dataclass(frozen=True)
class LastRun:
    """The newest finished run of a project. revision: what it was to reach, where it got to know.

    failures: how many runs have failed in a row.
    """

    status: Literal["success", "failed", "canceled"]
    revision: str | None
    created_at: datetime
    ended_at: datetime
    failures: int


@dataclass(frozen=True)
class Known:
    """What tables and Dagster tell of a project.

    reached: the revision that its collection was made equal to, and audited. indexed: images in the
    space that is wanted. retry_at: when the first of its failed images may be readable. withheld:
    whether the guard held back removals there, until somebody confirms them.
    """

    reached: str | None = None
    indexed: int = 0
    retry_at: datetime | None = None
    withheld: bool = False
    paused: bool = False
    resumed_at: datetime | None = None
    last_run: LastRun | None = None


@dataclass(frozen=True)
class Request:
    """A run to ask for. large: it will take long."""

    project: str
    revision: str
    images: int
    large: bool


@dataclass(frozen=True)
class Verdict:
    """What was decided about one project, and why."""

    row: Noticed
    reason: str
    request: Request | None = None


@dataclass
class Decision:
    """What to do now. skipped: projects by the reason why no run was asked for.

    retire: projects to forget.
    """

    noticed: dict[str, Noticed]
    requests: list[Request] = field(default_factory=list)
    skipped: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    retire: list[str] = field(default_factory=list)

    def take(self, verdict: Verdict) -> None:
        """Note what was decided about a project."""
        self.noticed[verdict.row.project] = verdict.row
        if verdict.request:
            self.requests.append(verdict.request)
        else:
            self.skipped[verdict.reason].append(verdict.row.project)


def decide(
    listed: AbstractSet[str],
    seen: Mapping[str, Seen],
    noticed: Mapping[str, Noticed],
    unfinished: AbstractSet[str],
    know: Callable[[str], Known],
    now: datetime,
) -> Decision:
    """Decide for every project.

    listed: all projects of the source, from a complete listing. seen: those of them that were looked
    at this time. unfinished: projects with a queued or working run. know: asked only about projects
    that are not settled.
    """
    absent = {name: row for name, row in noticed.items() if name not in listed}
    present = {name: replace(noticed.get(name, Noticed(name)), absent=0) for name in listed}
    decision = Decision(present)
    room = max(0, min(MAX_REQUESTS, MAX_UNFINISHED - len(unfinished)))
    lookups = 0
    # Small projects first: they need not wait for large ones. Those that wait after a failure last:
    # most of them will go on waiting.
    for name in sorted(seen, key=lambda n: (present[n].failed is not None, seen[n].images, n)):
        row = replace(present[name], looked_at=now)
        reason = _settled(row, seen[name], now) or ("working" if name in unfinished else None)
        if not reason and (len(decision.requests) == room or lookups >= MAX_LOOKUPS):
            reason = FAILED if row.failed else "changed, asked for later: many are"
        if reason:
            verdict = Verdict(row, reason)
        else:
            lookups += 1
            verdict = _judge(row, seen[name], know(name), now)
        decision.take(verdict)
    _retire(decision, absent, unfinished, listed=len(listed))
    return decision


def _settled(row: Noticed, look: Seen, now: datetime) -> str | None:
    """Why there is nothing to do as far as the sensor remembers; None where it must look closer."""
    waiting = row.retry_at is None or now < row.retry_at
    return row.reason if row.settled == look.revision and waiting else None


def _judge(row: Noticed, look: Seen, known: Known, now: datetime) -> Verdict:
    if known.paused:
        return Verdict(row, "paused")
    if known.reached == look.revision and (known.retry_at is None or now < known.retry_at):
        return _settle(row, look, UNCHANGED, known.retry_at)
    last = known.last_run
    if row.asked_at and now < row.asked_at + REQUEST_GRACE and not _newer(last, row.asked_at):
        return Verdict(row, "just asked for")
    # A run that ended before it knew its revision is taken to have been about this one.
    if last and last.revision in (look.revision, None) and _newer(last, known.resumed_at):
        held_back = _after(last, row, look, known, now)
        if held_back:
            return held_back
    large = look.images - known.indexed >= LARGE_IMAGES
    request = Request(row.project, look.revision, look.images, large)
    asked = replace(row, settled=None, failed=None, retry_at=None, asked_at=now)
    return Verdict(asked, "asked for", request)


def _after(last: LastRun, row: Noticed, look: Seen, known: Known, now: datetime) -> Verdict | None:
    """Why another run of the same revision must wait, after the last one."""
    if last.status == "canceled":
        return _settle(row, look, "stopped until it changes or is resumed")
    if last.status == "failed" and known.withheld:
        return _settle(row, look, "waits until removals are confirmed, or it changes")
    retry_at = last.ended_at + _delay(last.failures)
    if last.status == "failed" and now < retry_at:
        return Verdict(replace(row, settled=None, failed=look.revision, retry_at=retry_at), FAILED)
    return None


def _settle(row: Noticed, look: Seen, reason: str, retry_at: datetime | None = None) -> Verdict:
    settled = replace(row, settled=look.revision, reason=reason, failed=None, retry_at=retry_at)
    return Verdict(settled, reason)


def _newer(run: LastRun | None, than: datetime | None) -> bool:
    return run is not None and (than is None or run.created_at >= than)


def _delay(failures: int) -> timedelta:
    """A minute after the first failure, then twice as long each time, at most a day."""
    doublings = min(max(failures, 1) - 1, 16)
    return min(FIRST_RETRY * (1 << doublings), LAST_RETRY)


def _retire(
    decision: Decision,
    absent: Mapping[str, Noticed],
    unfinished: AbstractSet[str],
    listed: int,
) -> None:
    """Forget projects that two complete listings did not have; not where that many lost is an accident."""
    doubtful = sum(row.absent < CONFIRMED for row in absent.values())
    share = doubtful / (doubtful + listed) if doubtful else 0.0
    many = not listed or (doubtful > FREE_ABSENT and share > FREE_ABSENT_SHARE)
    for name, before in absent.items():
        row = replace(before, absent=before.absent + 1)
        if many and row.absent < CONFIRMED:
            decision.take(Verdict(before, "gone, but too many at once to be retired"))
        elif row.absent < ABSENT_LISTINGS or name in unfinished:
            decision.take(Verdict(row, "gone, to be retired"))
        else:
            decision.noticed[name] = row
            decision.retire.append(name)


def read_noticed(path: Path) -> dict[str, Noticed]:
    """What was noticed so far. Empty where the table is lost: each project is looked up once more."""
    return {row["project"]: Noticed(**row) for row in NOTICED.read_or_empty(path).to_dicts()}


def write_noticed(noticed: Mapping[str, Noticed], path: Path) -> None:
    """Replace the table."""
    rows = [asdict(row) for row in noticed.values()]
    NOTICED.write(pl.DataFrame(rows, schema=NOTICED.schema), path)
