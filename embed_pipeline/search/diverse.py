"""Diverse selection: images that differ from each other, and how well they stand for the rest."""

from collections.abc import Sequence
from threading import Lock

from embed_pipeline.search.candidates import Candidates, candidates_of
from embed_pipeline.search.choice import (
    DIGITS,
    Groups,
    choose,
    choose_at_random,
    coverage,
    groups_of,
)
from embed_pipeline.search.clusters import NOISE
from embed_pipeline.search.distances import distances, one_thread_per_block, steps
from embed_pipeline.search.scope import dataset_ids
from embed_pipeline.search.selection import Chosen, Coverage, Selected, Selection
from embed_pipeline.search.taking import Taking
from embed_pipeline.search.view import View

NOTHING_LEFT_OUT = Coverage(mean_distance=0.0, largest_distance=0.0, clusters_touched=1.0)

# One selection at a time: each may take as much memory as the settings allow, and all processors.
_alone = Lock()


def diverse(view: View, selection: Selection, found: Sequence[str] | None = None) -> Selected:
    """Choose among the images in scope; where `found` is given, among these image ids.

    Images that were never embedded are no candidates. Copies follow when all contents are chosen. Fewer
    than asked for come where there are no more, or quotas allow no more. Raises QueryError for a dataset
    or an image `chosen` that is nowhere, OutOfSpace where vectors fit neither into memory nor on the disk.
    """
    with _alone, one_thread_per_block():
        return _diverse(view, selection, found)


def _diverse(view: View, selection: Selection, found: Sequence[str] | None) -> Selected:
    candidates = candidates_of(view, selection, found)
    if candidates.images.is_empty():
        return Selected([], 0, NOTHING_LEFT_OUT, NOTHING_LEFT_OUT)
    groups = groups_of(candidates, selection, view.deployment.settings.selection_bytes)
    quotas = _quotas(view, selection)
    taking, chance = candidates.taking(quotas), candidates.taking(quotas)
    away = choose(candidates, groups, selection, taking)
    away_by_chance = choose_at_random(candidates, len(taking.points), selection.seed, chance)
    taking.take_copies(selection.limit)
    return Selected(
        images=_chosen(view, candidates, taking, groups, selection),
        candidates=candidates.images.height,
        coverage=coverage(candidates, groups, taking, away),
        random=coverage(candidates, groups, chance, away_by_chance),
    )


def _quotas(view: View, selection: Selection) -> list[tuple[list[str], int]]:
    quotas = selection.quotas or {}
    return [(dataset_ids(view.manifest, [given]), most) for given, most in quotas.items()]


def _chosen(
    view: View, candidates: Candidates, taking: Taking, groups: Groups, selection: Selection
) -> list[Chosen]:
    """The images taken, copies last: these are at distance 0 from what they are copies of."""
    images = candidates.images[taking.rows]
    has_clusters = selection.method in ("kmeans", "dbscan")
    labels = groups.labels[images["point"].to_numpy()].tolist()
    apart = distances(steps(candidates.points[taking.points], candidates.before)).round(DIGITS)
    first = not len(candidates.before)
    return [
        Chosen(
            image_id=row["image_id"],
            name=row["name"],
            dataset=row["dataset_name"],
            path=view.deployment.source.where(view.project, row["locator"]),
            cluster=labels[at] if has_clusters and labels[at] != NOISE else None,
            distance=(None if first and at == 0 else float(apart[at]) if at < len(apart) else 0.0),
        )
        for at, row in enumerate(images.iter_rows(named=True))
    ]
