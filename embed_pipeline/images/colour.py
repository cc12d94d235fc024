"""Any Pillow mode to 8-bit RGB."""

from io import BytesIO

import numpy as np
from PIL import Image, ImageCms

_SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
_LAB = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))


def to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB of a loaded image.

    Transparency is composited on white. 16-bit grey keeps the highest 8 bits in use (cameras and
    scanners store 10 to 14 bits in 16); 32-bit integers and floats, which say nothing about what is
    white, are stretched from their darkest to their brightest pixel. CMYK goes through the embedded
    profile where there is a sound one. RGB profiles are not applied: models are trained without.
    """
    if image.mode.startswith("I;16"):
        return _from_16_bit(image)
    if image.mode in ("I", "F"):
        return _stretched(image)
    if image.mode == "LAB":
        return _through_profile(image, _LAB)
    if image.mode == "CMYK":
        return _from_cmyk(image)
    return _on_white(image) if image.has_transparency_data else image.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode == "La":  # premultiplied grey converts to nothing else
        image = image.convert("LA")
    rgba = image.convert("RGBA")
    opaque = Image.new("RGB", rgba.size, "white")
    opaque.paste(rgba, mask=rgba)
    return opaque


def _from_16_bit(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    used_bits = max(8, int(values.max()).bit_length())
    grey = (values >> (used_bits - 8)).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[values == transparent] = 255
    return Image.fromarray(grey).convert("RGB")


def _stretched(image: Image.Image) -> Image.Image:
    values = np.nan_to_num(np.asarray(image, dtype=np.float32), posinf=0.0, neginf=0.0)
    dark, bright = float(values.min()), float(values.max())
    grey = (values - dark) * np.float32(255 / ((bright - dark) or 1.0))
    return Image.fromarray(grey.round().astype(np.uint8)).convert("RGB")


def _from_cmyk(image: Image.Image) -> Image.Image:
    embedded = image.info.get("icc_profile")
    if embedded:
        try:
            return _through_profile(image, ImageCms.ImageCmsProfile(BytesIO(embedded)))
        except (ImageCms.PyCMSError, OSError, ValueError):
            pass  # broken, or not a CMYK profile
    return image.convert("RGB")


def _through_profile(image: Image.Image, profile: ImageCms.ImageCmsProfile) -> Image.Image:
    converted = ImageCms.profileToProfile(image, profile, _SRGB, outputMode="RGB")
    assert converted is not None  # noqa: S101  # None only when converting in place
    return converted
