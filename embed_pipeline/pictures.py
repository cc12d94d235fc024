"""Pictures of images for people: from the source, small."""

from threading import Event

from PIL import Image

from embed_pipeline.deployment import Deployment
from embed_pipeline.errors import ImageError
from embed_pipeline.images.decode import decode
from embed_pipeline.sources.protocol import Wanted


def picture(
    deployment: Deployment, project: str, locator: str, content_hash: bytes, side: int
) -> Image.Image | None:
    """The image, small enough for thumbnails of `side` pixels; None if it cannot be read."""
    settings = deployment.settings
    rendition = deployment.source.rendition(side)
    wanted = Wanted(locator, content_hash, settings.max_image_bytes, rendition)
    try:
        data = deployment.source.fetch(project, wanted, Event())
        image = decode(data, target=side, max_pixels=settings.max_image_pixels)
    except ImageError:
        return None
    image.thumbnail((2 * side, 2 * side))
    return image
