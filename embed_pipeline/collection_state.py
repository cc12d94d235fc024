"""The collection_state table: what the collection held after the last sync, and the audit."""

import logging
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

import polars as pl

from embed_pipeline.errors import TableError, TableMissing
from embed_pipeline.tables import Table

logger = logging.getLogger(__name__)

STATE = Table(
    "collection_state",
    2,
    pl.Schema(
        {
            "project_id": pl.String(),
            "space": pl.String(),
            "conditions": pl.String(),
            "run_id": pl.String(),
            "revision": pl.String(),
            "finished_at": pl.Datetime("us", "UTC"),
            "retry_at": pl.Datetime("us", "UTC"),
            "images": pl.Int64(),
            "unchanged": pl.Int64(),
            "embed": pl.Int64(),
            "reuse": pl.Int64(),
            "relabel": pl.Int64(),
            "remove": pl.Int64(),
            "failed": pl.Int64(),
            "indexed": pl.Int64(),
            "missing": pl.Int64(),
            "stale": pl.Int64(),
            "extra": pl.Int64(),
            "withheld": pl.Int64(),
        }
    ),
)


@dataclass(frozen=True)
class CollectionState:
    """One sync of one project.

    images = unchanged + embed + reuse + relabel + failed, all counts of images. indexed: points
    after the sync. missing, stale, extra: what the audit found to differ, recorded failures left
    out. withheld: removals that the guard held back. revision: the source's token before the scan.
    conditions: as of Deployment. retry_at: when the first of the failures may be gone.
    """

    project_id: str
    space: str
    conditions: str
    run_id: str
    revision: str
    finished_at: datetime
    retry_at: datetime | None
    images: int
    unchanged: int
    embed: int
    reuse: int
    relabel: int
    remove: int
    failed: int
    indexed: int
    missing: int
    stale: int
    extra: int
    withheld: int

    @property
    def equal(self) -> bool:
        """Whether the collection equals the source, recorded failures left out."""
        return not (self.missing or self.stale or self.extra)

    @property
    def differences(self) -> str:
        """What the audit found, in words."""
        return f"{self.missing} missing, {self.stale} stale, {self.extra} extra"

    def write(self, path: Path) -> None:
        """Replace the state at `path`."""
        STATE.write(pl.DataFrame([asdict(self)], schema=STATE.schema), path)

    @classmethod
    def read(cls, path: Path) -> "CollectionState | None":
        """The state at `path`; None where no sync of this version has finished yet."""
        try:
            return cls(**STATE.read(path).row(0, named=True))
        except TableMissing:
            return None
        except TableError as error:
            logger.warning("%s", error)  # the next sync writes it anew
            return None
