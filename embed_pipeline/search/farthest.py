"""Greedy k-centre (Gonzalez 1985): each next one is the farthest from all before it.

One pass over all vectors serves many picks. As long as the best of a small pool is farther than
everything outside the pool was at the last pass, it is the farthest of all: distances only shrink.
"""

from copy import deepcopy

import numpy as np
from numpy.typing import NDArray

from embed_pipeline.search.distances import Doubles, Numbers, lower, mean, within
from embed_pipeline.search.taking import Taking
from embed_pipeline.vector_library import Halves

POOL = 512
CLOSED = -1.0
STARTS = 8
MOST_TRIED = 1 << 21  # points times picks: a few hundredths of a second each


def farthest(points: Halves, before: Halves, taking: Taking, limit: int, seed: int) -> Doubles:
    """Take up to `limit` of the open points, starting from those chosen `before`.

    Without any, the first one is the open point nearest to the mean; where a choice is made quickly, so
    that its start matters most, one of a few that leaves nothing farther away. Among equals, the lowest.
    Returns each point's squared distance from the nearest chosen one.
    """
    if not len(before) and taking.open.any():
        starts = _starts(points, taking.open, limit, seed)
        if len(starts) > 1:
            starts.sort(key=lambda start: _from(start, points, deepcopy(taking), limit).max())
        return _from(starts[0], points, taking, limit)
    bounds = np.full(len(points), np.inf)
    lower(bounds, points, before)
    _spread(points, bounds, taking, limit)
    return bounds


def _starts(points: Halves, open_: NDArray[np.bool_], limit: int, seed: int) -> list[int]:
    away = np.full(len(points), np.inf)
    lower(away, points, mean(points))
    central = int(np.where(open_, away, np.inf).argmin())
    if limit * len(points) > MOST_TRIED:
        return [central]
    others = np.random.default_rng(seed).permutation(np.flatnonzero(open_))
    return [central, *others[: STARTS - 1].tolist()]


def _from(start: int, points: Halves, taking: Taking, limit: int) -> Doubles:
    taking.take(start)
    bounds = np.full(len(points), np.inf)
    lower(bounds, points, points[[start]])
    _spread(points, bounds, taking, limit)
    return bounds


def _spread(points: Halves, bounds: Doubles, taking: Taking, limit: int) -> None:
    while len(taking.points) < limit and taking.open.any():
        picked = _picks(points, bounds, taking, limit - len(taking.points))
        lower(bounds, points, points[picked])


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
    """The points of greatest reach, ascending, with the lowest of the best; the greatest reach outside."""
    if len(reach) <= POOL:
        return np.arange(len(reach)), CLOSED
    order = np.argpartition(-reach, POOL)
    return np.union1d(order[:POOL], [reach.argmax()]), float(reach[order[POOL]])
