"""Squared Euclidean distances between vectors that are kept as float16, block by block.

Numbers of float16 up to 1 are multiples of 2**-24, so the products and sums of unit vectors fit into
float64 without rounding: each distance is exact, in whatever blocks, order or threads it is computed.
That is what makes a selection the same on every machine, and equal vectors equal.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from embed_pipeline.vector_library import Halves

# Blocks that stay in a core's cache.
ROWS = 2048
CENTRES = 1024

Doubles = NDArray[np.float64]
Numbers = NDArray[np.intp]


def slices(count: int, size: int) -> Iterator[slice]:
    """0 to `count` in steps of `size`."""
    return (slice(at, min(at + size, count)) for at in range(0, count, size))


def between(some: Doubles, others: Doubles) -> Doubles:
    """The squared distances of few vectors from few others, (some, others)."""
    squared: Doubles = (-2 * some) @ others.T
    squared += _squared_lengths(some)[:, None]
    squared += _squared_lengths(others)
    return squared


def within(vectors: Halves) -> Doubles:
    """The squared distances of few vectors among themselves, (n, n)."""
    wide = vectors.astype(np.float64)
    return between(wide, wide)


def lower(bounds: Doubles, vectors: Halves, centres: Halves) -> None:
    """Bring `bounds` (n) down to each vector's squared distance from the nearest centre, in place."""

    def work(rows: slice, some: slice, squared: Doubles) -> None:  # noqa: ARG001  # as `nearest` asks
        np.minimum(bounds[rows], squared.min(axis=0), out=bounds[rows])

    _for_all_blocks(work, centres, vectors)


def nearest(vectors: Halves, centres: Halves) -> tuple[Numbers, Doubles]:
    """Each vector's nearest centre, the first of equals, and the squared distance to it."""
    numbers = np.zeros(len(vectors), np.intp)
    bounds = np.full(len(vectors), np.inf)

    def work(rows: slice, some: slice, squared: Doubles) -> None:
        best = squared.argmin(axis=0)
        closest = squared[best, np.arange(len(best))]
        closer = closest < bounds[rows]
        numbers[rows][closer] = some.start + best[closer]
        bounds[rows][closer] = closest[closer]

    _for_all_blocks(work, centres, vectors)
    return numbers, bounds


def steps(vectors: Halves, before: Halves) -> Doubles:
    """Each vector's squared distance from the nearest one ahead of it: in `before`, or in `vectors`."""
    bounds = np.full(len(vectors), np.inf)
    lower(bounds, vectors, before)
    for rows in slices(len(vectors), ROWS):
        lower(bounds[rows], vectors[rows], vectors[: rows.start])
        ahead = np.tril(np.ones((rows.stop - rows.start,) * 2, bool), -1)
        closest = np.where(ahead, within(vectors[rows]), np.inf).min(axis=1)
        np.minimum(bounds[rows], closest, out=bounds[rows])
    return bounds


def mean(vectors: Halves) -> Halves:
    """The mean vector, (1, dimension)."""
    return means(vectors, np.zeros(len(vectors), np.intp), 1)


def means(vectors: Halves, labels: Numbers, count: int) -> Halves:
    """The mean vector of each label from 0 to `count`, (count, dimension); of label -1, none."""
    sums = np.zeros((count, vectors.shape[1]))
    for rows in slices(len(vectors), ROWS):
        order = np.argsort(labels[rows], kind="stable")
        order = order[labels[rows][order] >= 0]
        found, starts = np.unique(labels[rows][order], return_index=True)
        if len(found):
            sums[found] += np.add.reduceat(vectors[rows][order].astype(np.float64), starts)
    members = np.bincount(labels[labels >= 0], minlength=count)
    return (sums / np.maximum(members, 1)[:, None]).astype(np.float16)


def to_own(vectors: Halves, labels: Numbers, centres: Halves) -> Doubles:
    """Each vector's squared distance from the centre of its label; without meaning for label -1."""
    squared = np.empty(len(vectors))
    for rows in slices(len(vectors), ROWS):
        apart = vectors[rows].astype(np.float64) - centres[labels[rows]]
        squared[rows] = _squared_lengths(apart)
    return squared


def distances(squared: Doubles) -> Doubles:
    """Of unit vectors, 0..2: rounded to float16 they may seem a little farther apart."""
    return np.sqrt(np.minimum(squared, 4.0))


def _for_all_blocks(
    work: Callable[[slice, slice, Doubles], None], centres: Halves, vectors: Halves
) -> None:
    """Give `work` the squared distances (centres, vectors) of every block, several at once.

    It never works on the same vectors twice at once.
    """
    with ThreadPoolExecutor(os.cpu_count()) as workers:
        for some in slices(len(centres), CENTRES):
            wide = centres[some].astype(np.float64)

            def block(rows: slice, some: slice = some, wide: Doubles = wide) -> None:
                work(rows, some, between(wide, vectors[rows].astype(np.float64)))

            in_turn = workers.map if len(vectors) > ROWS else map
            for _ in in_turn(block, slices(len(vectors), ROWS)):
                pass  # so that an error is not lost


@contextmanager
def one_thread_per_block() -> Iterator[None]:
    """Keep the library of linear algebra to one thread: several of its own wait for each other busily.

    It holds for the process, so by one caller at a time.
    """
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    with threadpool_limits(1, user_api="blas"):
        yield


def _squared_lengths(vectors: Doubles) -> Doubles:
    lengths: Doubles = np.einsum("ij,ij->i", vectors, vectors)
    return lengths
