"""One member for each cluster, so that together they leave little uncovered.

The member nearest to a cluster's mean is a good start, but no better than any other where a cluster is
no more than a share of an even cloud. So, cluster after cluster, a few central members are tried, and
the one is kept that leaves a sample of all vectors nearest to a medoid.
"""

import numpy as np

from embed_pipeline.search.clusters import NOISE, by_label
from embed_pipeline.search.distances import Doubles, Numbers, between, lower
from embed_pipeline.vector_library import Halves

TRIED = 16
SAMPLE = 8192
MOST_PAIRS = 1 << 22  # of medoids and vectors of the sample
FARTHEST = 4.0  # squared, of unit vectors


def medoids(
    points: Halves, labels: Numbers, central_first: Numbers, before: Halves, seed: int
) -> Numbers:
    """A point for each cluster but NOISE; together with the vectors chosen `before` they cover most."""
    tried = [group[:TRIED] for label, group in by_label(central_first, labels) if label != NOISE]
    if not tried:
        return np.empty(0, np.intp)
    size = min(SAMPLE, max(MOST_PAIRS // len(tried), 1))
    sample = points[np.random.default_rng(seed).permutation(len(points))[:size]]
    return _improved(points, tried, sample, before)


def _improved(points: Halves, tried: list[Numbers], sample: Halves, before: Halves) -> Numbers:
    is_part = len(sample) < len(points)
    best = np.array([group[0] for group in tried])
    wide = sample.astype(np.float64)
    away = np.vstack([between(points[best].astype(np.float64), wide), _uncovered(sample, before)])
    two = _two_least(away)
    for number, group in enumerate(tried):
        others = np.where(away[number] <= two[0], two[1], two[0])
        ways = between(points[group].astype(np.float64), wide)
        # That a vector covers itself says nothing of those that are not in the sample.
        left = np.minimum(np.where((ways == 0) & is_part, others, ways), others)
        kept = int(np.sqrt(left).sum(axis=1).argmin())
        best[number] = group[kept]
        changed = (away[number] <= two[1]) | (ways[kept] < two[1])
        away[number] = ways[kept]
        two[:, changed] = _two_least(away[:, changed])
    return best


def _uncovered(sample: Halves, before: Halves) -> Doubles:
    bounds = np.full(len(sample), FARTHEST)
    lower(bounds, sample, before)
    return bounds


def _two_least(away: Doubles) -> Doubles:
    return np.partition(away, 1, axis=0)[:2]
