"""One run on one project: what its steps read and write."""

from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property

import polars as pl

from embed_pipeline.deployment import Deployment
from embed_pipeline.diff import Difference, Knowledge, diff, wanted_points
from embed_pipeline.failures import FAILURES, not_due, of_settings
from embed_pipeline.home import ProjectHome
from embed_pipeline.images.decode import decoding_conditions
from embed_pipeline.manifest import MANIFEST
from embed_pipeline.models.protocol import ModelCard
from embed_pipeline.points import POINTS
from embed_pipeline.progress import Progress, silent
from embed_pipeline.stores.protocol import Collection
from embed_pipeline.tables import Table
from embed_pipeline.vector_library import VectorLibrary

SUSPECTS = Table("suspects", 1, pl.Schema({"point_id": pl.Binary()}))


@dataclass(frozen=True)
class ProjectRun:
    """A run on `project` under the target model. Whoever makes it holds the project's lease."""

    deployment: Deployment
    project: str
    run_id: str
    progress: Progress = silent

    @cached_property
    def project_id(self) -> str:
        """`source_id/project`."""
        return self.deployment.project_id(self.project)

    @cached_property
    def home(self) -> ProjectHome:
        """The project's tables."""
        return self.deployment.project_home(self.project)

    @cached_property
    def card(self) -> ModelCard:
        """The target model."""
        return self.deployment.card

    @cached_property
    def library(self) -> VectorLibrary:
        """The target space's vectors."""
        return self.deployment.library(self.card)

    @cached_property
    def collection(self) -> Collection:
        """The project's points in the target space."""
        return self.deployment.collection(self.project, self.card)

    @cached_property
    def limits(self) -> str:
        """What beside content and space decides whether an image can be embedded."""
        settings = self.deployment.settings
        decoding = decoding_conditions(settings.max_image_pixels)
        return f"{decoding}, {settings.max_image_bytes} bytes"

    def manifest(self) -> pl.DataFrame:
        """The manifest of the last scan. Raises TableMissing where there was none."""
        return MANIFEST.read(self.home.manifest)

    def failures(self) -> pl.DataFrame:
        """All failures recorded for the project, of every space and limit."""
        return FAILURES.read_or_empty(self.home.failures)

    def suspects(self) -> pl.DataFrame:
        """Points whose stored vector was found altered."""
        return SUSPECTS.read_or_empty(self.home.suspects)

    def compare(self, wanted: pl.DataFrame, *, forgive_all: bool = False) -> Difference:
        """Manifest against a fresh scroll of the collection.

        Failures that are due to be tried again count as work to do; with `forgive_all`, as failed.
        """
        recorded = of_settings(self.failures(), self.card.space, self.limits)
        failed = recorded if forgive_all else not_due(recorded, datetime.now(UTC))
        known = Knowledge(
            embedded=self.library.known,
            failed=failed["content_hash"],
            hopeless=recorded.filter(~pl.col("transient"))["content_hash"],
            suspects=self.suspects()["point_id"],
        )
        return diff(wanted, self._held(), known, self.run_id)

    def wanted(self) -> pl.DataFrame:
        """The points that the manifest asks for."""
        return wanted_points(self.project_id, self.manifest())

    def _held(self) -> pl.DataFrame:
        if not self.collection.exists():
            return POINTS.to_frame()
        return pl.concat([POINTS.to_frame(), *self.collection.scroll()])
