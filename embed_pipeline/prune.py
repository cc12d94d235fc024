"""Dropping what nothing needs any more: spaces that nothing serves, vectors of content that is gone."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import chain

import polars as pl

from embed_pipeline.deployment import Deployment
from embed_pipeline.home import ProjectHome
from embed_pipeline.lease import lease
from embed_pipeline.manifest import MANIFEST
from embed_pipeline.retire import drop_points, retire
from embed_pipeline.serving import forget_previous, serving_of
from embed_pipeline.tables import Table
from embed_pipeline.vector_library import VectorLibrary
from embed_pipeline.watching import confirm_absence

# How long a vector is kept after its content was last seen: a restored image costs no model time.
KEEP = timedelta(days=30)

UNUSED = Table(
    "unused", 1, pl.Schema({"content_hash": pl.Binary(), "since": pl.Datetime("us", "UTC")})
)


@dataclass(frozen=True)
class Pruned:
    """Something that went. what: project, points of a space, or vectors; count: of vectors."""

    what: str
    name: str
    count: int | None = None


def prune(deployment: Deployment, *, now: bool = False, absent: bool = False) -> list[Pruned]:
    """Drop what nothing serves; what a project is searched in, or brought over to, is kept.

    now: also vectors whose content was in use less than KEEP ago. absent: retire every project that
    the source does not have now, however many. Afterwards there is nothing to roll back to.
    Raises LeaseHeld where a run works on a project.
    """
    pruned = [*_absent_projects(deployment)] if absent else []
    homes = [deployment.home.project(project_id) for project_id in deployment.home.project_ids()]
    for home in homes:
        pruned += _points(deployment, home)
    pruned += _libraries(deployment, homes)
    pruned += _vectors(deployment, homes, timedelta(0) if now else KEEP)
    return pruned


def _absent_projects(deployment: Deployment) -> Iterator[Pruned]:
    """Retire them here and now; their partitions go when the sensor looks next."""
    source = deployment.source
    listed = {*source.projects(), *chain(*source.left_out().values())}
    prefix = f"{source.source_id}/"
    ours = [id_ for id_ in deployment.home.project_ids() if id_.startswith(prefix)]
    absent = sorted({id_.removeprefix(prefix) for id_ in ours} - listed)
    confirm_absence(deployment, absent)
    for project in absent:
        retire(deployment, project)
        yield Pruned("project", project)


def _points(deployment: Deployment, home: ProjectHome) -> Iterator[Pruned]:
    """Drop a project's points but for those that it is searched in, or brought over to."""
    if not home.project_id.startswith(f"{deployment.source.source_id}/"):
        return  # another deployment's: its EMBED_MODEL is not known here
    project = home.project_id.partition("/")[2]
    with lease(home, project, "prune", deployment.settings.lease_wait_seconds):
        serving = serving_of(home)
        kept = {serving.now.space} if serving else set()
        if not (serving and serving.rejected == deployment.card.space):
            kept.add(deployment.card.space)
        for space in set(deployment.store.spaces(home.project_id)) - kept:
            drop_points(deployment, home, space)
            yield Pruned("points", f"{project} in {space}")
        for tables in home.spaces():
            if tables.root.name not in kept:
                shutil.rmtree(tables.root)
        forget_previous(home)


def _libraries(deployment: Deployment, homes: list[ProjectHome]) -> Iterator[Pruned]:
    """Drop the libraries of spaces in which no project has points, or will."""
    kept = {deployment.card.space}
    for home in homes:
        kept.update(deployment.store.spaces(home.project_id))
        if serving := serving_of(home):
            kept.add(serving.now.space)
    for root in deployment.home.vector_spaces():
        if root.name not in kept:
            vectors = VectorLibrary.at(root).content_hashes().len()
            shutil.rmtree(root)
            yield Pruned("vectors", root.name, vectors)


def _vectors(deployment: Deployment, homes: list[ProjectHome], keep: timedelta) -> Iterator[Pruned]:
    """Drop vectors whose content has been in no project's manifest for so long."""
    now = datetime.now(UTC)
    manifests = [MANIFEST.read_or_empty(home.manifest)["content_hash"] for home in homes]
    used = pl.concat([pl.Series("content_hash", dtype=pl.Binary), *manifests])
    for root in deployment.home.vector_spaces():
        library = VectorLibrary.at(root)
        noted = UNUSED.read_or_empty(root / "unused.parquet")
        held = pl.DataFrame({"content_hash": library.content_hashes()})
        unused = (
            held.filter(~pl.col("content_hash").is_in(used.implode()))
            .join(noted, on="content_hash", how="left")
            .with_columns(pl.col("since").fill_null(now))
        )
        gone = unused.filter(pl.col("since") + keep <= now)["content_hash"]
        UNUSED.write(unused.filter(pl.col("since") + keep > now), root / "unused.parquet")
        if gone.len():
            library.remove(gone)
            yield Pruned("vectors", f"unused in {root.name}", gone.len())
