"""An image's size from its header, nothing decoded."""

import io
import warnings


def image_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) in pixels as stored, or None where the header does not tell."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data)) as image:
                return image.size
    except Exception:  # noqa: BLE001  whatever a damaged header makes Pillow raise: the size is optional
        return None
