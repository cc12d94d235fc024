"""The audit that people ask for: collection against source, vectors against library."""

from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from embed_pipeline.collection_state import CollectionState
from embed_pipeline.deployment import Deployment
from embed_pipeline.diff import wanted_points
from embed_pipeline.errors import EmbedPipelineError
from embed_pipeline.lease import lease
from embed_pipeline.models.protocol import Vectors
from embed_pipeline.pause import is_paused
from embed_pipeline.project_run import SUSPECTS, ProjectRun
from embed_pipeline.watching import look_again

# Library and collection both round to float16: that leaves 1 - 1e-6, an altered vector far less.
SAME_COSINE = 0.9999


@dataclass(frozen=True)
class Audit:
    """Counts. indexed: points held. missing, stale: images. extra: points that must not be there.

    failed: images that cannot be embedded, recorded as such; they are no difference.
    """

    project_id: str
    indexed: int
    missing: int
    stale: int
    extra: int
    failed: int

    @property
    def equal(self) -> bool:
        """Whether the collection equals the source."""
        return not (self.missing or self.stale or self.extra)


def verify(run: ProjectRun, *, vectors: bool = False) -> Audit:
    """Audit the project's collection against its source as it is now.

    With `vectors`, points whose stored vector is not the library's count as stale, and are noted so
    that the next sync writes them again.
    """
    run.home.make()
    if vectors:
        SUSPECTS.write(_altered(run), run.space_home.suspects)
    wanted = wanted_points(run.project_id, run.listed())
    found = run.compare(wanted, forgive_all=True)
    return Audit(
        project_id=run.project,
        indexed=found.held,
        missing=found.missing,
        stale=found.stale,
        extra=found.extra,
        failed=len(found.failed),
    )


@dataclass(frozen=True)
class AuditedProjects:
    """audits: of each project that could be verified. skipped: why the others could not."""

    audits: list[Audit]
    skipped: dict[str, str]


def audit_all(deployment: Deployment, *, vectors: bool = False) -> AuditedProjects:
    """Audit every project; note what differs, so that the sensor asks for a run of it.

    Left out are paused projects, and those that a run works on: it ends with an audit of its own.
    """
    audited = AuditedProjects([], {})
    for project in deployment.source.projects():
        run = ProjectRun(deployment, project, "audit")
        if is_paused(run.home):
            audited.skipped[project] = "paused"
            continue
        try:
            with lease(run.home, project, "audit", wait_seconds=0):
                found = verify(run, vectors=vectors)
                if not found.equal:
                    _note(run, found)
        except EmbedPipelineError as error:
            audited.skipped[project] = str(error)
            continue
        audited.audits.append(found)
        if not found.equal:
            look_again(deployment, project)
    return audited


def _note(run: ProjectRun, found: Audit) -> None:
    if state := CollectionState.read(run.home.state):
        noted = replace(
            state,
            indexed=found.indexed,
            missing=found.missing,
            stale=found.stale,
            extra=found.extra,
        )
        noted.write(run.home.state)


def _altered(run: ProjectRun) -> pl.DataFrame:
    """Points whose vector is not the library's; those that it does not know are left out."""
    altered = [SUSPECTS.empty()]
    if run.collection.exists():
        for points, vectors in run.collection.scroll_vectors():
            hashes, expected = run.library.vectors(points["content_hash"])
            at = pl.DataFrame({"content_hash": hashes}).with_row_index("at")
            rows = points.with_row_index("row").join(at, on="content_hash")
            same = cosines(vectors[rows["row"].to_numpy()], expected[rows["at"].to_numpy()])
            altered.append(rows.filter(~pl.Series(same >= SAME_COSINE)).select("point_id"))
    return pl.concat(altered)


def cosines(left: Vectors, right: Vectors) -> Vectors:
    """Cosine of each row of `left` with the same row of `right`."""
    lengths = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    return np.asarray(np.einsum("ij,ij->i", left, right) / lengths, np.float32)
