"""Pictures of images for people: from the source, small."""

import io
from threading import Event

from PIL import Image

from embed_pipeline.deployment import Deployment
from embed_pipeline.errors import ImageError
from embed_pipeline.images.decode import decode
from embed_pipeline.sources.protocol import Wanted

QUALITY = 85


def picture(
    deployment: Deployment, project: str, locator: str, content_hash: bytes, side: int
) -> Image.Image | None:
    """The image, small enough for thumbnails of `side` pixels; None if it cannot be read."""
    try:
        image = _read(deployment, project, locator, content_hash, side)
    except ImageError:
        return None
    image.thumbnail((2 * side, 2 * side))
    return image


def thumbnail(
    deployment: Deployment, project: str, locator: str, content_hash: bytes, side: int
) -> bytes:
    """The image upright, as a JPEG whose longer side is `side` pixels at most. Raises ImageError."""
    image = _read(deployment, project, locator, content_hash, side)
    image.thumbnail((side, side))
    image.save(file := io.BytesIO(), "JPEG", quality=QUALITY)
    return file.getvalue()


def _read(
    deployment: Deployment, project: str, locator: str, content_hash: bytes, side: int
) -> Image.Image:
    settings = deployment.settings
    rendition = deployment.source.rendition(side)
    wanted = Wanted(locator, content_hash, settings.max_image_bytes, rendition)
    data = deployment.source.fetch(project, wanted, Event())
    return decode(data, target=side, max_pixels=settings.max_image_pixels)
