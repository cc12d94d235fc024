"""What a model is to the rest of the project: a card, and an encoder behind it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from embed_pipeline.images.preprocess import PREPROCESSING_VERSION, Preprocessing

# The rendition of images that are embedded as they are stored.
ORIGINAL = "original"

Vectors = NDArray[np.float32]
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class ModelCard:
    """What exactly makes a vector, known without loading weights.

    name: what the user wrote (`demo`, a Hugging Face id, a directory, the address of a service).
    revision: the hub's commit hash, or the first 12 hex digits of a sha256 over weights,
    configuration and tokenizer files. dimension: length of a vector. rendition: the form of the
    images: ORIGINAL, or a preview of some size and quality, `[a-z0-9]+`. own_name: the model's, where
    `name` is an address.
    """

    name: str
    revision: str
    dimension: int
    preprocessing: Preprocessing
    rendition: str = ORIGINAL
    own_name: str | None = None

    @property
    def space(self) -> str:
        """The space of this model's vectors: `[a-z0-9_-]+`, at most 80 characters."""
        last = (self.own_name or self.name).rstrip("/").rsplit("/", 1)[-1].lower()
        slug = re.sub(r"[^a-z0-9]+", "-", last).strip("-")
        return f"{slug[:32]}-{self.revision[:12]}-p{PREPROCESSING_VERSION}-{self.rendition}"


def rendition_of(space: str) -> str:
    """The rendition that a card's `space` names."""
    return space.rpartition("-")[2]


@dataclass(frozen=True)
class TextVectors:
    """vectors: (n, dimension), unit norm. truncated: per text, whether its end did not fit the model.

    tokens: per text, how many the model took in, where the encoder tells.
    """

    vectors: Vectors
    truncated: list[bool]
    tokens: Sequence[int] = ()


@dataclass(frozen=True)
class LongTextVectors:
    """vectors: (n, dimension), unit norm. chunks: per text, the lengths of its chunks in tokens."""

    vectors: Vectors
    chunks: list[list[int]]


class ImageTextEncoder(Protocol):
    """Images and texts to unit-norm float32 vectors of `card.space`."""

    card: ModelCard

    def encode_images(self, pixels: Pixels) -> Vectors:
        """(n, size, size, 3) uint8 RGB, preprocessed as the card says → (n, dimension).

        A row for which the model gives no finite vector is all NaN.
        """
        ...

    def encode_texts(self, texts: Sequence[str]) -> TextVectors:
        """N texts → (n, dimension), in order; what does not fit the model is left out."""
        ...

    def encode_long_texts(self, texts: Sequence[str]) -> LongTextVectors:
        """N texts → (n, dimension), in order; of a long one, the mean of its chunks."""
        ...


class Tokens(NamedTuple):
    """A text, or a part of one, as a model reads it.

    ids: with the marks of begin and end. length: without them.
    """

    ids: list[int]
    length: int


class Reader(Protocol):
    """Texts to tokens; for any number of threads."""

    def cut(self, texts: Sequence[str]) -> tuple[list[Tokens], list[bool]]:
        """What fits the model of each text, and whether that is not all of it."""
        ...

    def split(self, texts: Sequence[str]) -> list[list[Tokens]]:
        """Each text in as many parts as it takes, at least one."""
        ...


class LocalEncoder(ImageTextEncoder, Protocol):
    """A model in this process."""

    @property
    def reader(self) -> Reader:
        """Its tokenizer."""
        ...

    def encode_tokens(self, texts: Sequence[Tokens]) -> Vectors:
        """N texts → (n, dimension), in order. A row that is not finite is all NaN."""
        ...
