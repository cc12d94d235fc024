"""Greedy k-centre (Gonzalez 1985): each next one is the farthest from all before it.

One pass over all vectors serves many picks. As long as the best of a small pool is farther than
everything outside the pool was at the last pass, it is the farthest of all: distances only shrink.
"""

import numpy as np
from numpy.typing import NDArray

from embed_pipeline.search.distances import Doubles, Numbers, lower, mean, within
from embed_pipeline.search.taking import Taking
from embed_pipeline.vector_library import Halves

POOL = 512
CLOSED = -1.0


def farthest(points: Halves, before: Halves, taking: Taking, limit: int) -> Doubles:
    """Take up to `limit` of the open points, starting from those chosen `before`.

    Without any, the first one is the open point nearest to the mean. Among equals, the lowest. Returns
    each point's squared distance from the nearest chosen one.
    """
    bounds = np.full(len(points), np.inf)
    lower(bounds, points, before)
    if not len(before) and taking.open.any():
        first = _most_central(points, taking.open)
        taking.take(first)
        lower(bounds, points, points[[first]])
    while len(taking.points) < limit and taking.open.any():
        picked = _picks(points, bounds, taking, limit - len(taking.points))
        lower(bounds, points, points[picked])
    return bounds


def _most_central(points: Halves, open_: NDArray[np.bool_]) -> int:
    away = np.full(len(points), np.inf)
    lower(away, points, mean(points))
    return int(np.where(open_, away, np.inf).argmin())


def _picks(points: Halves, bounds: Doubles, taking: Taking, most: int) -> list[int]:
    """The next picks that are certain without another pass; at least one."""
    reach = np.where(taking.open, bounds, CLOSED)
    pool, outside = _pool(reach)
    gaps = within(points[pool])
    left = reach[pool]
    picked: list[int] = []
    while len(picked) < most:
        best = int(left.argmax())
        if left[best] == CLOSED or (picked and left[best] <= outside):
            break
        picked.append(int(pool[best]))
        taking.take(picked[-1])
        np.minimum(left, gaps[best], out=left)
        left[~taking.open[pool]] = CLOSED
    return picked


def _pool(reach: Doubles) -> tuple[Numbers, float]:
    """The points of greatest reach in ascending order, the first of them all included; and the reach
    of the farthest one outside.
    """  # noqa: D205  # one sentence does not fit a line
    if len(reach) <= POOL:
        return np.arange(len(reach)), CLOSED
    order = np.argpartition(-reach, POOL)
    return np.union1d(order[:POOL], [reach.argmax()]), float(reach[order[POOL]])
