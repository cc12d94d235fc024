"""Bringing one space of a project up to date: what `sync.py` does in each of the project's spaces."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from threading import Event

import polars as pl

from embed_pipeline.collection_state import CollectionState
from embed_pipeline.diff import ACTIONS, DIFF, Difference
from embed_pipeline.embedding import Content, Embedded, Throughput, Work, embed_contents
from embed_pipeline.errors import ImageError
from embed_pipeline.failures import FAILURES, failure_row, first_due, record, still_failing
from embed_pipeline.guard import withheld_removals
from embed_pipeline.locks import FairFileLock, Locked
from embed_pipeline.manifest import MANIFEST
from embed_pipeline.models.protocol import Vectors
from embed_pipeline.points import POINTS
from embed_pipeline.project_run import FORCED, ProjectRun
from embed_pipeline.sources.protocol import CHANGED, Proof, Wanted

logger = logging.getLogger(__name__)

# Rows whose vectors are read from the library at once: every read looks through all of its parts.
REUSE_ROWS = 50_000
# Runs that encode at the same time take turns. Who hangs in a turn must not stop the others.
TURN_SECONDS = 60.0


def force(run: ProjectRun) -> None:
    """Have every content of the manifest encoded anew, by this run or those after it.

    Until then what it has is searched. What failed before is tried again as well.
    """
    failures = run.all_failures()
    if failures.height:
        FAILURES.write(failures.filter(pl.col("space") != run.card.space), run.home.failures)
    _write_forced(run, run.manifest().select("content_hash").drop_nulls().unique())


def find_differences(run: ProjectRun) -> Difference:
    """Compare the manifest with what the space's collection says it holds: the actions."""
    difference = run.compare(run.wanted())
    DIFF.write(difference.actions, run.space_home.diff)
    counts = {action: difference.count(action) for action in ACTIONS}
    logger.info("%s: to do: %s, unchanged: %d", run.project, counts, difference.unchanged)
    return difference


def embed_missing(run: ProjectRun, seconds: float = float("inf")) -> Throughput:
    """Embed the contents that have no vector, or are forced; their points go in as batches finish.

    Begins no more of them after `seconds`. Imports torch and loads the model only where there is
    such a content.
    """
    actions = DIFF.read(run.space_home.diff)
    contents = _contents_to_embed(run, actions)
    if not contents:
        return Throughput()
    new_failures: list[pl.DataFrame] = []
    work = _work(run, actions, len(contents), new_failures)
    try:
        throughput = embed_contents(contents, work, time.monotonic() + seconds)
    finally:
        _record_failures(run, new_failures)
    run.library.merge()
    return throughput


@dataclass(frozen=True)
class Settled:
    """The collection after `settle`. held: points before it. proof: what the audit found."""

    state: CollectionState
    held: int
    proof: Proof

    @property
    def withheld(self) -> int:
        """Removals that the guard held back."""
        return self.state.withheld


def settle(
    run: ProjectRun, confirm_removals: int | None = None, *, guarded: bool = True
) -> Settled:
    """Write, relabel and remove points until the collection equals the manifest; then audit it.

    Compares both anew first, so that an old diff can never destroy anything.
    """
    wanted = run.wanted()
    todo = run.compare(wanted)
    withheld = withheld_removals(todo, wanted, confirm_removals) if guarded else 0
    _carry_out(run, todo, remove=not withheld)
    run.space_home.suspects.unlink(missing_ok=True)
    _forget_failures(run, wanted)
    audit = run.compare(wanted, forgive_all=True)
    done = _done(run, todo, audit)
    state = _state(run, done, audit, withheld)
    _stop_forcing(run, wanted)
    logger.info("%s: %d indexed, audit: %s", run.project, state.indexed, state.differences)
    return Settled(state, todo.held, _proof(wanted, done, audit))


def follow(run: ProjectRun) -> None:
    """Write, relabel and remove points as far as the library has their vectors."""
    _carry_out(run, run.compare(run.wanted()), remove=True)


def _carry_out(run: ProjectRun, todo: Difference, *, remove: bool) -> None:
    _upsert_known(run, todo.actions)
    run.collection.relabel(_points(todo.actions.filter(action="relabel")))
    if remove:
        run.collection.delete(todo.actions.filter(action="remove")["point_id"])


def _contents_to_embed(run: ProjectRun, actions: pl.DataFrame) -> list[Content]:
    rows = actions.filter(action="embed")
    # Another project's run may have embedded some meanwhile.
    known = run.known(rows["content_hash"])
    unknown = rows.filter(~pl.col("content_hash").is_in(known.implode()))
    return [Content(*row) for row in unknown.select(Content._fields).iter_rows()]


def _work(
    run: ProjectRun, actions: pl.DataFrame, total: int, new_failures: list[pl.DataFrame]
) -> Work:
    settings, source = run.deployment.settings, run.deployment.source
    needing = actions.filter(pl.col("action").is_in(["embed", "reuse"]))
    stop = Event()
    done = 0

    def wanted(content: Content) -> Wanted:
        limit, rendition = settings.max_image_bytes, run.card.rendition
        return Wanted(content.locator, content.content_hash, limit, rendition)

    def read(content: Content) -> bytes:
        return source.fetch(run.project, wanted(content), stop)

    def commit(embedded: Embedded) -> None:
        changed = source.changed(run.project, [wanted(content) for content in embedded.contents])
        for content in embedded.contents:
            if content.content_hash in changed:
                failed(content, ImageError("fetch", "changed", CHANGED, transient=True))
        sound = embedded.without(changed)
        if not sound.contents:
            return
        hashes = pl.Series("content_hash", [c.content_hash for c in sound.contents])
        vectors = run.library.add(hashes, sound.vectors)
        _upsert(run, needing, hashes, vectors)
        _encoded_anew(run, hashes)

    def failed(content: Content, error: ImageError) -> None:
        space, limits = run.card.space, run.deployment.limits
        row = failure_row(content.content_hash, content.image_id, space, limits, error)
        new_failures.append(row)
        logger.warning("%s: %s cannot be embedded: %s", run.project, content.image_id, error)

    def progress(more: int) -> None:
        nonlocal done
        done += more
        run.progress("embed", done, total)

    return Work(
        read=read,
        encoder=run.deployment.encoder(run.card),
        turn=lambda: _encoder_turn(run),
        stop=stop,
        commit=commit,
        abandon=run.deployment.store.close,
        failed=failed,
        progress=progress,
        batch_size=settings.batch_size,
        workers=settings.readers,
        max_pixels=settings.max_image_pixels,
    )


@contextmanager
def _encoder_turn(run: ProjectRun) -> Iterator[None]:
    """One batch's time alone at the encoder: a large project never holds up a small one."""
    lock = FairFileLock(run.deployment.home.encoder_turns)
    try:
        lock.acquire(TURN_SECONDS, f"a batch of {run.project}")
    except Locked as error:
        logger.warning("%s: encoding without a turn: %s", run.project, error)
    with lock:
        yield


def _upsert_known(run: ProjectRun, actions: pl.DataFrame) -> None:
    """Write the points whose vectors the library has."""
    rows = actions.filter(pl.col("action").is_in(["embed", "reuse"]))
    written = 0
    run.progress("apply", written, rows.height)
    for block in rows.iter_slices(REUSE_ROWS):
        _upsert(run, block, *run.library.vectors(block["content_hash"]))
        written += block.height
        run.progress("apply", written, rows.height)


def _upsert(run: ProjectRun, rows: pl.DataFrame, hashes: pl.Series, vectors: Vectors) -> None:
    """Write the points among `rows` whose content is in `hashes`; one vector serves all its copies."""
    at = pl.DataFrame({"content_hash": hashes}).with_row_index("at")
    found = rows.join(at, on="content_hash")
    if found.height:
        run.collection.upsert(_points(found), vectors[found["at"].to_numpy()])


def _points(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.select(POINTS.names())


def _encoded_anew(run: ProjectRun, content_hashes: pl.Series) -> None:
    forced = run.forced()
    left = forced.filter(~pl.col("content_hash").is_in(content_hashes.implode()))
    if left.height < forced.height:
        _write_forced(run, left)


def _stop_forcing(run: ProjectRun, wanted: pl.DataFrame) -> None:
    """Force no content that is gone, nor one that cannot be encoded anew: its vector stays."""
    forced = run.forced()
    hopeless = run.failures().filter(~pl.col("transient"))
    left = forced.join(wanted, on="content_hash", how="semi")
    left = left.join(hopeless, on="content_hash", how="anti")
    if left.height < forced.height:
        _write_forced(run, left)


def _write_forced(run: ProjectRun, contents: pl.DataFrame) -> None:
    if contents.height:
        FORCED.write(contents, run.space_home.forced)
    else:
        run.space_home.forced.unlink(missing_ok=True)


def _record_failures(run: ProjectRun, new_failures: list[pl.DataFrame]) -> None:
    if new_failures:
        FAILURES.write(record(run.all_failures(), pl.concat(new_failures)), run.home.failures)


def _forget_failures(run: ProjectRun, wanted: pl.DataFrame) -> None:
    before = run.all_failures()
    embedded = run.known(run.failures()["content_hash"])
    after = still_failing(before, wanted["content_hash"], embedded, run.card.space)
    if after.height < before.height:
        FAILURES.write(after, run.home.failures)


def _proof(wanted: pl.DataFrame, done: pl.DataFrame, audit: Difference) -> Proof:
    failed = wanted.filter(pl.col("point_id").is_in(audit.failed.implode()))
    written = done.filter(pl.col("action").is_in(["embed", "reuse"]))
    images = wanted.select("image_id", "content_hash")
    return Proof(images, failed["image_id"], written["image_id"])


def _state(
    run: ProjectRun, done: pl.DataFrame, audit: Difference, withheld: int
) -> CollectionState:
    counts = {action: done.filter(action=action).height for action in ("embed", "reuse", "relabel")}
    outstanding = audit.missing + audit.stale + len(audit.failed)
    return CollectionState(
        project_id=run.project_id,
        space=run.card.space,
        conditions=run.deployment.conditions(run.card.space),
        run_id=run.run_id,
        revision=MANIFEST.notes(run.home.manifest)["revision"],
        finished_at=datetime.now(UTC),
        retry_at=first_due(run.failures()),
        images=audit.images,
        unchanged=audit.images - outstanding - sum(counts.values()),
        **counts,
        remove=done.filter(action="remove").height,
        failed=len(audit.failed),
        indexed=audit.held,
        missing=audit.missing,
        stale=audit.stale,
        extra=audit.extra,
        withheld=withheld,
    )


def _done(run: ProjectRun, todo: Difference, audit: Difference) -> pl.DataFrame:
    """The actions of this run that the audit found done: `todo`'s, and what was embedded before.

    Where both tell of an image, `todo` is right: another run may have embedded its content since the
    diff. A point that was to be replaced and cannot be is removed as well, and counts as that too.
    """
    planned = DIFF.read_or_empty(run.space_home.diff).filter(run_id=run.run_id)
    actions = pl.concat([todo.actions, planned]).with_columns(removes=pl.col("action") == "remove")
    actions = actions.unique(["point_id", "removes"], keep="first", maintain_order=True)
    undone = pl.concat([audit.actions["point_id"], audit.failed])
    removed = pl.col("removes") & ~pl.col("point_id").is_in(audit.actions["point_id"].implode())
    return actions.filter(removed | ~pl.col("point_id").is_in(undone.implode()))
