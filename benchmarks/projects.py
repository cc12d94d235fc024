"""Projects of made-up vectors: everything of a synced project but the pictures."""

import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime

import numpy as np
import polars as pl

from embed_pipeline.deployment import Deployment
from embed_pipeline.manifest import MANIFEST
from embed_pipeline.models.protocol import ModelCard, Vectors
from embed_pipeline.points import POINTS, point_ids

DATASETS = 20
PART_ROWS = 10_000
TOPICS = 200


def vectors_like_images(count: int, dimension: int, seed: int = 0) -> Iterator[Vectors]:
    """Unit vectors around TOPICS centres in a narrow cone, as those of images lie: (n, dimension)."""
    lots = np.random.default_rng(seed)
    cone = lots.standard_normal(dimension)
    centres = 1.2 * cone + lots.standard_normal((TOPICS, dimension))
    for start in range(0, count, PART_ROWS):
        rows = min(PART_ROWS, count - start)
        chosen = centres[lots.integers(TOPICS, size=rows)]
        drawn = chosen + 0.8 * lots.standard_normal((rows, dimension))
        yield (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)


def make_project(
    deployment: Deployment, card: ModelCard, project: str, count: int, seed: int = 0
) -> None:
    """Write manifest, vector library and collection of a project with `count` different images."""
    home = deployment.project_home(project)
    home.make()
    library, collection = deployment.library(card), deployment.collection(project, card)
    pages = []
    for vectors in vectors_like_images(count, card.dimension, seed):
        page = _images(project, PART_ROWS * len(pages), len(vectors))
        rounded = library.add(page["content_hash"], vectors)
        ids = point_ids(deployment.project_id(project), page["image_id"])
        points = page.with_columns(ids, project_id=pl.lit(deployment.project_id(project)))
        collection.upsert(points.select(POINTS.names()), rounded)
        pages.append(page)
    MANIFEST.write(pl.concat(pages), home.manifest, {"revision": "made up", "ignored": "0"})


def _images(project: str, first: int, count: int) -> pl.DataFrame:
    numbers = range(first, first + count)
    datasets = [f"set-{number % DATASETS:02}" for number in numbers]
    names = [f"{number:08}.jpg" for number in numbers]
    return pl.DataFrame(
        {
            "image_id": [f"{s}/{n}" for s, n in zip(datasets, names, strict=True)],
            "dataset_id": datasets,
            "dataset_name": datasets,
            "name": names,
            "content_hash": [hashlib.sha256(f"{project} {n}".encode()).digest() for n in names],
            "updated_at": [datetime.now(UTC)] * count,
            "size": [0] * count,
            "width": [0] * count,
            "height": [0] * count,
            "locator": [f"{s}/{n}" for s, n in zip(datasets, names, strict=True)],
        },
        schema_overrides=MANIFEST.schema,
    )
