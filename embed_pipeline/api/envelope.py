"""Requests of the services' routes: fields as plain JSON, or in Supervisely's envelope."""

from collections.abc import Sequence
from http import HTTPStatus
from typing import Annotated, Any, Literal

from fastapi import Request
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictStr,
    WithJsonSchema,
    model_validator,
)

from embed_pipeline.api.errors import ApiError
from embed_pipeline.api.security import is_same_server
from embed_pipeline.search.query import LONGEST_TEXT, MOST_HITS, MOST_PARTS
from embed_pipeline.search.selection import MOST_CHOSEN
from embed_pipeline.settings import Settings

_LONGEST_ID = 4096
_LARGEST_NUMBER = 10**15


def _as_text(given: Any) -> Any:
    """A number as text: Supervisely's ids are numbers, a folder's are names."""
    is_number = isinstance(given, int) and not isinstance(given, bool)
    return str(given) if is_number and 0 <= given < _LARGEST_NUMBER else given


Id = Annotated[
    str,
    BeforeValidator(_as_text),
    Field(min_length=1, max_length=_LONGEST_ID),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 0, "exclusiveMaximum": _LARGEST_NUMBER},
                {"type": "string", "minLength": 1, "maxLength": _LONGEST_ID},
            ]
        }
    ),
]
Prompt = Annotated[StrictStr, Field(max_length=LONGEST_TEXT)]
Ids = Annotated[Sequence[Id], Field(max_length=1_000_000)]

DEFAULT_LIMIT = 10


class Enveloped(BaseModel):
    """Fields as plain JSON, or as `{"state": {…}, "context": {…}}`. Others are left alone."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    @model_validator(mode="before")
    @classmethod
    def _opened(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            raise ValueError("must be a JSON object")  # noqa: TRY004  # what pydantic reports
        return given.get("state", given)


class OfProject(Enveloped):
    """A request about one project, by its number or name."""

    project_id: Id


class OfAnyProject(Enveloped):
    """A request about one project, or about all."""

    project_id: Id | None = None


class EmbeddingsRequest(OfAnyProject):
    """What to embed: a project; the projects that hold `image_ids`; or a `text`, whose vector is wanted.

    force: embed everything of the project anew. return_vectors: taken; vectors are there only after the
    run, and the search uses them where they are.
    """

    image_ids: Ids | None = None
    force: bool | None = None
    return_vectors: bool | None = None
    team_id: Id | None = None
    text: Prompt | None = None


class SearchRequest(OfProject):
    """What to search for.

    prompt: one text, or several. by_image_ids: images to find the like of. image_ids: beside by_image_ids,
    where to search; alone, images to find the like of (unless EMBED_IMAGE_IDS_ARE_SCOPE). scope_image_ids:
    always where to search. dataset_id: where to search, with nested ones; given image ids count
    instead. threshold: least score.
    """

    limit: Annotated[int | None, Field(ge=1, le=MOST_HITS)] = None
    prompt: Prompt | Annotated[Sequence[Prompt], Field(max_length=MOST_PARTS)] | None = None
    by_image_ids: Annotated[Ids | None, Field(max_length=MOST_PARTS)] = None
    image_ids: Ids | None = None
    scope_image_ids: Ids | None = None
    dataset_id: Id | None = None
    threshold: Annotated[float | None, Field(allow_inf_nan=False)] = None


class DiverseRequest(OfProject):
    """What to choose. One of sample_size and limit says how many.

    sampling_method, clustering_method, num_clusters: as the service has them; num_clusters: for kmeans,
    default: as many as images are chosen. method: as its README has it; instead of these.
    """

    sample_size: Annotated[int | None, Field(ge=1, le=MOST_CHOSEN)] = None
    limit: Annotated[int | None, Field(ge=1, le=MOST_CHOSEN)] = None
    sampling_method: Literal["random", "centroids"] | None = None
    clustering_method: Literal["kmeans", "dbscan"] | None = None
    num_clusters: Annotated[int | None, Field(ge=1, le=MOST_CHOSEN)] = None
    method: Literal["kmeans", "dbscan", "farthest", "random"] | None = None
    image_ids: Ids | None = None
    dataset_id: Id | None = None

    @model_validator(mode="after")
    def _says_how_many(self) -> "DiverseRequest":
        if not (self.sample_size or self.limit):
            raise ValueError("sample_size: say how many images to choose, there or as limit")
        return self


class TaskRequest(BaseModel):
    """`task_id`: a project."""

    task_id: Id | None = None


async def refuse_other_servers(request: Request) -> None:
    """Raise ApiError for a body that names another server than the instance of the settings.

    None that a body names is ever called.
    """
    if not request.headers.get("content-type", "").startswith("application/json"):
        return
    try:
        body: Any = await request.json()
    except ValueError:
        return  # the route says what is wrong with it
    settings: Settings = request.app.state.deployment.settings
    ours = (settings.server_address, settings.api_server_address)
    for address in _addresses(body):
        if not any(is_same_server(address, known) for known in ours):
            raise ApiError(
                HTTPStatus.UNPROCESSABLE_ENTITY,
                "invalid_request",
                "server_address: names another server than SERVER_ADDRESS, and no server that a request "
                "names is called; leave it out",
            )


def _addresses(body: Any) -> list[str]:
    parts = [body, body.get("state"), body.get("context")] if isinstance(body, dict) else []
    found = [part.get("server_address") for part in parts if isinstance(part, dict)]
    return [str(address) for address in found if address is not None]
