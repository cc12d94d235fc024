"""What a Supervisely instance tells of images, as rows of a manifest."""

import base64
import binascii
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import polars as pl

from embed_pipeline.manifest import MANIFEST
from embed_pipeline.tables import Table

SHA256_BYTES = 32
NEVER = datetime(1970, 1, 1, tzinfo=UTC)

# Keys of images without a hash, such as linked ones: of their link and modification time. An image
# whose time we changed ourselves, by marking it as embedded, keeps its key.
LINKS = Table(
    "links",
    1,
    pl.Schema(
        {
            "image_id": pl.String(),
            "link": pl.String(),
            "updated_at": pl.String(),
            "content_hash": pl.Binary(),
        }
    ),
)


@dataclass(frozen=True)
class Locator:
    """How an image is found again.

    url: where its bytes are stored; empty for a link to elsewhere, which the instance follows. page:
    where people see it, under the instance's address. width, height: in pixels, upright or not; 0
    where they are not known. hashed: whether its content_hash is that of its bytes.
    """

    id: int
    url: str
    page: str
    width: int
    height: int
    hashed: bool

    def __str__(self) -> str:
        """The locator of a manifest's row."""
        return json.dumps(asdict(self))

    @classmethod
    def of(cls, text: str) -> "Locator":
        """Undo `str`."""
        return cls(**json.loads(text))


class Contents:
    """The content hash of each image of a project: the platform's, or a key that we make.

    remembered: LINKS, from earlier listings. `links` is what to remember of this one.
    """

    def __init__(self, remembered: pl.DataFrame) -> None:
        rows = remembered.iter_rows(named=True)
        self._remembered = {row["image_id"]: row for row in rows}
        self._seen: dict[str, dict[str, Any]] = {}

    def hash_of(self, image: Mapping[str, Any]) -> bytes:
        """32 bytes that change when the image's content does."""
        return platform_hash(image) or self._key(image)

    def marked(self, image: Mapping[str, Any]) -> None:
        """The image's time is changed by us: its key stays, unless its link is another."""
        known = self._seen.get(str(image["id"]))
        if known and known["link"] == _link(image):
            known["updated_at"] = _time(image)

    def links(self) -> pl.DataFrame:
        """LINKS of the images that were seen."""
        return pl.DataFrame(list(self._seen.values()), schema=LINKS.schema)

    def _key(self, image: Mapping[str, Any]) -> bytes:
        image_id, link, time = str(image["id"]), _link(image), _time(image)
        known = self._seen.get(image_id) or self._remembered.get(image_id)
        if not known or (known["link"], known["updated_at"]) != (link, time):
            key = hashlib.sha256(f"link\0{link}\0{time}".encode()).digest()
            known = {"image_id": image_id, "link": link, "updated_at": time, "content_hash": key}
        self._seen[image_id] = dict(known)
        content_hash: bytes = known["content_hash"]
        return content_hash


def platform_hash(image: Mapping[str, Any]) -> bytes | None:
    """The sha256 of the image's bytes, where the platform knows it."""
    try:
        content_hash = base64.b64decode(image.get("hash") or "", validate=True)
    except (binascii.Error, ValueError):
        return None
    return content_hash if len(content_hash) == SHA256_BYTES else None


def manifest_rows(
    images: Iterable[Mapping[str, Any]], contents: Contents, datasets: Mapping[int, str], page: str
) -> pl.DataFrame:
    """MANIFEST rows. datasets: names by id. page: of the project, without the dataset and the image."""
    rows = [_row(image, contents, datasets, page) for image in images]
    return pl.DataFrame(rows, schema=MANIFEST.schema)


def _row(
    image: Mapping[str, Any], contents: Contents, datasets: Mapping[int, str], page: str
) -> dict[str, Any]:
    dataset = image["datasetId"]
    locator = Locator(
        id=image["id"],
        url="" if image.get("link") else image.get("fullStorageUrl") or "",
        page=f"{page}/{dataset}#image-{image['id']}",
        width=image.get("width") or 0,
        height=image.get("height") or 0,
        hashed=platform_hash(image) is not None,
    )
    return {
        "image_id": str(image["id"]),
        "dataset_id": str(dataset),
        "dataset_name": datasets.get(dataset, str(dataset)),
        "name": image["name"],
        "content_hash": contents.hash_of(image),
        "updated_at": datetime.fromisoformat(_time(image)) if _time(image) else NEVER,
        "size": int(image["size"]) if image.get("size") else None,
        "width": locator.width or None,
        "height": locator.height or None,
        "locator": str(locator),
    }


def _link(image: Mapping[str, Any]) -> str:
    return str(image.get("link") or image.get("fullStorageUrl") or image.get("pathOriginal") or "")


def _time(image: Mapping[str, Any]) -> str:
    return str(image.get("updatedAt") or image.get("createdAt") or "")
