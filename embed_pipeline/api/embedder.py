"""Texts and image files to vectors: a result or an error for each, whatever its neighbours are."""

import base64
import binascii
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from http import HTTPStatus
from typing import Literal

import numpy as np

from embed_pipeline.api.errors import ApiError
from embed_pipeline.deployment import Deployment
from embed_pipeline.errors import ImageError
from embed_pipeline.images.decode import decode
from embed_pipeline.images.preprocess import preprocess
from embed_pipeline.models.protocol import ImageTextEncoder, ModelCard, Pixels, Vectors
from embed_pipeline.models.wire import (
    NOT_FINITE,
    ItemError,
    PublishedCard,
    PublishedModel,
    RequestLimits,
    published,
)

# A long text takes a forward pass for every few hundred characters.
MOST_CHARACTERS = 1_000_000

LongTexts = Literal["split", "truncate"]


@dataclass(frozen=True)
class Embedded:
    """A vector (dimension,), unit norm. Of a text: lengths of its chunks in tokens; whether it was cut."""

    vector: Vectors
    chunks: list[int] | None = None
    truncated: bool | None = None


Item = str | bytes | ItemError
Result = Embedded | ItemError


class Embedder:
    """Embeds with EMBED_MODEL, for any number of threads, if the deployment's encoders are. Close it."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        self._settings = deployment.settings
        # Shared by all requests: what is decoded at the same time has to fit into memory.
        self._decoders = ThreadPoolExecutor(self._settings.decode_workers, "decode")

    @cached_property
    def model(self) -> PublishedModel:
        """The model as it is told to callers."""
        settings, card = self._settings, self.card
        limits = RequestLimits(
            texts=settings.max_texts_per_batch,
            images=settings.max_images_per_batch,
            characters=MOST_CHARACTERS,
            image_bytes=settings.max_image_size,
            image_pixels=settings.max_image_pixels,
        )
        return PublishedModel(id=card.name, card=card, limits=limits)

    @cached_property
    def card(self) -> PublishedCard:
        """The model's card."""
        return published(self._own_card)

    @property
    def names(self) -> set[str]:
        """What callers may call the model."""
        short = self.card.name.rpartition("/")[2]
        return {self.card.name, short, self.card.space, self._settings.model}

    def embed(self, items: Sequence[Item], long_texts: LongTexts = "split") -> list[Result]:
        """A result for each text, image file, or item that is an error already.

        Raises ApiError for more than one request may hold, and ModelError.
        """
        texts = [item for item in items if isinstance(item, str)]
        files = [item for item in items if isinstance(item, bytes)]
        self._require_few(texts, len(items) - len(texts))
        results: dict[type, Iterator[Result]] = {
            str: iter(self._texts(texts, long_texts)),
            bytes: iter(self._images(files)),
        }
        return [
            item if isinstance(item, ItemError) else next(results[type(item)]) for item in items
        ]

    def file(self, sent: str) -> bytes | ItemError:
        """An image file from base64 or a data: URL. No other URL is opened."""
        if sent.startswith("data:"):
            kind, _, sent = sent.partition(",")
            if not kind.endswith(";base64"):
                return ItemError(type="not_base64", message="a data: URL must be of base64")
        most = self._settings.max_image_size
        if len(sent) // 4 * 3 - 2 > most:
            return self.too_large()
        try:
            data = base64.b64decode("".join(sent.split()), validate=True)
        except (binascii.Error, ValueError):
            said = "neither base64 nor a data: URL; send the file's bytes: addresses are not opened"
            return ItemError(type="not_base64", message=said)
        return data if len(data) <= most else self.too_large()

    def too_large(self) -> ItemError:
        """Why an image is not even looked at."""
        most = self._settings.max_image_size
        return ItemError(type="too_large", message=f"more than {most:,} bytes (MAX_IMAGE_SIZE)")

    def close(self) -> None:
        """Let go of its threads."""
        self._decoders.shutdown()

    def _require_few(self, texts: Sequence[str], images: int) -> None:
        limits = self.model.limits
        for count, most, what in (
            (len(texts), limits.texts, "texts (MAX_TEXTS_PER_BATCH)"),
            (images, limits.images, "images (MAX_IMAGES_PER_BATCH)"),
            (sum(map(len, texts)), limits.characters, "characters"),
        ):
            if count > most:
                said = f"{count} are too many in one request: at most {most} {what}"
                raise ApiError(HTTPStatus.UNPROCESSABLE_ENTITY, "too_many_items", said)

    @property
    def _own_card(self) -> ModelCard:
        return self._deployment.card

    @property
    def _encoder(self) -> ImageTextEncoder:
        return self._deployment.encoder(self._own_card)

    def _texts(self, texts: Sequence[str], long_texts: LongTexts) -> list[Embedded]:
        if not texts:
            return []
        if long_texts == "split":
            whole = self._encoder.encode_long_texts(texts)
            pairs = zip(whole.vectors, whole.chunks, strict=True)
            return [Embedded(vector, chunks, truncated=False) for vector, chunks in pairs]
        cut = self._encoder.encode_texts(texts)
        every = zip(cut.vectors, cut.tokens, cut.truncated, strict=True)
        return [Embedded(vector, [tokens], truncated) for vector, tokens, truncated in every]

    def _images(self, files: Sequence[bytes]) -> list[Result]:
        prepared = list(self._decoders.map(self._pixels, files))
        sound = [pixels for pixels in prepared if not isinstance(pixels, ItemError)]
        vectors = iter(self._encoder.encode_images(np.stack(sound)) if sound else ())
        return [
            pixels if isinstance(pixels, ItemError) else _sound(next(vectors))
            for pixels in prepared
        ]

    def _pixels(self, file: bytes) -> Pixels | ItemError:
        preprocessing = self._own_card.preprocessing
        try:
            limit = self._settings.max_image_pixels
            image = decode(file, target=preprocessing.size, max_pixels=limit)
        except ImageError as error:
            return ItemError(type=error.reason, message=error.detail)
        return preprocess(image, preprocessing)


def _sound(vector: Vectors) -> Result:
    if np.isfinite(vector).all():
        return Embedded(vector)
    return ItemError(type=NOT_FINITE, message="the model gives no finite vector for this image")
