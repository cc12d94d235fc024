"""What an embedding service and those who use it tell each other: OpenAI's form, with a model card."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from embed_pipeline.images.preprocess import PREPROCESSING_VERSION, Preprocessing
from embed_pipeline.models.protocol import ModelCard

# Type of the error of an image of which the model makes no vector; others are the service's own.
NOT_FINITE = "not_finite"


class _Told(BaseModel):
    model_config = ConfigDict(frozen=True)


class PublishedCard(_Told):
    """What exactly makes the vectors.

    space: of vectors of images as they are sent; equal spaces, comparable vectors. dimension: length of a
    vector. image_size: side in pixels of the square that the model sees. Images of any size may be sent:
    the service resizes them; those of just that size stay as they are.
    """

    name: str = Field(min_length=1, max_length=200)
    # Becomes part of a directory's name where the vectors are kept.
    revision: str = Field(pattern="^[0-9a-z]{7,64}$")
    space: str
    dimension: int = Field(ge=1, le=65536)
    image_size: int = Field(ge=1, le=8192)
    preprocessing: Preprocessing
    preprocessing_version: int

    def at(self, address: str) -> ModelCard:
        """The card of the service's model for who knows it by its address."""
        return ModelCard(
            name=address,
            revision=self.revision,
            dimension=self.dimension,
            preprocessing=self.preprocessing,
            own_name=self.name,
        )


def published(card: ModelCard) -> PublishedCard:
    """A model's card for others. A directory's path is nobody's business: its last part is told."""
    name = card.own_name or card.name
    if Path(name).expanduser().is_dir():
        name = Path(name).name or "model"
    as_sent = ModelCard(name, card.revision, card.dimension, card.preprocessing)
    return PublishedCard(
        name=name,
        revision=card.revision,
        space=as_sent.space,
        dimension=card.dimension,
        image_size=card.preprocessing.size,
        preprocessing=card.preprocessing,
        preprocessing_version=PREPROCESSING_VERSION,
    )


class RequestLimits(_Told):
    """What one request may hold. characters: of all its texts together."""

    texts: int = Field(ge=1)
    images: int = Field(ge=1)
    characters: int = Field(ge=1)
    image_bytes: int
    image_pixels: int


class PublishedModel(_Told):
    """A model in OpenAI's form, with its card and the limits of a request."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "embed-pipeline"
    card: PublishedCard
    limits: RequestLimits


class ModelList(_Told):
    """The models of a service: one."""

    object: Literal["list"] = "list"
    data: list[PublishedModel] = Field(min_length=1)


class ItemError(_Told):
    """Why an item has no vector. type: a short stable code."""

    type: str
    message: str


class Embedding(_Told):
    """An item's vector, or why it has none.

    embedding: numbers, or base64 of little-endian float32. Of texts: chunks are the lengths in tokens of
    the parts that were read, whose vectors were averaged by length; truncated: the end was left out.
    """

    object: Literal["embedding", "error"]
    index: int
    embedding: list[float] | str | None = None
    chunks: list[int] | None = None
    truncated: bool | None = None
    error: ItemError | None = None


class Usage(_Told):
    """Tokens of all texts."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(_Told):
    """A vector or an error for each item, in order, and what made them."""

    object: Literal["list"] = "list"
    model: str
    data: list[Embedding]
    usage: Usage
    card: PublishedCard
