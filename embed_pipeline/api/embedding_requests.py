"""Requests for embeddings: OpenAI's form in JSON, with images as well, and files in a form."""

from typing import Annotated, Any, Literal

from fastapi import Depends, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from starlette.datastructures import FormData, UploadFile

from embed_pipeline.api.embedder import Embedder, Item, LongTexts

_FORM = "multipart/form-data"
# More are too many anyway, whatever the settings say.
_MOST_FILES = 2048


class _Asked(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TextItem(_Asked):
    """A text of any length."""

    text: str


class ImageItem(_Asked):
    """An image file: base64, or a `data:` URL. No other address is ever opened."""

    image: str = Field(repr=False)


Given = str | TextItem | ImageItem
Encoding = Literal["float", "base64"]


class _HowToEmbed(_Asked):
    """What every request for embeddings may say.

    model: the one that the service runs, or unset. encoding_format: numbers, or base64 of little-endian
    float32. dimensions: the model's own only. long_texts: `split` averages a long text's chunks;
    `truncate` leaves out what does not fit the model. user: taken, and not used.
    """

    model: str | None = None
    encoding_format: Encoding = "float"
    dimensions: int | None = None
    long_texts: LongTexts = "split"
    user: str | None = None


class EmbeddingsRequest(_HowToEmbed):
    """What to embed, one item or a list."""

    input: Given | Annotated[list[Given], Field(min_length=1)]

    def items(self, embedder: Embedder) -> list[Item]:
        """Texts and image files, in order."""
        given = self.input if isinstance(self.input, list) else [self.input]
        return [_item(each, embedder) for each in given]


class FilesRequest(_HowToEmbed):
    """Image files to embed."""

    image: list[bytes] = Field(min_length=1)

    def items(self, embedder: Embedder) -> list[Item]:
        """The files, in order."""
        most = embedder.model.limits.image_bytes
        return [file if len(file) <= most else embedder.too_large() for file in self.image]


def _item(given: Given, embedder: Embedder) -> Item:
    match given:
        case ImageItem(image=image):
            return embedder.file(image)
        case TextItem(text=text):
            return text
        case _:
            return given


async def sent(request: Request) -> bytes | dict[str, Any]:
    """A body as it came, or the fields of a form: what blocks is for the route's thread."""
    if not request.headers.get("content-type", "").lower().startswith(_FORM):
        return await request.body()
    async with request.form(max_files=_MOST_FILES) as form:
        return await _fields(form)


def read(
    sent: Annotated[bytes | dict[str, Any], Depends(sent)],
) -> EmbeddingsRequest | FilesRequest:
    """The request. Raises RequestValidationError."""
    try:
        if isinstance(sent, dict):
            return FilesRequest.model_validate(sent)
        return EmbeddingsRequest.model_validate_json(sent)
    except ValidationError as error:
        wrong = error.errors(include_url=False, include_context=False, include_input=False)
        raise RequestValidationError(
            [{**each, "loc": ("body", *each["loc"])} for each in wrong]
        ) from None


async def _fields(form: FormData) -> dict[str, Any]:
    fields: dict[str, Any] = {"image": []}
    for name, value in form.multi_items():
        if isinstance(value, UploadFile):
            content = await value.read()
            fields.setdefault(name, []).append(content)
        else:
            fields[name] = value
    return fields


def _inlined(schema: Any, definitions: dict[str, Any]) -> Any:
    """A schema that refers to nothing outside itself."""
    if isinstance(schema, list):
        return [_inlined(each, definitions) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return definitions[schema["$ref"].rpartition("/")[2]]
    return {name: _inlined(each, definitions) for name, each in schema.items() if name != "$defs"}


def _documented() -> dict[str, Any]:
    as_json = TypeAdapter(EmbeddingsRequest).json_schema()
    as_form = TypeAdapter(FilesRequest).json_schema()
    content = {
        "application/json": {"schema": _inlined(as_json, as_json["$defs"])},
        _FORM: {"schema": as_form},
    }
    return {"requestBody": {"required": True, "content": content}}


# For `openapi_extra`: FastAPI documents one kind of body by itself.
DOCUMENTED = _documented()
