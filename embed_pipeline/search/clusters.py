"""Clusters of vectors, and images taken from them in turns."""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from math import isqrt

import numpy as np
from numpy.typing import NDArray

from embed_pipeline.search.distances import Numbers, means, nearest, slices, to_own
from embed_pipeline.search.taking import Taking
from embed_pipeline.vector_library import Halves

NOISE = -1
BATCH = 4096
# Batches to learn from: the centres of a few thousand images settle in as many.
LEAST_BATCHES = 20
# scikit-learn's DBSCAN lists the neighbours of each: in the worst case, all, in 8 bytes each.
BYTES_PER_PAIR = 16


@dataclass(frozen=True)
class Clusters:
    """Each vector belongs to the cluster of the nearest centre, or is noise where none is in reach.

    centres: (n, dimension). cluster_of: each centre's cluster, from 0. reach: squared distance.
    """

    centres: Halves
    cluster_of: Numbers
    reach: float = np.inf

    @property
    def count(self) -> int:
        """How many clusters there are."""
        return int(self.cluster_of.max(initial=NOISE)) + 1

    def labels(self, vectors: Halves) -> Numbers:
        """The cluster of each vector, NOISE where it has none."""
        if not len(self.centres):
            return np.full(len(vectors), NOISE)
        numbers, squared = nearest(vectors, self.centres)
        return np.where(squared <= self.reach, self.cluster_of[numbers], NOISE)


def kmeans(points: Halves, count: int, seed: int) -> Clusters:
    """Mini-batch k-means with `count` centres, at most as many as there are points."""
    from sklearn.cluster import MiniBatchKMeans, kmeans_plusplus  # type: ignore[import-untyped]

    count = min(count, len(points))
    size = min(len(points), max(BATCH, 3 * count))
    rng = np.random.default_rng(seed)
    start, _ = kmeans_plusplus(
        _batch(points, rng.permutation(len(points))[:size]),
        count,
        random_state=seed,
        n_local_trials=1,  # more try harder, at as many times the price
    )
    # Centres that few vectors belong to stay: they are what a diverse choice is about.
    model = MiniBatchKMeans(count, init=start, n_init=1, random_state=seed, reassignment_ratio=0)
    done = 0
    while done < LEAST_BATCHES:
        order = rng.permutation(len(points))
        for rows in slices(len(points), size):
            model.partial_fit(_batch(points, order[rows]))
            done += 1
    centres = model.cluster_centers_.astype(np.float16)
    return Clusters(centres, np.arange(count))


def dbscan(
    points: Halves, eps: float | None, min_samples: int, seed: int, most_bytes: int
) -> Clusters:
    """DBSCAN; of a seeded sample where all would take more than `most_bytes`. Copies count once.

    Its clusters are named by their core points: whatever is within `eps` of one belongs to the nearest
    one's cluster. Without `eps`, it is where the curve of distances to the `min_samples`-th neighbour bends.
    """
    from sklearn.cluster import DBSCAN

    size = min(len(points), isqrt(most_bytes // BYTES_PER_PAIR))
    sample = np.sort(np.random.default_rng(seed).permutation(len(points))[:size])
    vectors = _batch(points, sample)
    if eps is None:
        eps = bend(vectors, min_samples)
    found = DBSCAN(eps=eps, min_samples=min_samples, algorithm="brute").fit(vectors)
    core = found.core_sample_indices_
    return Clusters(points[sample[core]], found.labels_[core], eps**2)


def bend(vectors: NDArray[np.float32], min_samples: int) -> float:
    """The distance at which neighbours become rare: the curve's point farthest below its chord."""
    from sklearn.neighbors import NearestNeighbors  # type: ignore[import-untyped]

    neighbours = min(min_samples, len(vectors))
    found = NearestNeighbors(n_neighbors=neighbours, algorithm="brute").fit(vectors)
    curve = np.sort(found.kneighbors(vectors)[0][:, -1])
    chord = np.linspace(curve[0], curve[-1], len(curve))
    return max(float(curve[(chord - curve).argmax()]), float(np.finfo(np.float16).eps))


def by_size(labels: Numbers, count: int) -> Numbers:
    """New numbers for `count` clusters: the largest is 0. Indexed by the old ones; NOISE stays."""
    sizes = np.bincount(labels[labels != NOISE], minlength=count)
    numbers = np.full(count + 1, NOISE)
    numbers[np.argsort(-sizes, kind="stable")] = np.arange(count)
    return numbers


def central_first(points: Halves, labels: Numbers) -> Numbers:
    """Points in the order of their distance from the mean of their cluster; noise comes last."""
    centres = means(points, labels, int(labels.max(initial=0)) + 1)
    away = np.where(labels == NOISE, np.inf, to_own(points, labels, centres))
    return np.argsort(away, kind="stable")


def by_label(order: Numbers, labels: Numbers) -> Iterator[tuple[int, Numbers]]:
    """Each cluster's number with its points, in the `order` given."""
    sorted_ = order[np.argsort(labels[order], kind="stable")]
    found, starts = np.unique(labels[sorted_], return_index=True)
    return zip(found.tolist(), np.split(sorted_, starts[1:]), strict=True)


def in_turns(labels: Numbers, order: Numbers, before: Numbers, taking: Taking, limit: int) -> None:
    """Take one open point of each cluster in each round, largest clusters first; noise comes last.

    Inside a cluster in the `order` given. before: the clusters of images that were chosen before: each
    was a turn of its cluster.
    """
    members = {label: iter(group) for label, group in by_label(order, labels)}
    turns = np.bincount(before[before != NOISE], minlength=int(labels.max(initial=0)) + 1)
    waiting = [(label == NOISE, int(turns[label]), label) for label in members]
    heapq.heapify(waiting)
    while waiting and len(taking.points) < limit:
        noise, turn, label = heapq.heappop(waiting)
        point = next((int(each) for each in members[label] if taking.open[each]), None)
        if point is not None:
            taking.take(point)
            heapq.heappush(waiting, (noise, turn + 1, label))


def _batch(points: Halves, rows: Numbers) -> NDArray[np.float32]:
    return points[rows].astype(np.float32)
