"""What can be asked of a project's images, and what is answered. The same from every door."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from embed_pipeline.errors import QueryError

# Where answers come out of a ranking of candidates (mode all, diversity, least confidence), it is one
# of this many: the same for every page.
POOL = 1000
MOST_HITS = 10_000
MOST_PARTS = 100
LONGEST_TEXT = 10_000  # characters

Weight = Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)]


class _Asked(BaseModel):
    """Read from JSON or made in Python. Unknown fields are errors; bytes in JSON are base64."""

    model_config = ConfigDict(frozen=True, extra="forbid", val_json_bytes="base64")


class Text(_Asked):
    """A text. Commas mean nothing in it."""

    text: str = Field(max_length=LONGEST_TEXT)
    weight: Weight = 1.0


class Image(_Asked):
    """An image: of the project by its id, or by its name where no other has that; or a file's bytes.

    A Path may stand for one in Python, never in JSON: the file is read at once.
    """

    image: str | None = None
    data: bytes | None = Field(default=None, repr=False)
    weight: Weight = 1.0

    @model_validator(mode="after")
    def _one_of_both(self) -> "Image":
        if (self.image is None) == (self.data is None):
            raise ValueError("give either `image` (an id or a name) or `data` (a file's bytes)")
        return self


def _as_text(given: Any) -> Any:
    return {"text": given} if isinstance(given, str) else given


def _as_image(given: Any) -> Any:
    if isinstance(given, str | int):
        return {"image": str(given)}
    if isinstance(given, Path):
        return {"data": given.read_bytes()}
    return {"data": given} if isinstance(given, bytes) else given


Texts = Annotated[
    Sequence[Annotated[Text, BeforeValidator(_as_text)]], Field(max_length=MOST_PARTS)
]
Images = Annotated[
    Sequence[Annotated[Image, BeforeValidator(_as_image)]], Field(max_length=MOST_PARTS)
]
Mode = Literal["weighted", "all", "any"]


class Scope(_Asked):
    """Which images are looked at. None: all. Datasets by id or name, with those nested in them."""

    datasets: Sequence[str] | None = None
    image_ids: Sequence[str] | None = None


class Query(Scope):
    """What to search for. A plain text or image may stand for a Text or Image of weight 1.

    mode: `weighted` adds up how well the parts match; `all` fuses the ranks that each part gives, so that
    every part must match; `any` takes the best part. threshold: least score. confidence: least
    confidence. with_references: leave images of the query in the answer. diversity: 0 orders by score
    alone, 1 by difference from what stands before alone (MMR).
    """

    texts: Texts = ()
    like: Images = ()
    not_texts: Texts = ()
    unlike: Images = ()
    mode: Mode = "weighted"
    limit: int = Field(default=10, ge=1, le=MOST_HITS)
    offset: int = Field(default=0, ge=0, le=MOST_HITS)
    threshold: float | None = Field(default=None, allow_inf_nan=False)
    confidence: float | None = Field(default=None, ge=0, le=1)
    with_references: bool = False
    diversity: float = Field(default=0.0, ge=0, le=1)

    @model_validator(mode="after")
    def _answerable(self) -> "Query":
        if not (self.texts or self.like):
            raise ValueError("nothing to search for: give a text, or an image to find the like of")
        if self.is_pooled and self.offset + self.limit > POOL:
            raise ValueError(
                f"mode all, diversity and a least confidence order the best {POOL} images: "
                f"offset + limit may be {POOL} at most"
            )
        return self

    @property
    def is_pooled(self) -> bool:
        """Whether the answer is chosen among POOL candidates."""
        return self.mode == "all" or self.diversity > 0 or self.confidence is not None


@dataclass(frozen=True)
class Hit:
    """An image that was found.

    score: orders the answer. Cosine similarity with the query's vector, -1..1; with mode `all`, the
    fused rank, 0..1; with mode `any`, that of the best part. confidence: 0..1, the chance that the best
    hit of an unrelated query would match less well. path: where a person finds it: a path (which may hold
    lone surrogates, as Python has them for bytes that are not UTF-8) or an address.
    """

    image_id: str
    name: str
    dataset: str
    score: float
    confidence: float
    path: str


@dataclass(frozen=True)
class Answer:
    """hits: best first, or in the order of picks where diversity was asked for.

    truncated: texts whose end the model did not take in.
    """

    hits: list[Hit]
    truncated: list[str]


def query_of(**asked: Any) -> Query:
    """A Query, or QueryError in one line."""
    with in_one_line():
        return Query(**asked)


@contextmanager
def in_one_line() -> Iterator[None]:
    """Turn pydantic's errors into QueryError."""
    try:
        yield
    except ValidationError as error:
        raise QueryError(explained(error)) from error


def explained(error: ValidationError) -> str:
    """What was wrong with a request, in one line."""
    said = []
    for each in error.errors():
        where = ".".join(str(part) for part in each["loc"])
        said.append(
            f"{where}: {each['msg']}" if where else each["msg"].removeprefix("Value error, ")
        )
    return "; ".join(said)
