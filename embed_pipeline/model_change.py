"""Bringing a project over to another model while search stays on the old one."""

import logging
from collections.abc import Callable

import numpy as np
import polars as pl

from embed_pipeline import space_sync
from embed_pipeline.embedding import Throughput
from embed_pipeline.errors import ModelError, QualityGateFailed
from embed_pipeline.models.protocol import Vectors
from embed_pipeline.project_run import ProjectRun
from embed_pipeline.stores.protocol import Collection
from embed_pipeline.vector_health import VectorHealth

logger = logging.getLogger(__name__)

# How long a new space is filled before the serving one is looked after again.
REFRESH_SECONDS = 600.0

SAMPLE = 32
NEIGHBOURS = 10
# Of the sample's true nearest neighbours, how many a search must find. An index over CLIP vectors
# finds more than 0.97 (measured on Qdrant's); a damaged one far fewer.
LOWEST_RECALL = 0.95
SCORE_TOLERANCE = 1e-3


def bring_over(target: ProjectRun, refresh_serving: Callable[[], None]) -> Throughput:
    """Embed in the target space, and now and then bring the space that is searched up to date."""
    throughput = space_sync.embed_missing(target, REFRESH_SECONDS)
    while not throughput.complete:
        refresh_serving()
        space_sync.find_differences(target)
        throughput += space_sync.embed_missing(target, REFRESH_SECONDS)
    return throughput


def check_quality(serving: ProjectRun, target: ProjectRun) -> None:
    """The gate before the target space is searched. Raises QualityGateFailed naming what is wrong.

    As many points as in the serving space, all finite and of unit norm, and a search for some of
    them finds the neighbours that comparing with every vector finds.
    """
    held, before = target.indexed(), serving.indexed()
    if held < before:
        raise _failed(target, f"it holds {held} images, and the space that is searched {before}")
    if held:
        sample = _sound_sample(target, held)
        recall = _recall(target.collection, sample)
        logger.info("%s: %s finds %.3f of neighbours", target.project, target.card.space, recall)
        if recall < LOWEST_RECALL:
            raise _failed(target, f"a search finds only {recall:.0%} of the nearest neighbours")


def follow_in_previous(run: ProjectRun) -> None:
    """Keep the space that a rollback goes back to free of what the source no longer has."""
    try:
        card = run.deployment.previous_card(run.project)
    except ModelError as error:
        logger.warning("%s", error)
        return
    previous = run.into(card) if card else None
    if previous and previous.collection.exists():
        space_sync.follow(previous)


def _sound_sample(run: ProjectRun, held: int) -> Vectors:
    """Vectors of SAMPLE points, evenly spaced among all, after a look at every one."""
    health = VectorHealth()
    every = max(1, held // SAMPLE)
    sample = []
    for _, vectors in run.collection.scroll_vectors():
        sample.append(vectors[-health.points % every :: every])
        health.look_at(vectors)
    if not health.sound:
        raise _failed(run, str(health))
    return np.concatenate(sample)[:SAMPLE]


def _recall(collection: Collection, sample: Vectors) -> float:
    """The share of exact nearest neighbours whose score a search of the collection reaches."""
    best = np.full((len(sample), 0), -1.0, np.float32)
    for _, vectors in collection.scroll_vectors():
        scores = np.concatenate([best, sample @ vectors.T], axis=1)
        best = -np.sort(-scores, axis=1)[:, :NEIGHBOURS]
    found = [_scores(collection, vector, best.shape[1]) for vector in sample]
    reached = [s >= exact[-1] - SCORE_TOLERANCE for s, exact in zip(found, best, strict=True)]
    return sum(int(hits.sum()) for hits in reached) / best.size


def _scores(collection: Collection, vector: Vectors, limit: int) -> Vectors:
    found: pl.DataFrame = collection.nearest(vector, limit)
    return np.asarray(found["score"].to_numpy(), np.float32)


def _failed(run: ProjectRun, reason: str) -> QualityGateFailed:
    return QualityGateFailed(
        f"{run.project}: the space {run.card.space} is not searched yet: {reason}; search stays on the "
        "old one. Sync again, and if that does not help, go back to the earlier EMBED_MODEL"
    )
