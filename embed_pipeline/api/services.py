"""The routes of the services that this replaces: embeddings, search, diverse selection."""

from collections.abc import Sequence
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel

from embed_pipeline.api.embeddings import TextVector, embed_text
from embed_pipeline.api.envelope import (
    DEFAULT_LIMIT,
    DiverseRequest,
    EmbeddingsRequest,
    SearchRequest,
    refuse_other_servers,
)
from embed_pipeline.api.errors import ApiError
from embed_pipeline.api.saved import save
from embed_pipeline.api.security import Caller, require_caller, require_offered
from embed_pipeline.api.sendable import sendable
from embed_pipeline.api.starting import Started, begin
from embed_pipeline.errors import QueryError
from embed_pipeline.search.query import Hit, Query, query_of
from embed_pipeline.search.searcher import Searcher
from embed_pipeline.search.selection import Chosen, Coverage, Selection
from embed_pipeline.settings import Settings

router = APIRouter(tags=["services"], dependencies=[Depends(refuse_other_servers)])
Asking = Annotated[Caller, Depends(require_caller)]


class Found(BaseModel):
    """hits: best first. collection_id: of the entities collection with them, where one was saved.

    truncated: texts whose end the model did not take in.
    """

    message: str
    collection_id: int | None
    hits: list[Hit]
    truncated: list[str]


class Picked(BaseModel):
    """images: in the order in which they were chosen; collection_id: as of `Found`.

    candidates: how many there were to choose from. random: what a random choice of that size covers.
    """

    message: str
    collection_id: int | None
    images: list[Chosen]
    candidates: int
    coverage: Coverage
    random: Coverage


@router.post("/embeddings")
def embeddings(request: Request, caller: Asking, asked: EmbeddingsRequest) -> Started | TextVector:
    """Start a run that embeds what a project has new, or all of it anew. Or: the vector of a text."""
    if asked.text is not None:
        return embed_text(request, asked.text)
    return begin(request.app.state, caller, asked)


@router.post("/search")
def search(request: Request, caller: Asking, asked: SearchRequest) -> Found:
    """The images that match a prompt, images, or both; saved as an entities collection of the caller's."""
    project = asked.project_id
    require_offered(caller, project)
    searcher: Searcher = request.app.state.searcher
    query = _query(searcher, asked)
    answer = searcher.search(project, query)
    saved = save(caller, project, "search", [(hit.image_id, hit.score) for hit in answer.hits])
    hits = [sendable(hit) for hit in answer.hits if hit.image_id not in saved.gone]
    said = f"Found {len(hits)} images." if hits else "No similar images found."
    return Found(
        message=said + saved.note,
        collection_id=saved.collection_id,
        hits=hits,
        truncated=answer.truncated,
    )


@router.post("/diverse")
def diverse(request: Request, caller: Asking, asked: DiverseRequest) -> Picked:
    """Images that differ from each other; saved as an entities collection of the caller's."""
    project = asked.project_id
    require_offered(caller, project)
    selected = request.app.state.searcher.diverse(project, _selection(asked))
    saved = save(caller, project, "diverse", [(image.image_id, None) for image in selected.images])
    images = [sendable(image) for image in selected.images if image.image_id not in saved.gone]
    said = f"Chose {len(images)} images." if images else "No diverse images found."
    return Picked(
        message=said + saved.note,
        collection_id=saved.collection_id,
        images=images,
        candidates=selected.candidates,
        coverage=selected.coverage,
        random=selected.random,
    )


# Not in the OpenAPI document: there is nothing to be had.
@router.post("/projections", include_in_schema=False)
@router.post("/projections_up_to_date", include_in_schema=False)
@router.post("/clusters", include_in_schema=False)
def not_offered() -> None:
    """Plots and clusters of vectors, which the services had, are not offered."""
    raise ApiError(
        HTTPStatus.NOT_IMPLEMENTED,
        "not_implemented",
        "projections and clusters are not offered; /diverse chooses images that differ from each other",
    )


def _query(searcher: Searcher, asked: SearchRequest) -> Query:
    references, scope = _images_of(asked, searcher.deployment.settings)
    prompts = [asked.prompt] if isinstance(asked.prompt, str) else (asked.prompt or [])
    texts = [prompt for prompt in prompts if prompt.strip()]
    if not (texts or references):
        raise QueryError("No queries provided. Give a prompt, or by_image_ids")
    like = [id_ for id_ in references if searcher.has_image(asked.project_id, id_)]
    if not (texts or like):
        message = "No images found for the provided IDs."
        raise ApiError(HTTPStatus.NOT_FOUND, "images_not_found", message)
    return query_of(
        texts=texts,
        like=like,
        limit=asked.limit or DEFAULT_LIMIT,
        threshold=asked.threshold,
        **_scope(scope, asked.dataset_id),
    )


def _images_of(
    asked: SearchRequest, settings: Settings
) -> tuple[Sequence[str], Sequence[str] | None]:
    """References and scope. Where `image_ids` could be either, it stands beside `by_image_ids` or not."""
    beside = asked.by_image_ids is not None or settings.image_ids_are_scope
    references = asked.by_image_ids if beside else asked.image_ids
    scope = asked.image_ids if beside else None
    return references or (), asked.scope_image_ids or scope


def _selection(asked: DiverseRequest) -> Selection:
    method = asked.method or asked.clustering_method or "dbscan"
    # The README's form knows no members; the service's takes random ones where nothing is said.
    central = asked.sampling_method == "centroids" or (asked.method and not asked.sampling_method)
    return Selection(
        limit=asked.sample_size or asked.limit or DEFAULT_LIMIT,
        method=method,
        clusters=asked.num_clusters if method == "kmeans" else None,
        members="medoid" if central else "random",
        **_scope(asked.image_ids, asked.dataset_id),
    )


def _scope(image_ids: Sequence[str] | None, dataset_id: str | None) -> dict[str, Any]:
    """As the services have it: images, where they are given, else a dataset; an empty list is none."""
    if image_ids:
        return {"image_ids": image_ids}
    return {"datasets": [dataset_id]} if dataset_id is not None else {}
