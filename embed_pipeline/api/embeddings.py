"""Embeddings over HTTP: in OpenAI's form, and in that of the older embedding service."""

import base64
from collections.abc import Sequence
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from embed_pipeline.api.embedder import Embedded, Embedder, Item, Result
from embed_pipeline.api.embedding_requests import (
    DOCUMENTED,
    EmbeddingsRequest,
    Encoding,
    FilesRequest,
    read,
)
from embed_pipeline.api.errors import ApiError
from embed_pipeline.models.protocol import Vectors
from embed_pipeline.models.wire import EmbeddingList, ItemError, ModelList

router = APIRouter(tags=["embeddings"])


async def embedder_of(request: Request) -> Embedder:
    """The app's embedder, made when first asked for: on the event loop, so that there is one."""
    return _embedder(request.app)


def _embedder(app: FastAPI) -> Embedder:
    if not hasattr(app.state, "embedder"):
        app.state.embedder = Embedder(app.state.deployment)
    embedder: Embedder = app.state.embedder
    return embedder


Embeds = Annotated[Embedder, Depends(embedder_of)]


@router.get("/v1/models")
def models(embedder: Embeds) -> ModelList:
    """The model that makes the embeddings, its card, and what one request may hold."""
    return ModelList(data=[embedder.model])


@router.post("/v1/embeddings", response_model=EmbeddingList, openapi_extra=DOCUMENTED)
def embeddings(
    asked: Annotated[EmbeddingsRequest | FilesRequest, Depends(read)], embedder: Embeds
) -> JSONResponse:
    """Embed texts and images: a vector or an error for each, in order.

    A text that is longer than the model takes is split into chunks, whose vectors are averaged by length
    and normalised; `chunks` tells their lengths.
    """
    _require_deployed(asked, embedder)
    results = embedder.embed(asked.items(embedder), asked.long_texts)
    tokens = sum(sum(each.chunks or ()) for each in results if isinstance(each, Embedded))
    told = {
        "object": "list",
        "model": embedder.model.id,
        "data": [
            {"index": index, **_told(result, asked.encoding_format)}
            for index, result in enumerate(results)
        ],
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        "card": embedder.card.model_dump(),
    }
    return JSONResponse(
        told
    )  # as it is: checking so many numbers would take longer than making them


def _require_deployed(asked: EmbeddingsRequest | FilesRequest, embedder: Embedder) -> None:
    if asked.model not in {None, *embedder.names}:
        said = f"{asked.model}: this service runs {embedder.model.id} only"
        raise ApiError(HTTPStatus.NOT_FOUND, "model_not_found", said)
    if asked.dimensions not in {None, embedder.card.dimension}:
        said = f"dimensions: vectors of {embedder.model.id} have {embedder.card.dimension}"
        raise ApiError(HTTPStatus.UNPROCESSABLE_ENTITY, "invalid_request", said)


def _told(result: Result, encoding: Encoding) -> dict[str, Any]:
    if isinstance(result, ItemError):
        return {"object": "error", "error": result.model_dump()}
    told: dict[str, Any] = {"object": "embedding", "embedding": _encoded(result.vector, encoding)}
    if result.chunks is not None:
        told |= {"chunks": result.chunks, "truncated": result.truncated}
    return told


def _encoded(vector: Vectors, encoding: Encoding) -> list[float] | str:
    if encoding == "float":
        numbers: list[float] = vector.tolist()
        return numbers
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()


class TextVector(BaseModel):
    """embeddings: one vector. chunks: the lengths in tokens of the text's parts, which were averaged."""

    embeddings: list[list[float]]
    chunks: list[int]


class TextBatch(BaseModel):
    """embeddings: a list of one vector for each text, in order. chunks: of each, as of one."""

    embeddings: list[list[list[float]]]
    chunks: list[list[int]]


class ImageVector(BaseModel):
    """embeddings: one vector."""

    embeddings: list[list[float]]


class ImageBatch(BaseModel):
    """embeddings: a list of one vector for each image, in order."""

    embeddings: list[list[list[float]]]


class TextsRequest(BaseModel):
    """Texts of any length."""

    texts: list[str] = Field(min_length=1)


class ImageRequest(BaseModel):
    """An image file in base64."""

    image: str = Field(repr=False)


class ImagesRequest(BaseModel):
    """Image files in base64."""

    images: list[str] = Field(min_length=1, repr=False)


def embed_text(request: Request, text: str) -> TextVector:
    """What the older embedding service's route /embeddings answers to `{"text": …}`."""
    (only,) = _sound(_embedder(request.app), [text], "text")
    return TextVector(embeddings=[only.vector.tolist()], chunks=only.chunks or [])


@router.post("/embeddings/batch")
def embed_texts(asked: TextsRequest, embedder: Embeds) -> TextBatch:
    """Embed texts, in the form of the older embedding service."""
    found = _sound(embedder, asked.texts, "texts")
    chunks = [each.chunks or [] for each in found]
    return TextBatch(embeddings=_nested(found), chunks=chunks)


@router.post("/embeddings/image")
def embed_image(asked: ImageRequest, embedder: Embeds) -> ImageVector:
    """Embed an image, in the form of the older embedding service."""
    (only,) = _sound(embedder, [embedder.file(asked.image)], "image")
    return ImageVector(embeddings=[only.vector.tolist()])


@router.post("/embeddings/image/batch")
def embed_images(asked: ImagesRequest, embedder: Embeds) -> ImageBatch:
    """Embed images, in the form of the older embedding service: all, or an error that names one."""
    files = [embedder.file(image) for image in asked.images]
    return ImageBatch(embeddings=_nested(_sound(embedder, files, "images")))


def _nested(found: Sequence[Embedded]) -> list[list[list[float]]]:
    return [[each.vector.tolist()] for each in found]


def _sound(embedder: Embedder, items: Sequence[Item], field: str) -> list[Embedded]:
    """All results. This form has no place for an error of one item: raises ApiError for the first."""
    found = []
    for number, result in enumerate(embedder.embed(items)):
        if isinstance(result, ItemError):
            raise _refused(result, f"{field}.{number}" if len(items) > 1 else field)
        found.append(result)
    return found


def _refused(error: ItemError, where: str) -> ApiError:
    too_large = error.type in {"too_large", "too_many_pixels"}
    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE if too_large else HTTPStatus.UNPROCESSABLE_ENTITY
    return ApiError(status, error.type, f"{where}: {error.message}")
