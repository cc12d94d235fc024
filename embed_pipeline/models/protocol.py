"""What a model is to the rest of the project: a card, and an encoder behind it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

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

    name: what the user wrote (`demo`, a Hugging Face id, a directory).
    revision: the hub's commit hash, or the first 12 hex digits of a sha256 over weights,
    configuration and tokenizer files. dimension: length of a vector. rendition: the form of the
    images: ORIGINAL, or a preview of some size and quality, `[a-z0-9]+`.
    """

    name: str
    revision: str
    dimension: int
    preprocessing: Preprocessing
    rendition: str = ORIGINAL

    @property
    def space(self) -> str:
        """The space of this model's vectors: `[a-z0-9_-]+`, at most 80 characters."""
        slug = re.sub(r"[^a-z0-9]+", "-", self.name.rstrip("/").rsplit("/", 1)[-1].lower()).strip(
            "-"
        )
        return f"{slug[:32]}-{self.revision[:12]}-p{PREPROCESSING_VERSION}-{self.rendition}"


def rendition_of(space: str) -> str:
    """The rendition that a card's `space` names."""
    return space.rpartition("-")[2]


@dataclass(frozen=True)
class TextVectors:
    """vectors: (n, dimension), unit norm. truncated: per text, whether its end did not fit the model."""

    vectors: Vectors
    truncated: list[bool]


class ImageTextEncoder(Protocol):
    """Images and texts to unit-norm float32 vectors of `card.space`."""

    card: ModelCard

    def encode_images(self, pixels: Pixels) -> Vectors:
        """(n, size, size, 3) uint8 RGB, preprocessed as the card says → (n, dimension)."""
        ...

    def encode_texts(self, texts: Sequence[str]) -> TextVectors:
        """N texts → (n, dimension), in order."""
        ...
