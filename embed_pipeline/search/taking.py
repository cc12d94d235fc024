"""Which image stands for a content that is chosen, and which contents quotas leave to choose from."""

from collections.abc import Sequence

import numpy as np
import polars as pl

# Datasets that together may give so many images.
Quotas = Sequence[tuple[Sequence[str], int]]


class Taking:
    """The choice so far. Points are contents, numbered from 0; each has one image or several.

    images: columns `point` and `dataset_id`, sorted by point. used: points that are already chosen.
    `open`: the points that may be taken now; `points`: those taken, in order; `rows`: the images taken, as
    row numbers of `images`.
    """

    def __init__(
        self,
        images: pl.DataFrame,
        quotas: Quotas = (),
        used: Sequence[int] = (),
    ) -> None:
        self.points: list[int] = []
        self.rows: list[int] = []
        self._point_of = images["point"].to_numpy()
        self._starts = np.flatnonzero(np.diff(self._point_of, prepend=-1))
        self._datasets = images["dataset_id"]
        self._quotas = _by_dataset(quotas)
        self._room = [room for _, room in quotas]
        self._with_room = np.ones(images.height, bool)
        self.open = np.ones(len(self._starts), bool)
        self.open[list(used)] = False
        self._close_full()

    def take(self, point: int) -> None:
        """Choose an open point: its first image that quotas allow."""
        first = int(self._starts[point])
        row = first + int(self._with_room[first:].argmax())
        self.points.append(point)
        self.open[point] = False
        self._take_image(row)

    def take_copies(self, limit: int) -> None:
        """Where all contents are used: further images of the same contents, until `limit` are taken."""
        for row in self._copies():
            if len(self.rows) >= limit:
                return
            if self._with_room[row]:
                self._take_image(row)

    def _copies(self) -> pl.Series:
        """Images that were not taken: one more of each content before another one of any."""
        order = np.arange(len(self.open)) + len(self.points)
        order[self.points] = np.arange(len(self.points))
        rows = pl.DataFrame({"point": self._point_of, "order": order[self._point_of]})
        left = rows.with_row_index("row").filter(~pl.col("row").is_in(self.rows))
        turn = pl.int_range(pl.len()).over("point")
        return left.sort(turn, "order", maintain_order=True)["row"]

    def _take_image(self, row: int) -> None:
        self.rows.append(row)
        limiting = self._quotas.get(self._datasets[row], ())
        for quota in limiting:
            self._room[quota] -= 1
        if any(self._room[quota] <= 0 for quota in limiting):
            self._close_full()

    def _close_full(self) -> None:
        full = [
            dataset
            for dataset, limiting in self._quotas.items()
            if any(self._room[quota] <= 0 for quota in limiting)
        ]
        if full:
            self._with_room = ~self._datasets.is_in(full).to_numpy()
            self.open &= np.logical_or.reduceat(self._with_room, self._starts)


def _by_dataset(quotas: Quotas) -> dict[str, list[int]]:
    """The numbers of the quotas that a dataset counts towards."""
    numbers: dict[str, list[int]] = {}
    for number, (datasets, _) in enumerate(quotas):
        for dataset in datasets:
            numbers.setdefault(dataset, []).append(number)
    return numbers
