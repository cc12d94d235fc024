"""The bytes of a Supervisely instance's images: small previews, or the originals."""

import hashlib
import logging
import re
from math import ceil
from threading import Event
from urllib.parse import urlsplit

import httpx

from embed_pipeline.errors import ImageError
from embed_pipeline.images.decode import decode
from embed_pipeline.sources.protocol import Wanted
from embed_pipeline.sources.supervisely_http import Connection, Refused, TooLarge, explained
from embed_pipeline.sources.supervisely_images import Locator

logger = logging.getLogger(__name__)

# JPEG's own loss at this quality moves a CLIP vector less than its resizing does.
QUALITY = 90
# The longer side of the largest preview; the original of a more elongated image is no more to download.
MAX_PREVIEW_SIDE = 4096
_REFUSALS = (401, 403)
_MISSING = 404


def preview(side: int) -> str:
    """The rendition of previews whose shorter side is `side` pixels."""
    return f"preview{side}q{QUALITY}"


class Pictures:
    """Fetches images. resizer: where previews are made, if not at /previews of their own address."""

    def __init__(self, connection: Connection, resizer: str | None) -> None:
        self._connection = connection
        self._resizer = resizer.rstrip("/") if resizer else None

    def fetch(self, wanted: Wanted, stop: Event) -> bytes:
        """The rendition; the original where its preview fails.

        Raises ImageError of stage `fetch`, SourceUnavailable where the instance is gone, SourceRefused.
        """
        locator = Locator.of(wanted.locator)
        url = self.url(locator, wanted.rendition)
        if url and (data := self._preview(url, wanted, stop)):
            return data
        return self._original(locator, wanted, stop)

    def url(self, locator: Locator, rendition: str) -> str | None:
        """Where the preview is; None where the original must be read instead."""
        made = re.fullmatch(r"preview(\d+)q(\d+)", rendition)
        short, long = sorted((locator.width, locator.height))
        if made is None or not short:
            return None
        side, quality = map(int, made.groups())
        # A square box, as the stored size does not tell which way the image will be turned.
        box = ceil(side * long / short)
        stored = urlsplit(locator.url)
        if box > MAX_PREVIEW_SIDE or not stored.netloc:
            return None
        resizer = self._resizer or f"{stored.scheme}://{stored.netloc}/previews"
        path = locator.url.partition(stored.netloc)[2]
        return f"{resizer}/q/ext:jpeg/resize:fit:{box}:{box}:0/q:{quality}/plain{path}"

    def _preview(self, url: str, wanted: Wanted, stop: Event) -> bytes | None:
        try:
            data = self._connection.get(url, wanted.max_bytes, stop)
            decode(data, target=1, max_pixels=MAX_PREVIEW_SIDE**2)
        except (Refused, TooLarge, httpx.HTTPError, ImageError) as error:
            logger.info("%s: %s; taking the original", url, error)
            return None
        return data

    def _original(self, locator: Locator, wanted: Wanted, stop: Event) -> bytes:
        try:
            data = self._connection.image(locator.id, wanted.max_bytes, stop)
        except TooLarge as error:
            detail = f"EMBED_MAX_IMAGE_BYTES allows {wanted.max_bytes:,} bytes"
            raise ImageError("fetch", "too_many_bytes", detail) from error
        except (Refused, httpx.HTTPError) as error:
            raise self._failed(error) from error
        if locator.hashed and hashlib.sha256(data).digest() != wanted.content_hash:
            detail = "the bytes that came are not those of the listed hash"
            raise ImageError("fetch", "checksum", detail, transient=True)
        return data

    def _failed(self, error: Refused | httpx.HTTPError) -> Exception:
        """Of one image, if it may be; an instance that is gone, or that knows us no more, is none."""
        gone = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
        status = error.status if isinstance(error, Refused) else None
        if gone or status in _REFUSALS:
            return explained(error, self._connection.where, "images.download")
        reason = "vanished" if status == _MISSING else "unavailable"
        return ImageError("fetch", reason, str(error) or type(error).__name__, transient=True)
