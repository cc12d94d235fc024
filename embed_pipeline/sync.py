"""The main flow: scan, diff, embed, apply. Each reads and writes tables, so a run can stop anywhere.

    source ─scan─► manifest ─diff─► actions ─embed─► vector library, points ─apply─► audited collection

Any of the four alone, in any order, is safe: `apply` compares manifest and collection anew, so an
old diff can never destroy anything. A project usually has one space. While it is brought over to
another model it has two, and each of the steps works in both.
"""

import logging

import polars as pl

from embed_pipeline import space_sync
from embed_pipeline.collection_state import CollectionState
from embed_pipeline.diff import Difference
from embed_pipeline.embedding import Throughput
from embed_pipeline.errors import AuditFailed, RemovalWithheld
from embed_pipeline.manifest import MANIFEST
from embed_pipeline.model_change import bring_over, check_quality, follow_in_previous
from embed_pipeline.project_run import ProjectRun
from embed_pipeline.serving import serve_from
from embed_pipeline.space_sync import Settled

logger = logging.getLogger(__name__)


def sync(
    run: ProjectRun, confirm_removals: int | None = None, *, force: bool = False
) -> CollectionState:
    """Make the project's collection equal to its source, and prove it.

    force: as in `diff`. Raises RemovalWithheld or AuditFailed after all that could be done was done.
    """
    scan(run)
    diff(run, force=force)
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
    run.progress("scan", listed, images)
    for page in source.scan(run.project):
        pages.append(page.images)
        ignored += page.ignored
        listed += page.images.height
        run.progress("scan", listed, images)
    manifest = pl.concat(pages).unique("image_id", keep="last", maintain_order=True)
    logger.info("%s: %d images listed, %d files ignored", run.project, manifest.height, ignored)
    MANIFEST.write(manifest, run.home.manifest, {"revision": revision, "ignored": str(ignored)})
    return manifest


def diff(run: ProjectRun, *, force: bool = False) -> Difference:
    """Compare the manifest with what the collection says it holds: the actions, in the target space.

    force: every content must be encoded anew. Where that is interrupted, the next run goes on with it.
    """
    spaces = run.spaces()
    if force:
        for space in spaces:
            space_sync.force(space)
    return [space_sync.find_differences(space) for space in spaces][-1]


def embed(run: ProjectRun) -> Throughput:
    """Embed the contents that have no vector, or are forced; their points go in as batches finish."""
    serving, *targets = run.spaces()
    throughput = space_sync.embed_missing(serving)
    for target in targets:
        throughput += bring_over(target, lambda: refresh(serving))
    return throughput


def refresh(run: ProjectRun) -> None:
    """Bring one space up to date while a long run works in another one."""
    scan(run)
    space_sync.find_differences(run)
    space_sync.embed_missing(run)
    space_sync.settle(run)


def apply(run: ProjectRun, confirm_removals: int | None = None) -> CollectionState:
    """Write, relabel and remove points until the collection equals the manifest; audit it; serve it.

    Raises RemovalWithheld or QualityGateFailed, with everything else done and recorded.
    """
    serving, *targets = run.spaces()
    settled = space_sync.settle(serving, confirm_removals)
    if settled.state.equal:
        # Before the state, which tells the sensor that nothing is left to do.
        run.deployment.source.prove(run.project, settled.proof)
    settled.state.write(run.home.state)
    if settled.withheld:
        raise RemovalWithheld(_confirmation(run, settled), settled.withheld)
    for target in targets:
        settled = space_sync.settle(target, guarded=False)
        if settled.state.equal:
            check_quality(serving, target)
        settled.state.write(run.home.state)
    if settled.state.equal and settled.state.indexed:
        serve_from(run.home, run.spaces()[-1].card)
    follow_in_previous(run)
    return settled.state


def _confirmation(run: ProjectRun, settled: Settled) -> str:
    return (
        f"{run.project}: {settled.withheld} of {settled.held} indexed images are nowhere in the source "
        "any more; nothing was removed. If that is right, confirm it once: "
        f"embed-pipeline sync {run.project} --confirm-removals {settled.withheld} (in the Dagster UI: "
        f"launch collection_state with confirm_removals: {settled.withheld})"
    )
