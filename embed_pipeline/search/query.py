"""Search by texts and images, and away from others. Reads only."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl

from embed_pipeline.deployment import Deployment
from embed_pipeline.errors import CollectionMissing, QueryError
from embed_pipeline.images.decode import decode
from embed_pipeline.images.preprocess import preprocess
from embed_pipeline.manifest import MANIFEST
from embed_pipeline.models.protocol import ModelCard, Vectors
from embed_pipeline.sources.names import typed
from embed_pipeline.stores.protocol import Filter

# How much a negative counts against a positive. As much would leave little of a query whose parts
# are alike, and all CLIP vectors are.
NEGATIVE_WEIGHT = 0.5
SMALLEST_LENGTH = 1e-6


@dataclass(frozen=True)
class Query:
    """What to search for. Images are ids, names in the project, or files."""

    texts: Sequence[str] = ()
    like: Sequence[str] = ()
    not_texts: Sequence[str] = ()
    unlike: Sequence[str] = ()
    limit: int = 10


@dataclass(frozen=True)
class Hit:
    """An image that was found. score: cosine similarity with the query, -1..1."""

    image_id: str
    name: str
    dataset: str
    score: float
    path: str


@dataclass(frozen=True)
class Answer:
    """hits: best first. truncated: texts whose end the model did not take in."""

    hits: list[Hit]
    truncated: list[str]


def search(deployment: Deployment, project: str, query: Query) -> Answer:
    """The images nearest to the query. Images given as references are left out.

    Raises CollectionMissing where the project was never synced, QueryError for an empty query or an
    image that is nowhere.
    """
    if not (query.texts or query.like):
        raise QueryError("nothing to search for: give a text, or an image with --like")
    card = deployment.serving_card(project)
    collection = deployment.collection(project, card)
    if not collection.exists():
        raise CollectionMissing(
            f"{project}: nothing to search, it was never synced (or holds no image); "
            f"run: embed-pipeline sync {project}"
        )
    asking = _Asking(
        deployment, project, card, MANIFEST.read(deployment.project_home(project).manifest)
    )
    vector = asking.vector(query)
    found = collection.nearest(
        vector, query.limit, Filter(exclude_image_ids=tuple(asking.references))
    )
    return Answer(_hits(asking, found), asking.truncated)


class _Asking:
    """Turns a query's parts into one vector, and remembers what people should be told."""

    def __init__(
        self, deployment: Deployment, project: str, card: ModelCard, manifest: pl.DataFrame
    ) -> None:
        self.deployment = deployment
        self.project = project
        self.card = card
        self.manifest = manifest
        self.references: list[str] = []
        self.truncated: list[str] = []

    def vector(self, query: Query) -> Vectors:
        """Texts and images count alike as groups, however many there are of each."""
        positive = [self._texts(query.texts), self._images(query.like)]
        negative = [self._texts(query.not_texts), self._images(query.unlike)]
        wanted = np.sum([_direction(group) for group in positive if len(group)], axis=0)
        unwanted = [_direction(group) for group in negative if len(group)]
        return _unit(wanted - NEGATIVE_WEIGHT * np.sum(unwanted, axis=0))

    def _texts(self, texts: Sequence[str]) -> Vectors:
        if not texts:
            return np.empty((0, self.card.dimension), np.float32)
        encoded = self.deployment.encoder(self.card).encode_texts(texts)
        self.truncated += [text for text, cut in zip(texts, encoded.truncated, strict=True) if cut]
        return encoded.vectors

    def _images(self, images: Sequence[str]) -> Vectors:
        vectors = [self._image(image) for image in images]
        return np.array(vectors, np.float32).reshape(-1, self.card.dimension)

    def _image(self, image: str) -> Vectors:
        content_hash = self._in_project(typed(image))
        data = b"" if content_hash else self._file(image)
        sought = pl.Series([content_hash or hashlib.sha256(data).digest()])
        known, vectors = self.deployment.library(self.card).vectors(sought)
        if len(known):
            return np.asarray(vectors[0])
        if content_hash:
            raise QueryError(f"{image}: it is in {self.project} but not embedded; see its failures")
        return self._encoded(data)

    def _in_project(self, image: str) -> bytes | None:
        """The content of the image with that id, or the only one with that name."""
        rows = self.manifest.filter(image_id=image)
        if rows.is_empty():
            rows = self.manifest.filter(name=image)
        if rows.height > 1:
            ids = ", ".join(rows["image_id"].head(3))
            raise QueryError(f"{image}: {rows.height} images have this name; give an id: {ids}, …")
        if rows.is_empty():
            return None
        self.references.append(rows["image_id"].item())
        content_hash: bytes | None = rows["content_hash"].item()
        return content_hash

    def _file(self, image: str) -> bytes:
        path = Path(image)
        if not path.is_file():
            raise QueryError(
                f"{image}: neither an image id nor a name in {self.project}, nor a file"
            )
        return path.read_bytes()

    def _encoded(self, data: bytes) -> Vectors:
        preprocessing = self.card.preprocessing
        limit = self.deployment.settings.max_image_pixels
        pixels = preprocess(
            decode(data, target=preprocessing.size, max_pixels=limit), preprocessing
        )
        return np.asarray(self.deployment.encoder(self.card).encode_images(pixels[None])[0])


def _direction(vectors: Vectors) -> Vectors:
    return _unit(vectors.mean(axis=0))


def _unit(vector: Vectors) -> Vectors:
    length = float(np.linalg.norm(vector))
    if length < SMALLEST_LENGTH:
        raise QueryError("the query's parts cancel each other out; take one of them away")
    return np.asarray(vector / length, np.float32)


def _hits(asking: _Asking, found: pl.DataFrame) -> list[Hit]:
    listed = asking.manifest.filter(pl.col("image_id").is_in(found["image_id"].implode()))
    where = partial(asking.deployment.source.where, asking.project)
    paths = {id_: where(at) for id_, at in listed.select("image_id", "locator").iter_rows()}
    return [
        Hit(
            image_id=row["image_id"],
            name=row["name"],
            dataset=row["dataset_name"],
            score=round(row["score"], 4),
            path=paths.get(row["image_id"], ""),
        )
        for row in found.iter_rows(named=True)
    ]
