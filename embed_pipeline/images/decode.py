"""The bytes of an image file to upright 8-bit RGB, within limits and without surprises.

Safe to call from many threads. Pillow's own global settings are left alone: its plugins are opened
directly, so that our pixel limit, not its decompression-bomb check, decides what is too large, and
only the formats listed here are ever tried.
"""

import importlib.util
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO

import PIL
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PcxImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)
from PIL.ExifTags import Base as Tag

from embed_pipeline.errors import ImageError
from embed_pipeline.images.colour import to_rgb

# Raised when an image that failed might now decode: recorded failures are then tried again.
DECODER_VERSION = 1

# A progressive JPEG may hold any number of nearly empty scans, each as slow as a whole decode.
MAX_JPEG_SCAN_PIXELS = 5_000_000_000

_PLUGINS: tuple[type[ImageFile.ImageFile], ...] = (
    JpegImagePlugin.JpegImageFile,
    PngImagePlugin.PngImageFile,
    WebPImagePlugin.WebPImageFile,
    GifImagePlugin.GifImageFile,
    TiffImagePlugin.TiffImageFile,
    AvifImagePlugin.AvifImageFile,
    BmpImagePlugin.BmpImageFile,
    PcxImagePlugin.PcxImageFile,
)
_FORMATS = ", ".join(str(plugin.format) for plugin in _PLUGINS)
_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}

Box = tuple[float, float, float, float]

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# By the words of Pillow and the libraries under it, in this order.
_REASONS = {
    "truncated": re.compile(r"(?i)truncat|not enough|end of (file|data|stream)|incomplete"),
    "unsupported": re.compile(r"(?i)unsupported|not supported|not installed"),
}
_PILLOW_WARNINGS = re.compile(r"PIL\.")
_filters_lock = threading.Lock()


def decoding_conditions(max_pixels: int) -> str:
    """Everything besides its bytes that decides whether an image decodes, as one short text.

    A recorded failure whose conditions differ from these is worth another try.
    """
    heif = "yes" if importlib.util.find_spec("pillow_heif") else "no"
    return f"decoder {DECODER_VERSION}, pillow {PIL.__version__}, heif {heif}, {max_pixels} pixels"


def decode(data: bytes, *, target: int, max_pixels: int) -> Image.Image:
    """The first image in `data` as upright 8-bit RGB, transparency composited on white.

    target: the side in pixels that the model takes. A much larger JPEG is decoded at 1/2, 1/4 or
    1/8 of its size, never below 2 * target on its short side. max_pixels: limit on width * height
    as the file's header states them.

    Raises ImageError of stage `decode`; its reason is one of empty, unknown_format,
    heif_not_installed, unsupported, too_many_pixels, too_many_scans, truncated, corrupt,
    out_of_memory (the only transient one).
    """
    with _explained(max_pixels):
        image = _open(data)
        _check_size(image, data, max_pixels)
        filled = _reduce(image, target)
        image.load()
        rgb = to_rgb(image)
        if filled:
            rgb = rgb.resize(rgb.size, Image.Resampling.BICUBIC, box=filled)
        return _upright(rgb, _orientation(image))


def image_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) in pixels as stored, from the header; None where it does not tell."""
    try:
        with _explained(0):
            width, height = _open(data).size
    except ImageError:
        return None
    # A damaged header may claim any number.
    return (width, height) if 0 < min(width, height) <= max(width, height) < 2**31 else None


def _open(data: bytes) -> ImageFile.ImageFile:
    """Read the header only."""
    if not data:
        raise ImageError("decode", "empty", "the file has no bytes")
    if data[4:8] == b"ftyp" and _brands(data) & _HEIC_BRANDS:
        return _open_heif(data)
    for plugin in _PLUGINS:
        accept = Image.OPEN[str(plugin.format)][1]
        if accept is not None and accept(data[:16]):
            return plugin(BytesIO(data))
    raise ImageError(
        "decode", "unknown_format", f"begins with {data[:8]!r}: none of {_FORMATS}, HEIC"
    )


def _brands(data: bytes) -> set[bytes]:
    """Brands in the first box of an ISO media file, the container of both AVIF and HEIC."""
    box = data[8 : min(int.from_bytes(data[:4]), 256)]
    return {box[i : i + 4] for i in range(0, len(box), 4)}


def _open_heif(data: bytes) -> ImageFile.ImageFile:
    try:
        from pillow_heif import HeifImageFile
    except ImportError as error:
        detail = 'HEIC needs the extra `heif`: pip install "embed-pipeline[heif]"'
        raise ImageError("decode", "heif_not_installed", detail) from error
    image: ImageFile.ImageFile = HeifImageFile(BytesIO(data))  # type: ignore[no-untyped-call]
    return image


def _check_size(image: ImageFile.ImageFile, data: bytes, max_pixels: int) -> None:
    width, height = image.size
    if width < 1 or height < 1:
        raise ImageError("decode", "corrupt", f"{width} x {height} pixels")
    if width * height > max_pixels:
        detail = f"{width} x {height} = {width * height} pixels, the limit is {max_pixels}"
        raise ImageError("decode", "too_many_pixels", detail)
    if image.info.get("progressive"):
        scans = data.count(b"\xff\xda")
        if scans * width * height > MAX_JPEG_SCAN_PIXELS:
            detail = f"{scans} scans of {width} x {height} pixels"
            raise ImageError("decode", "too_many_scans", detail)


def _reduce(image: ImageFile.ImageFile, target: int) -> Box | None:
    """Have a large JPEG decoded at 1/2, 1/4 or 1/8 of its size.

    A side that this does not divide rounds up: then the result is the box in pixels, not whole
    ones, that the picture really fills. Taking the rounded size for it would move the picture by
    up to half a pixel, another way in each orientation.
    """
    if not isinstance(image, JpegImagePlugin.JpegImageFile):
        return None
    reduced = image.draft(None, (2 * target, 2 * target))
    return None if reduced is None or reduced[1][2:] == image.size else reduced[1]


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8. A damaged EXIF block costs the orientation, not the image."""
    try:
        return int(image.getexif().get(Tag.Orientation, 1))
    except Exception:  # noqa: BLE001  # Pillow's EXIF reader lets any error of its parser through
        return 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    method = _UPRIGHT.get(orientation)
    return image if method is None else image.transpose(method)


@contextmanager
def _explained(max_pixels: int) -> Iterator[None]:
    """Turn whatever Pillow raises into an ImageError, and keep its warnings to ourselves."""
    _ignore_pillow_warnings()
    try:
        yield
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        pixels = re.findall(r"\d+", str(error))[0]
        detail = f"a frame or tile of {pixels} pixels, the limit is {max_pixels}"
        raise ImageError("decode", "too_many_pixels", detail) from error
    except MemoryError as error:
        detail = "not enough memory to decode it now"
        raise ImageError("decode", "out_of_memory", detail, transient=True) from error
    except Exception as error:  # Pillow raises a dozen unrelated types on damaged files
        raise ImageError("decode", _reason(error), _first_line(error)) from error


def _reason(error: Exception) -> str:
    if isinstance(error, EOFError):
        return "truncated"
    words = str(error)
    return next((reason for reason, said in _REASONS.items() if said.search(words)), "corrupt")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _ignore_pillow_warnings() -> None:
    """Pillow warns about oddities of files that nobody can act on here.

    `warnings.catch_warnings` is not safe among threads before Python 3.14, so the filter stays.
    """
    rule = ("ignore", None, Warning, _PILLOW_WARNINGS, 0)
    with _filters_lock:
        if rule not in warnings.filters:
            warnings.filterwarnings("ignore", module=_PILLOW_WARNINGS.pattern)
