"""Search and diverse selection over the projects of a deployment. Reads only."""

from collections import OrderedDict
from dataclasses import dataclass, field
from functools import partial
from threading import Lock

import polars as pl

from embed_pipeline.deployment import Deployment
from embed_pipeline.search.parts import parts_of, rows_named
from embed_pipeline.search.query import POOL, Answer, Hit, Query
from embed_pipeline.search.ranking import Ranking, diversified, vectors_of
from embed_pipeline.search.scope import dataset_ids
from embed_pipeline.search.selection import Selected, Selection
from embed_pipeline.search.view import View, version_of, view_of
from embed_pipeline.stores.protocol import Filter

# A view holds the project's manifest: some 200 bytes an image.
VIEWS_KEPT = 32
# As many as are shown: a score that was shown is a threshold that its image reaches.
DIGITS = 4


@dataclass
class _Slot:
    """Where one project's view is kept. lock: one thread at a time makes it, the others wait."""

    lock: Lock = field(default_factory=Lock)
    version: object = None
    view: View | None = None


class Searcher:
    """Answers queries; keeps what it has read of a project's tables until they change.

    To be shared between threads, if the deployment's encoders are.
    """

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment
        self._lock = Lock()
        self._slots: OrderedDict[str, _Slot] = OrderedDict()

    def search(self, project: str, query: Query) -> Answer:
        """The images that match the query best.

        Raises CollectionMissing where the project was never synced, QueryError for an image or dataset
        that is nowhere.
        """
        view = self._view(project)
        parts = parts_of(view, query)
        left_out = () if query.with_references else tuple(parts.references)
        ranking = Ranking(view.collection, view.calibration, parts, _filter(view, query, left_out))
        found = ranking.best(query.mode, POOL if query.is_pooled else query.offset + query.limit)
        confidence = ranking.confidence(query.mode, vectors_of(found))
        found = _enough(found.hstack([pl.Series("confidence", confidence)]), query)
        if query.diversity:
            found = diversified(found, query.offset + query.limit, query.diversity)
        page = found.slice(query.offset, query.limit)
        return Answer(hits=_hits(view, page), truncated=parts.truncated)

    def diverse(self, project: str, selection: Selection) -> Selected:
        """Images that differ from each other. Raises as `search`."""
        from embed_pipeline.search.diverse import diverse  # scikit-learn takes a second

        view, query = self._view(project), selection.query
        found = [hit.image_id for hit in self.search(project, query).hits] if query else None
        return diverse(view, selection, found)

    def has_image(self, project: str, given: str) -> bool:
        """Whether the project has an image of that id or name. Raises as `search`."""
        return not rows_named(self._view(project), given).is_empty()

    def _view(self, project: str) -> View:
        with self._lock:
            slot = self._slots.setdefault(project, _Slot())
            self._slots.move_to_end(project)
            if len(self._slots) > VIEWS_KEPT:
                self._slots.popitem(last=False)
        with slot.lock:
            version = version_of(self.deployment, project)
            if slot.view is None or slot.version != version:
                slot.view, slot.version = view_of(self.deployment, project), version
            return slot.view


def _filter(view: View, query: Query, left_out: tuple[str, ...]) -> Filter:
    datasets = None if query.datasets is None else dataset_ids(view.manifest, query.datasets)
    return Filter(
        datasets=None if datasets is None else tuple(datasets),
        image_ids=None if query.image_ids is None else tuple(query.image_ids),
        exclude_image_ids=left_out,
    )


def _enough(found: pl.DataFrame, query: Query) -> pl.DataFrame:
    """Those that reach the least score and confidence, as they are shown."""
    if query.threshold is not None:
        found = found.filter(pl.col("score").round(DIGITS) >= query.threshold)
    if query.confidence is not None:
        found = found.filter(pl.col("confidence").round(DIGITS) >= query.confidence)
    return found


def _hits(view: View, page: pl.DataFrame) -> list[Hit]:
    where = partial(view.deployment.source.where, view.project)
    rows, locators = view.rows_of(page["image_id"]), view.manifest["locator"]
    columns = ("image_id", "name", "dataset_name", "score", "confidence")
    return [
        Hit(
            image_id=image_id,
            name=name,
            dataset=dataset,
            score=round(score, DIGITS),
            confidence=round(confidence, DIGITS),
            path=where(locators[rows[image_id]]) if image_id in rows else "",
        )
        for image_id, name, dataset, score, confidence in zip(
            *(page[column] for column in columns), strict=True
        )
    ]
