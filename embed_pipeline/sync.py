"""The main flow: scan, diff, embed, apply. Each reads and writes tables, so a run can stop anywhere.

    source ─scan─► manifest ─diff─► actions ─embed─► vector library, points ─apply─► audited collection

Any of the four alone, in any order, is safe: `apply` compares manifest and collection anew, so an
old diff can never destroy anything.
"""

import logging
from datetime import UTC, datetime

import polars as pl

from embed_pipeline.collection_state import CollectionState
from embed_pipeline.diff import ACTIONS, DIFF, Difference
from embed_pipeline.embedding import Content, Embedded, Throughput, Work, embed_contents
from embed_pipeline.errors import AuditFailed, ImageError, RemovalWithheld
from embed_pipeline.failures import FAILURES, failure_row, record, still_failing
from embed_pipeline.guard import withheld_removals
from embed_pipeline.manifest import MANIFEST
from embed_pipeline.models.protocol import Vectors
from embed_pipeline.points import POINTS
from embed_pipeline.project_run import ProjectRun
from embed_pipeline.serving import serve_from

logger = logging.getLogger(__name__)

# Rows whose vectors are read from the library at once: every read looks through all of its parts.
REUSE_ROWS = 50_000


def sync(run: ProjectRun, confirm_removals: int | None = None) -> CollectionState:
    """Make the project's collection equal to its source, and prove it.

    Raises RemovalWithheld or AuditFailed after all that could be done was done.
    """
    scan(run)
    diff(run)
    embed(run)
    state = apply(run, confirm_removals)
    if not state.equal:
        raise AuditFailed(
            f"{run.project}: the collection does not equal the source: {state.differences}"
        )
    return state


def scan(run: ProjectRun) -> pl.DataFrame:
    """List the source: the manifest. An error leaves the last manifest as it was."""
    source = run.deployment.source
    images, revision = source.revision(run.project)
    run.home.make()
    pages = [MANIFEST.empty()]
    ignored = listed = 0
    for page in source.scan(run.project):
        pages.append(page.images)
        ignored += page.ignored
        listed += page.images.height
        run.progress("scan", listed, images)
    manifest = pl.concat(pages).unique("image_id", keep="last", maintain_order=True)
    logger.info("%s: %d images listed, %d files ignored", run.project, manifest.height, ignored)
    MANIFEST.write(manifest, run.home.manifest, {"revision": revision, "ignored": str(ignored)})
    return manifest


def diff(run: ProjectRun) -> Difference:
    """Compare the manifest with what the collection says it holds: the actions."""
    difference = run.compare(run.wanted())
    DIFF.write(difference.actions, run.home.diff)
    counts = {action: difference.count(action) for action in ACTIONS}
    logger.info("%s: to do: %s, unchanged: %d", run.project, counts, difference.unchanged)
    return difference


def embed(run: ProjectRun) -> Throughput:
    """Embed the contents that nobody embedded before; their points go in as batches finish.

    Imports torch and loads the model only where there is such a content.
    """
    actions = DIFF.read(run.home.diff)
    contents = _contents_to_embed(run, actions)
    if not contents:
        return Throughput()
    new_failures: list[pl.DataFrame] = []
    try:
        throughput = embed_contents(contents, _work(run, actions, len(contents), new_failures))
    finally:
        _record_failures(run, new_failures)
    run.library.merge()
    return throughput


def apply(run: ProjectRun, confirm_removals: int | None = None) -> CollectionState:
    """Write, relabel and remove points until the collection equals the manifest; then audit it.

    Compares both anew first. Raises RemovalWithheld, with everything else done and recorded.
    """
    wanted = run.wanted()
    todo = run.compare(wanted)
    withheld = withheld_removals(todo, wanted, confirm_removals)
    _upsert_known(run, todo.actions)
    run.collection.relabel(_points(todo.actions.filter(action="relabel")))
    if not withheld:
        run.collection.delete(todo.actions.filter(action="remove")["point_id"])
    run.home.suspects.unlink(missing_ok=True)
    _forget_failures(run, wanted)
    audit = run.compare(wanted, forgive_all=True)
    state = _state(run, todo, audit, withheld)
    state.write(run.home.state)
    logger.info("%s: %d indexed, audit: %s", run.project, state.indexed, state.differences)
    if withheld:
        raise RemovalWithheld(_confirmation(run, todo, withheld), withheld)
    if state.equal and state.indexed:
        serve_from(run.home, run.card)
    return state


def _contents_to_embed(run: ProjectRun, actions: pl.DataFrame) -> list[Content]:
    rows = actions.filter(action="embed")
    # Another project's run may have embedded some meanwhile.
    known = run.library.known(rows["content_hash"])
    unknown = rows.filter(~pl.col("content_hash").is_in(known.implode()))
    return [Content(*row) for row in unknown.select(Content._fields).iter_rows()]


def _work(
    run: ProjectRun, actions: pl.DataFrame, total: int, new_failures: list[pl.DataFrame]
) -> Work:
    settings, source = run.deployment.settings, run.deployment.source
    needing = actions.filter(pl.col("action").is_in(["embed", "reuse"]))
    done = 0

    def read(content: Content) -> bytes:
        limit = settings.max_image_bytes
        return source.fetch(run.project, content.locator, content.content_hash, limit)

    def commit(embedded: Embedded) -> None:
        hashes = pl.Series("content_hash", [c.content_hash for c in embedded.contents])
        vectors = run.library.add(hashes, embedded.vectors)
        _upsert(run, needing, hashes, vectors)

    def failed(content: Content, error: ImageError) -> None:
        row = failure_row(content.content_hash, content.image_id, run.card.space, run.limits, error)
        new_failures.append(row)
        logger.warning("%s: %s cannot be embedded: %s", run.project, content.image_id, error)

    def progress(more: int) -> None:
        nonlocal done
        done += more
        run.progress("embed", done, total)

    return Work(
        read=read,
        encoder=run.deployment.encoder(run.card),
        commit=commit,
        failed=failed,
        progress=progress,
        batch_size=settings.batch_size,
        workers=settings.decode_workers,
        max_pixels=settings.max_image_pixels,
    )


def _upsert_known(run: ProjectRun, actions: pl.DataFrame) -> None:
    """Write the points whose vectors the library has."""
    rows = actions.filter(pl.col("action").is_in(["embed", "reuse"]))
    written = 0
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


def _record_failures(run: ProjectRun, new_failures: list[pl.DataFrame]) -> None:
    if new_failures:
        FAILURES.write(record(run.failures(), pl.concat(new_failures)), run.home.failures)


def _forget_failures(run: ProjectRun, wanted: pl.DataFrame) -> None:
    before = run.failures()
    embedded = run.library.known(before["content_hash"])
    after = still_failing(before, wanted["content_hash"], embedded)
    if after.height < before.height:
        FAILURES.write(after, run.home.failures)


def _state(run: ProjectRun, todo: Difference, audit: Difference, withheld: int) -> CollectionState:
    done = _done(run, todo, audit)
    counts = {action: done.filter(action=action).height for action in ("embed", "reuse", "relabel")}
    outstanding = audit.missing + audit.stale + len(audit.failed)
    return CollectionState(
        project_id=run.project_id,
        space=run.card.space,
        run_id=run.run_id,
        revision=MANIFEST.notes(run.home.manifest)["revision"],
        finished_at=datetime.now(UTC),
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
    """The actions of this run that the audit found done: `todo`'s, and what `embed` did before.

    Where both tell of an image, `todo` is right: another run may have embedded its content since the
    diff. A point that was to be replaced and cannot be is removed as well, and counts as that too.
    """
    planned = DIFF.read_or_empty(run.home.diff).filter(run_id=run.run_id)
    actions = pl.concat([todo.actions, planned]).with_columns(removes=pl.col("action") == "remove")
    actions = actions.unique(["point_id", "removes"], keep="first", maintain_order=True)
    undone = pl.concat([audit.actions["point_id"], audit.failed])
    removed = pl.col("removes") & ~pl.col("point_id").is_in(audit.actions["point_id"].implode())
    return actions.filter(removed | ~pl.col("point_id").is_in(undone.implode()))


def _confirmation(run: ProjectRun, todo: Difference, withheld: int) -> str:
    return (
        f"{run.project}: {withheld} of {todo.held} indexed images are nowhere in the source any more; "
        "nothing was removed. If that is right, confirm it once: "
        f"embed-pipeline sync {run.project} --confirm-removals {withheld}"
    )
