"""One run on one project, in one of its spaces: what its steps read and write."""

import logging
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property

import polars as pl

from embed_pipeline.deployment import Deployment
from embed_pipeline.diff import Difference, Knowledge, diff, wanted_points
from embed_pipeline.errors import ModelError
from embed_pipeline.failures import FAILURES, not_due, of_settings
from embed_pipeline.home import ProjectHome, SpaceHome
from embed_pipeline.manifest import MANIFEST
from embed_pipeline.models.protocol import ModelCard
from embed_pipeline.points import POINTS
from embed_pipeline.progress import Progress, silent
from embed_pipeline.stores.protocol import Collection
from embed_pipeline.tables import Table
from embed_pipeline.vector_library import VectorLibrary

logger = logging.getLogger(__name__)

SUSPECTS = Table("suspects", 1, pl.Schema({"point_id": pl.Binary()}))
FORCED = Table("forced", 1, pl.Schema({"content_hash": pl.Binary()}))


@dataclass(frozen=True)
class ProjectRun:
    """A run on `project`. Whoever makes it holds the project's lease.

    chosen_card: the model whose space this is about; None: the one that the project is searched with.
    """

    deployment: Deployment
    project: str
    run_id: str
    progress: Progress = silent
    chosen_card: ModelCard | None = None

    def spaces(self) -> list["ProjectRun"]:
        """This run in each space that must hold all images: the serving one, then the target."""
        target = self.deployment.target_card(self.project)
        return [self] if target == self.card else [self, self.into(target)]

    def into(self, card: ModelCard) -> "ProjectRun":
        """The same run in another space."""
        return replace(self, chosen_card=card)

    @cached_property
    def card(self) -> ModelCard:
        """The model of this run's space."""
        if self.chosen_card:
            return self.chosen_card
        try:
            return self.deployment.serving_card(self.project)
        except ModelError as error:
            # Nobody can search there any more: the sooner the target takes over, the better.
            logger.warning("%s", error)
            return self.deployment.target_card(self.project)

    @cached_property
    def project_id(self) -> str:
        """`source_id/project`."""
        return self.deployment.project_id(self.project)

    @cached_property
    def home(self) -> ProjectHome:
        """The project's tables."""
        return self.deployment.project_home(self.project)

    @cached_property
    def space_home(self) -> SpaceHome:
        """The project's tables of this space."""
        return self.home.space(self.card.space)

    @cached_property
    def library(self) -> VectorLibrary:
        """The space's vectors."""
        return self.deployment.library(self.card)

    @cached_property
    def collection(self) -> Collection:
        """The project's points in the space."""
        return self.deployment.collection(self.project, self.card)

    def indexed(self) -> int:
        """Points that the collection holds now; 0 where there is none."""
        return self.collection.count() if self.collection.exists() else 0

    def listed(self) -> pl.DataFrame:
        """What the source lists now: MANIFEST rows, one per image. The manifest stays as it is."""
        pages = [page.images for page in self.deployment.source.scan(self.project)]
        listed = pl.concat([MANIFEST.empty(), *pages])
        return listed.unique("image_id", keep="last", maintain_order=True)

    def manifest(self) -> pl.DataFrame:
        """The manifest of the last scan. Raises TableMissing where there was none."""
        return MANIFEST.read(self.home.manifest)

    def revision(self) -> str:
        """What this run makes the collection equal to, after the scan."""
        return self.deployment.revision(MANIFEST.notes(self.home.manifest)["revision"])

    def all_failures(self) -> pl.DataFrame:
        """All failures recorded for the project, of every space and limit."""
        return FAILURES.read_or_empty(self.home.failures)

    def failures(self) -> pl.DataFrame:
        """Those that happened in this space under today's limits."""
        return of_settings(self.all_failures(), self.card.space, self.deployment.limits)

    def suspects(self) -> pl.DataFrame:
        """Points whose stored vector was found altered."""
        return SUSPECTS.read_or_empty(self.space_home.suspects)

    def forced(self) -> pl.DataFrame:
        """Contents that must be encoded anew, whatever vector they have."""
        return FORCED.read_or_empty(self.space_home.forced)

    def known(self, content_hashes: pl.Series) -> pl.Series:
        """Those of `content_hashes` that have a vector, and need no other one; each once."""
        known = self.library.known(content_hashes)
        return known.filter(~known.is_in(self.forced()["content_hash"].implode()))

    def compare(self, wanted: pl.DataFrame, *, forgive_all: bool = False) -> Difference:
        """Manifest against a fresh scroll of the collection.

        Failures that are due to be tried again count as work to do; with `forgive_all`, as failed.
        """
        recorded = self.failures()
        failed = recorded if forgive_all else not_due(recorded, datetime.now(UTC))
        known = Knowledge(
            embedded=self.library.known,
            failed=failed["content_hash"],
            hopeless=recorded.filter(~pl.col("transient"))["content_hash"],
            suspects=self.suspects()["point_id"],
            forced=self.forced()["content_hash"],
        )
        return diff(wanted, self._held(), known, self.run_id)

    def wanted(self) -> pl.DataFrame:
        """The points that the manifest asks for."""
        return wanted_points(self.project_id, self.manifest())

    def _held(self) -> pl.DataFrame:
        if not self.collection.exists():
            return POINTS.to_frame()
        return pl.concat([POINTS.to_frame(), *self.collection.scroll()])
