"""Whether stored vectors are what a search needs: finite, and of unit norm."""

from dataclasses import dataclass

import numpy as np

from embed_pipeline.models.protocol import Vectors
from embed_pipeline.stores.protocol import Collection

UNIT_TOLERANCE = 0.01  # the store keeps float16


@dataclass
class VectorHealth:
    """Counts of points."""

    points: int = 0
    not_finite: int = 0
    not_unit: int = 0

    @property
    def sound(self) -> bool:
        """Whether every vector is."""
        return not (self.not_finite or self.not_unit)

    def __str__(self) -> str:
        """For people."""
        return (
            f"{self.not_finite} of {self.points:,} vectors not finite, "
            f"{self.not_unit} not of unit norm"
        )

    def look_at(self, vectors: Vectors) -> None:
        """Count in another page of vectors."""
        lengths = np.linalg.norm(vectors.astype(np.float64), axis=1)
        finite = np.isfinite(lengths)
        self.points += len(vectors)
        self.not_finite += int((~finite).sum())
        self.not_unit += int((np.abs(lengths[finite] - 1) > UNIT_TOLERANCE).sum())


def vector_health(collection: Collection, at_most: int) -> VectorHealth:
    """The health of the first points, which are a fair sample: ids are hashes."""
    health = VectorHealth()
    if collection.exists():
        for _, vectors in collection.scroll_vectors():
            health.look_at(vectors)
            if health.points >= at_most:
                break
    return health
