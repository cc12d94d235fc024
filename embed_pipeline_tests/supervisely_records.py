"""The things that a stand-in Supervisely instance holds; names are the platform's, in Python's spelling."""

import mimetypes
from base64 import b64encode
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from io import BytesIO
from typing import Any

from PIL import Image as Pillow


@dataclass
class Team:
    """`plan`: None where the platform knows of none."""

    id: int
    name: str
    plan: str | None


@dataclass
class Workspace:
    """A part of a team."""

    id: int
    name: str
    team_id: int
    created_at: str
    updated_at: str


@dataclass
class Image:
    """`path`: of its original. `data`: the bytes there. `disabled`: in the trash.

    hash_known, size_known: whether the API tells the hash; and width and height.
    """

    id: int
    name: str
    project_id: int
    dataset_id: int
    created_at: str
    updated_at: str
    data: bytes = field(repr=False)
    path: str | None
    link: str | None
    hash: str
    mime: str
    width: int | None
    height: int | None
    description: str = ""
    labels_count: int = 0
    embeddings_updated_at: str | None = None
    disabled: bool = False
    hash_known: bool = True
    size_known: bool = True

    @property
    def size(self) -> int:
        """In bytes."""
        return len(self.data)


@dataclass
class Dataset:
    """`removed`: no longer listed; its images are in the trash."""

    id: int
    name: str
    project_id: int
    team_id: int
    workspace_id: int
    parent_id: int | None
    created_at: str
    updated_at: str
    removed: bool = False


@dataclass
class Project:
    """`images`: by id, those in the trash, too."""

    id: int
    name: str
    team_id: int
    workspace_id: int
    type: str
    embeddings_enabled: bool | None
    created_at: str
    updated_at: str
    embeddings_in_progress: bool = False
    embeddings_updated_at: str | None = None
    error_message: str | None = None
    custom_data: dict[str, Any] = field(default_factory=dict)
    images: dict[int, Image] = field(default_factory=dict, repr=False)


@dataclass
class Collection:
    """`items`: score by image id."""

    id: int
    name: str
    project_id: int
    team_id: int
    type: str
    meta: dict[str, Any]
    description: str
    created_at: str
    updated_at: str
    items: dict[int, float | None] = field(default_factory=dict)


def as_text(milliseconds: int) -> str:
    """A moment since 1970 as the platform writes it."""
    moment = datetime.fromtimestamp(milliseconds / 1000, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def content_hash(data: bytes) -> str:
    """As the platform names content: base64 of the SHA-256."""
    return b64encode(sha256(data).digest()).decode()


def header(name: str, data: bytes) -> tuple[str, int | None, int | None]:
    """Type, width and height, as stored: a picture that lies on its side is not turned."""
    try:
        with Pillow.open(BytesIO(data)) as picture:
            return Pillow.MIME[picture.format or ""], picture.width, picture.height
    except (OSError, ValueError, KeyError, Pillow.DecompressionBombError, Warning):
        return mimetypes.guess_type(name)[0] or "image/jpeg", None, None
