"""The parts of a query as vectors."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from embed_pipeline.errors import ImageError, QueryError
from embed_pipeline.images.decode import decode
from embed_pipeline.images.preprocess import preprocess
from embed_pipeline.models.protocol import Pixels, Vectors
from embed_pipeline.search.calibration import Kind
from embed_pipeline.search.query import Image, Query, Text
from embed_pipeline.search.view import View


@dataclass(frozen=True)
class Part:
    """One thing that is wanted, or not. vector: unit norm, (dimension,).

    weight: its share, where the weights of as many parts of its kind and sign are taken into account:
    texts and images count alike, however many there are of each.
    """

    kind: Kind
    vector: Vectors
    weight: float


@dataclass(frozen=True)
class Parts:
    """A query's parts. references: image ids in the query. truncated: texts that did not fit the model."""

    wanted: list[Part]
    unwanted: list[Part]
    references: list[str]
    truncated: list[str]


def parts_of(view: View, query: Query) -> Parts:
    """Raises QueryError for an image that is nowhere, not embedded or not readable."""
    said = [each.text for each in (*query.texts, *query.not_texts)]
    encoded = view.encoded(said)
    vectors = [vector for vector, _ in encoded]
    named = _Named(view, [*query.like, *query.unlike])
    texts, images = len(query.texts), len(query.like)
    return Parts(
        wanted=[
            *_group("text", query.texts, vectors[:texts]),
            *_group("image", query.like, named.vectors[:images]),
        ],
        unwanted=[
            *_group("text", query.not_texts, vectors[texts:]),
            *_group("image", query.unlike, named.vectors[images:]),
        ],
        references=named.references,
        truncated=[text for text, (_, cut) in zip(said, encoded, strict=True) if cut],
    )


def _group(kind: Kind, asked: Sequence[Text | Image], vectors: Iterable[Vectors]) -> list[Part]:
    return [
        Part(kind, vector, each.weight / len(asked))
        for each, vector in zip(asked, vectors, strict=True)
    ]


class _Named:
    """Images of a query: their vectors, and which of them are in the project.

    Vectors come from the collection where the content is there: that is quicker than the library.
    """

    def __init__(self, view: View, images: Sequence[Image]) -> None:
        self._view = view
        ids = [self._image_id(image) for image in images]
        self.references = [
            str(id_) for id_, image in zip(ids, images, strict=True) if image.data is None
        ]
        self._stored: dict[str, tuple[bytes | None, Vectors]] = {}
        if known := list(dict.fromkeys(filter(None, ids))):
            points, vectors = view.collection.of_images(known)
            contents = zip(points["content_hash"], vectors, strict=True)
            self._stored.update(zip(points["image_id"], contents, strict=True))
        self.vectors = [self._vector(*each) for each in zip(images, ids, strict=True)]

    def _image_id(self, image: Image) -> str | None:
        """The image of the project that has this id, name or content; None for other content."""
        manifest = self._view.manifest
        if image.data is not None:
            same = manifest.filter(content_hash=_content(image.data))
            return same["image_id"][0] if same.height else None
        rows = rows_named(self._view, str(image.image))
        if rows.is_empty():
            raise QueryError(
                f"{image.image}: neither an image id nor a name in {self._view.project}"
            )
        if rows.height > 1:
            ids = ", ".join(rows["image_id"].head(3))
            raise QueryError(
                f"{image.image}: {rows.height} images have this name; give an id: {ids}, …"
            )
        found: str = rows["image_id"].item()
        return found

    def _vector(self, image: Image, image_id: str | None) -> Vectors:
        content, vector = self._stored.get(str(image_id), (None, None))
        if vector is not None and (image.data is None or content == _content(image.data)):
            return vector
        if image.data is None:
            project = self._view.project
            raise QueryError(
                f"{image.image}: it is in {project} but not embedded; see its failures"
            )
        encoder = self._view.deployment.encoder(self._view.card)
        return np.asarray(encoder.encode_images(self._pixels(image.data)[None])[0])

    def _pixels(self, data: bytes) -> Pixels:
        settings = self._view.deployment.settings
        preprocessing = self._view.card.preprocessing
        if len(data) > settings.max_image_bytes:
            raise QueryError(
                f"an image of the query has {len(data):,} bytes; EMBED_MAX_IMAGE_BYTES allows "
                f"{settings.max_image_bytes:,}"
            )
        try:
            image = decode(data, target=preprocessing.size, max_pixels=settings.max_image_pixels)
        except ImageError as error:
            raise QueryError(f"an image of the query cannot be read: {error}") from error
        return preprocess(image, preprocessing)


def _content(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def rows_named(view: View, given: str) -> pl.DataFrame:
    """The image of that id, or else all of that name."""
    rows = list(view.rows_of(pl.Series([given])).values())
    return view.manifest[rows] if rows else view.manifest.filter(name=given)
