"""Images in the order in which they match a query."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl

from embed_pipeline.errors import QueryError
from embed_pipeline.models.protocol import Vectors
from embed_pipeline.search.calibration import Calibration, unit
from embed_pipeline.search.parts import Part, Parts
from embed_pipeline.search.query import POOL, Mode
from embed_pipeline.stores.protocol import Collection, Filter

# How much a negative counts against a positive. On the demo model's scenes, half leaves nothing of what is
# named among the first ten, and takes least from what is wanted (benchmarks/relevance.py).
NEGATIVE_WEIGHT = 0.5
# Of reciprocal rank fusion (Cormack, Clarke and Büttcher 2009).
FUSION_RANKS = 60
SMALLEST_LENGTH = 1e-6


@dataclass(frozen=True)
class Ranking:
    """A query's parts, where they look, and the footing that they are compared on."""

    collection: Collection
    calibration: Calibration
    parts: Parts
    where: Filter

    def best(self, mode: Mode, count: int) -> pl.DataFrame:
        """The `count` best images: POINTS columns, `score` and `vector`; best first, ties by point id.

        The same query gives the same order, and more of it where `count` is larger. Mode `all` knows no
        more than some hundreds. Raises QueryError where the parts cancel each other out.
        """
        match mode:
            case "weighted":
                return self._nearest(self._whole, count)
            case "any":
                return self._best_of_any(count)
            case "all":
                return self._fused().head(count)

    def confidence(self, mode: Mode, images: Vectors) -> Vectors:
        """The chance that the best hit of an unrelated query matches less well than each image: 0..1.

        (n,) for images (n, dimension). weighted: compared with unrelated queries of as many parts; all: the
        least of the parts' confidences, any: the highest, less what matches that should not.
        """
        if mode == "weighted" and len(self.parts.wanted) + len(self.parts.unwanted) > 1:
            weights = [(part.kind, part.weight) for part in self.parts.wanted]
            weights += [(part.kind, -NEGATIVE_WEIGHT * part.weight) for part in self.parts.unwanted]
            best = self.calibration.best_of_mixed(tuple(weights))
            return best.below(images @ self._whole)
        of_each = self._confidences(self.parts.wanted, images)
        matched = of_each.min(axis=0) if mode == "all" else of_each.max(axis=0)
        spared = np.prod(1 - self._confidences(self.parts.unwanted, images), axis=0)
        return np.asarray(matched * spared)

    @cached_property
    def _whole(self) -> Vectors:
        """The direction of all parts together."""
        return self._towards(self.parts.wanted)

    def _confidences(self, parts: Sequence[Part], images: Vectors) -> Vectors:
        found = [self.calibration.confidence(part.kind, part.vector, images) for part in parts]
        return np.array(found, np.float32).reshape(len(parts), len(images))

    def _towards(self, wanted: Sequence[Part]) -> Vectors:
        """The direction in which images match. One part alone is its own vector.

        Each part counts in units of its own spread over the project: the sum orders images as the sum of
        the parts' standard scores does, and is one vector all the same.
        """
        if len(wanted) == 1 and not self.parts.unwanted:
            return wanted[0].vector
        direction = self._sum(wanted) - NEGATIVE_WEIGHT * self._sum(self.parts.unwanted)
        if np.linalg.norm(direction) < SMALLEST_LENGTH:
            raise QueryError("the query's parts cancel each other out; take one of them away")
        return unit(direction)

    def _sum(self, parts: Sequence[Part]) -> Vectors:
        total = np.zeros_like(self.calibration.means["image"])
        for part in parts:
            total += part.vector * (part.weight / self.calibration.spread(part.vector))
        return total

    def _nearest(self, vector: Vectors, count: int) -> pl.DataFrame:
        return self.collection.nearest(vector, count, self.where, with_vectors=True)

    def _best_of_any(self, count: int) -> pl.DataFrame:
        heaviest = max(part.weight for part in self.parts.wanted)
        found = []
        for part in self.parts.wanted:
            vector = self._towards([part])
            mean, spread = self.calibration.mean_cosine(vector), self.calibration.spread(vector)
            standard = (pl.col("score") - mean) / spread * (part.weight / heaviest)
            found.append(self._nearest(vector, count).with_columns(standard))
        best = _in_order(pl.concat(found)).unique("point_id", keep="first", maintain_order=True)
        return best.head(count)

    def _fused(self) -> pl.DataFrame:
        """Reciprocal ranks of each part, added up: on our side, so that ties have an order."""
        found = []
        for part in self.parts.wanted:
            ranks = pl.int_range(1, pl.len() + 1)
            reciprocal = part.weight / (FUSION_RANKS + ranks)
            nearest = self._nearest(self._towards([part]), POOL)
            found.append(nearest.with_columns(reciprocal.alias("score")))
        most = sum(part.weight for part in self.parts.wanted) / (FUSION_RANKS + 1)
        every = pl.concat(found)
        scores = every.group_by("point_id", maintain_order=True).agg(pl.col("score").sum() / most)
        images = every.drop("score").unique("point_id", keep="first", maintain_order=True)
        return _in_order(images.join(scores, on="point_id"))


def diversified(found: pl.DataFrame, count: int, diversity: float) -> pl.DataFrame:
    """`count` of the images, in the order in which they were picked: maximal marginal relevance.

    Each is the best by (1 - diversity) x relevance - diversity x its cosine with the nearest one picked
    before (Carbonell and Goldstein 1998). Relevance is the score, brought to 0..1.
    """
    if found.is_empty():
        return found
    vectors, scores = vectors_of(found), found["score"].to_numpy()
    low, high = float(scores.min()), float(scores.max())
    relevance = (scores - low) / max(high - low, SMALLEST_LENGTH)
    nearest_picked = np.zeros(found.height)
    open_ = np.ones(found.height, bool)
    picks: list[int] = []
    for _ in range(min(count, found.height)):
        gain = (1 - diversity) * relevance - diversity * nearest_picked
        pick = int(np.argmax(np.where(open_, gain, -np.inf)))
        picks.append(pick)
        open_[pick] = False
        cosines = np.einsum(
            "nd,d->n", vectors, vectors[pick]
        )  # BLAS takes longer to wake its threads
        np.maximum(nearest_picked, cosines, out=nearest_picked)
    return found[picks]


def vectors_of(found: pl.DataFrame) -> Vectors:
    """The column `vector`: (n, dimension)."""
    return np.asarray(found["vector"].to_numpy(), np.float32)


def _in_order(found: pl.DataFrame) -> pl.DataFrame:
    return found.sort("score", "point_id", descending=[True, False])
