"""The methods of a diverse selection on vectors, and what a choice covers."""

from dataclasses import dataclass

import numpy as np

from embed_pipeline.search.candidates import Candidates
from embed_pipeline.search.clusters import (
    NOISE,
    Clusters,
    by_size,
    central_first,
    dbscan,
    in_turns,
    kmeans,
)
from embed_pipeline.search.distances import Doubles, Numbers, distances, lower
from embed_pipeline.search.farthest import farthest
from embed_pipeline.search.medoids import medoids
from embed_pipeline.search.selection import Coverage, Selection
from embed_pipeline.search.taking import Taking

# As many clusters as tell whether a choice that was not made by clusters misses something.
MOST_CLUSTERS_TOLD = 100
DIGITS = 4


@dataclass(frozen=True)
class Groups:
    """Clusters by number: the largest is 0, NOISE has none.

    labels: of the candidates' points. before: of the vectors chosen before.
    """

    labels: Numbers
    before: Numbers


def groups_of(candidates: Candidates, selection: Selection, most_bytes: int) -> Groups:
    """The clusters that a selection chooses from, or is told by."""
    clusters = _clusters(candidates, selection, most_bytes)
    labels = clusters.labels(candidates.points)
    numbers = by_size(labels, clusters.count)
    return Groups(numbers[labels], numbers[clusters.labels(candidates.before)])


def choose(candidates: Candidates, groups: Groups, selection: Selection, taking: Taking) -> Doubles:
    """Take up to `limit` points; returns all points' squared distances from the nearest chosen one."""
    match selection.method:
        case "farthest":
            return farthest(
                candidates.points, candidates.before, taking, selection.limit, selection.seed
            )
        case "random":
            return choose_at_random(candidates, selection.limit, selection.seed, taking)
        case "kmeans" | "dbscan":
            order = _order_in_clusters(candidates, groups, selection)
            in_turns(groups.labels, order, groups.before, taking, selection.limit)
            return _away(candidates, taking)


def choose_at_random(candidates: Candidates, limit: int, seed: int, taking: Taking) -> Doubles:
    """Take up to `limit` points by chance; returns as `choose`."""
    for point in _shuffled(candidates, seed):
        if len(taking.points) >= limit:
            break
        if taking.open[point]:
            taking.take(int(point))
    return _away(candidates, taking)


def coverage(candidates: Candidates, groups: Groups, taking: Taking, away: Doubles) -> Coverage:
    """What the taken points and those chosen before cover. away: as `choose` returns it."""
    images_of_each = np.bincount(candidates.images["point"].to_numpy())
    clusters = np.setdiff1d(groups.labels, [NOISE])
    chosen = np.concatenate([groups.labels[taking.points], groups.before])
    touched = np.intersect1d(clusters, chosen)
    far = distances(away)
    return Coverage(
        mean_distance=round(float(np.average(far, weights=images_of_each)), DIGITS),
        largest_distance=round(float(far.max()), DIGITS),
        clusters_touched=round(len(touched) / len(clusters), DIGITS) if len(clusters) else 1.0,
    )


def _clusters(candidates: Candidates, selection: Selection, most_bytes: int) -> Clusters:
    points, seed = candidates.points, selection.seed
    if selection.method == "dbscan":
        return dbscan(points, selection.eps, selection.min_samples, seed, most_bytes)
    told = selection.limit if selection.method == "kmeans" else MOST_CLUSTERS_TOLD
    return kmeans(points, selection.clusters or min(selection.limit, told), seed)


def _order_in_clusters(candidates: Candidates, groups: Groups, selection: Selection) -> Numbers:
    if selection.members == "random":
        return _shuffled(candidates, selection.seed)
    order = central_first(candidates.points, groups.labels)
    best = medoids(candidates.points, groups.labels, order, candidates.before, selection.seed)
    return np.concatenate([best, order])  # a point that was taken is passed over


def _shuffled(candidates: Candidates, seed: int) -> Numbers:
    return np.random.default_rng(seed).permutation(len(candidates.points))


def _away(candidates: Candidates, taking: Taking) -> Doubles:
    bounds = np.full(len(candidates.points), np.inf)
    lower(bounds, candidates.points, candidates.before)
    lower(bounds, candidates.points, candidates.points[taking.points])
    return bounds
