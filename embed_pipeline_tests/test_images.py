"""Bytes to pixels."""

import io
import struct
import time
import warnings
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms
from transformers import CLIPImageProcessorPil, SiglipImageProcessorPil

from embed_pipeline.errors import ImageError
from embed_pipeline.images import decode as decode_module
from embed_pipeline.images.colour import to_rgb
from embed_pipeline.images.decode import decode, decoding_conditions
from embed_pipeline.images.preprocess import Preprocessing, preprocess

SHARED = Path(__file__).parents[2] / "shared" / "data"
MAX_PIXELS = 100_000_000
ZERO, ONE = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
SECONDS_PER_IMAGE = 5.0

WRITERS = {
    "JPEG": ("L", "RGB", "CMYK"),
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "WEBP": ("RGB", "RGBA"),
    "BMP": ("1", "L", "P", "RGB"),
    "GIF": ("L", "P", "RGB"),
    "TIFF": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "LAB", "I;16", "I;16B", "I", "F"),
    "PCX": ("1", "L", "P", "RGB"),
    "AVIF": ("RGB", "RGBA"),
}
MODES = [(form, mode) for form, modes in WRITERS.items() for mode in modes]


def written(image: Image.Image, form: str, **options: object) -> bytes:
    """The bytes of an image file."""
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def noise(mode: str, width: int, height: int) -> Image.Image:
    """A picture in any mode that Pillow can make."""
    colours = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    picture = Image.fromarray(colours)
    if mode in ("I;16", "I;16B"):
        wide = np.asarray(picture.convert("L")).astype(">u2" if mode.endswith("B") else "<u2") * 257
        return Image.frombytes(mode, (width, height), wide.tobytes())
    if mode in ("I", "F", "LA"):
        return picture.convert("L").convert(mode)
    if mode == "LAB":
        srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        return ImageCms.profileToProfile(picture, srgb, lab, outputMode="LAB")
    return picture.convert(mode)


def attempt(data: bytes) -> Image.Image | ImageError:
    """What comes of decoding: an image or a reported failure, never anything else."""
    try:
        return decode(data, target=64, max_pixels=MAX_PIXELS)
    except ImageError as error:
        return error


def files(folder: str) -> Iterator[Path]:
    """Files of the shared test data."""
    if not (SHARED / folder).is_dir():
        pytest.skip(f"no ../shared/data/{folder} beside this checkout")
    return (path for path in sorted((SHARED / folder).rglob("*")) if path.is_file())


@pytest.mark.parametrize("folder", ["odd_images", "pngsuite", "exif_orientation"])
def test_every_odd_image_is_pixels_or_a_reason(folder: str) -> None:
    """No file crashes or hangs the decoder: it gives the model's pixels, or says what is wrong."""
    wanted = Preprocessing(64, "crop", 3, ZERO, ONE)
    decoded = 0
    for path in files(folder):
        started = time.monotonic()
        outcome = attempt(path.read_bytes())
        if isinstance(outcome, ImageError):
            assert outcome.stage == "decode", path
            assert outcome.reason.isidentifier(), path
            assert "\n" not in str(outcome), path
        else:
            assert outcome.mode == "RGB", path
            assert preprocess(outcome, wanted).shape == (64, 64, 3), path
            decoded += 1
        assert time.monotonic() - started < SECONDS_PER_IMAGE, path
    assert decoded > 0


@settings(deadline=None, max_examples=150)
@given(st.sampled_from(MODES), st.integers(2, 40), st.integers(2, 40))
def test_every_format_and_mode_becomes_rgb(kind: tuple[str, str], width: int, height: int) -> None:
    """Whatever mode a format stores, the result is 8-bit RGB of the same size."""
    form, mode = kind
    image = decode(written(noise(mode, width, height), form), target=64, max_pixels=MAX_PIXELS)
    assert image.mode == "RGB"
    assert image.size == (width, height)


@pytest.mark.parametrize("mode", ["YCbCr", "HSV", "La", "PA", "RGBa", "RGBX"])
def test_modes_that_only_decoders_make_become_rgb(mode: str) -> None:
    """Modes that Pillow's decoders may give, but cannot write, convert as well."""
    picture = noise("RGB", 8, 6)
    if mode in ("La", "PA"):
        picture = picture.convert("LA").convert(mode)
    elif mode == "RGBa":
        picture = picture.convert("RGBA").convert(mode)
    assert to_rgb(picture.convert(mode)).mode == "RGB"


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(MODES), st.data())
def test_damage_is_always_an_image_error(kind: tuple[str, str], data: st.DataObject) -> None:
    """Cutting a file or flipping its bytes gives an image or an ImageError, never another error."""
    form, mode = kind
    broken = bytearray(written(noise(mode, 37, 23), form))
    for _ in range(data.draw(st.integers(0, 6))):
        broken[data.draw(st.integers(0, len(broken) - 1))] ^= data.draw(st.integers(1, 255))
    attempt(bytes(broken[: data.draw(st.integers(0, len(broken)))]))


@pytest.mark.parametrize("form", WRITERS)
def test_half_a_file_is_an_error(form: str) -> None:
    """A truncated image is reported, not filled up with grey."""
    whole = written(noise("RGB", 300, 200), form)
    outcome = attempt(whole[: len(whole) // 2])
    assert isinstance(outcome, ImageError)
    assert outcome.reason in {"truncated", "corrupt"}


def test_what_failures_are_told_apart_by() -> None:
    """Each kind of failure has its own reason, and says the numbers that matter."""
    big = written(Image.new("1", (9_500, 9_500)), "PNG")  # where Pillow only warns
    huge = written(Image.new("1", (14_000, 14_000)), "PNG")  # where Pillow would refuse
    assert isinstance(attempt(big), Image.Image)
    for data, reason, detail in (
        (b"", "empty", "no bytes"),
        (b"%!PS-Adobe-3.0 EPSF", "unknown_format", "none of JPEG"),
        (huge, "too_many_pixels", "14000 x 14000 = 196000000 pixels, the limit is 100000000"),
    ):
        outcome = attempt(data)
        assert isinstance(outcome, ImageError)
        assert outcome.reason == reason
        assert detail in outcome.detail
        assert not outcome.transient
    assert decoding_conditions(1) != decoding_conditions(2)


def test_small_files_that_would_take_long_end_soon() -> None:
    """A text chunk that unpacks to 100 MB, and a JPEG of 500 scans, are refused at once."""
    text = b"Comment\0\0" + zlib.compress(bytes(100_000_000))
    chunk = (
        struct.pack(">I", len(text))
        + b"zTXt"
        + text
        + struct.pack(">I", zlib.crc32(b"zTXt" + text))
    )
    png = written(noise("L", 8, 8), "PNG")
    jpeg = written(Image.new("L", (9_000, 9_000)), "JPEG", progressive=True)
    scan = jpeg[jpeg.rindex(b"\xff\xda") : -2]
    for bomb in (png[:33] + chunk + png[33:], jpeg[:-2] + scan * 500 + jpeg[-2:]):
        started = time.monotonic()
        assert isinstance(attempt(bomb), ImageError)
        assert time.monotonic() - started < 1.0


def test_transparency_becomes_white() -> None:
    """Alpha and a transparent palette entry are composited on white."""
    half_red = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    half_red.putpixel((1, 0), (0, 0, 0, 0))
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 0, 0])
    palette.putpixel((1, 0), 1)
    for data in (written(half_red, "PNG"), written(palette, "PNG", transparency=1)):
        image = decode(data, target=64, max_pixels=MAX_PIXELS)
        assert [image.getpixel((x, 0)) for x in (0, 1)] == [(255, 0, 0), (255, 255, 255)]


def test_sixteen_bits_keep_their_contrast() -> None:
    """A 12-bit picture stored in 16 bits is not black, and a full-range one keeps its high byte."""
    for white in (4095, 65535):
        wide = Image.fromarray(np.array([[0, white // 2, white]], np.uint16))
        image = decode(written(wide, "PNG"), target=64, max_pixels=MAX_PIXELS)
        assert np.asarray(image)[0, :, 0].tolist() == [0, 127, 255]


def black_only_printer() -> bytes:
    """A CMYK profile of a printer that has run out of all inks but black."""
    ramp = bytes(range(256))
    identity = struct.pack(">9i", *(65536 if at in (0, 4, 8) else 0 for at in range(9)))
    to_lab = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + identity
    to_lab += ramp * 4 + bytes([255, 128, 128, 0, 128, 128]) * 2**3 + ramp * 3
    tags = struct.pack(">I4sII", 1, b"A2B0", 144, len(to_lab))
    head = struct.pack(
        ">I4sI4s4s4s", 144 + len(to_lab), b"lcms", 0x02400000, b"prtr", b"CMYK", b"Lab "
    )
    head = (head + bytes(12) + b"acsp").ljust(68, b"\0")
    head += struct.pack(">3I", 0xF6D6, 0x10000, 0xD32D)  # D50, as every profile states
    return head.ljust(128, b"\0") + tags + to_lab


def test_cmyk_goes_through_its_profile() -> None:
    """The embedded profile decides the colours of CMYK; a damaged one costs only the profile."""
    cyan = Image.new("CMYK", (2, 2), (255, 0, 0, 0))
    data = written(cyan, "TIFF", icc_profile=black_only_printer())
    assert np.asarray(decode(data, target=64, max_pixels=MAX_PIXELS)).min() >= 250
    cmyk = noise("CMYK", 20, 20)
    plain = decode(written(cmyk, "TIFF"), target=64, max_pixels=MAX_PIXELS)
    broken = decode(written(cmyk, "TIFF", icc_profile=b"junk"), target=64, max_pixels=MAX_PIXELS)
    assert plain.tobytes() == broken.tobytes()


def test_large_jpegs_are_decoded_small_but_never_below_twice_the_target() -> None:
    """Reduced decoding halves sides while the short one stays at least 2 * target."""
    for side, expected in ((127, 127), (255, 255), (256, 128), (511, 256), (512, 128), (2001, 251)):
        data = written(noise("L", 3 * side, side), "JPEG")
        assert decode(data, target=64, max_pixels=MAX_PIXELS).height == expected


def test_heic_without_its_extra_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """HEIC decodes with pillow-heif, and without it is a failure that says what to install."""
    heif = pytest.importorskip("pillow_heif")
    file = io.BytesIO()
    heif.from_pillow(noise("RGB", 64, 48)).save(file)
    assert decode(file.getvalue(), target=64, max_pixels=MAX_PIXELS).size == (64, 48)
    monkeypatch.setitem(__import__("sys").modules, "pillow_heif", None)
    outcome = attempt(file.getvalue())
    assert isinstance(outcome, ImageError)
    assert outcome.reason == "heif_not_installed"
    assert "embed-pipeline[heif]" in outcome.detail


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 700), st.integers(1, 700), st.sampled_from([32, 224]), st.sampled_from([2, 3])
)
def test_pixels_are_those_of_transformers(
    width: int, height: int, size: int, resample: int
) -> None:
    """Resize and crop agree with transformers' CLIP and SigLIP processors to the last bit or two."""
    image = noise("RGB", width, height)
    square = {"height": size, "width": size}
    raw = {"do_rescale": False, "do_normalize": False, "resample": resample}
    crop = CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size=square, **raw)
    squash = SiglipImageProcessorPil(size=square, **raw)
    for processor, fit in ((crop, "crop"), (squash, "squash")):
        ours = preprocess(image, Preprocessing(size, fit, resample, ZERO, ONE))
        theirs = np.moveaxis(processor(image)["pixel_values"][0], 0, 2)
        difference = np.abs(ours.astype(int) - theirs)
        assert difference.max() <= 2
        assert difference.mean() < 0.1


@pytest.mark.parametrize("shape", [(1, 100_000), (3, 1_000_000), (100_000, 2)])
def test_very_long_images_cost_no_memory(shape: tuple[int, int]) -> None:
    """Only the middle of a very long image is resized, at the right place."""
    height, width = shape
    ramp = np.linspace(0, 255, height * width).reshape(height, width).astype(np.uint8)
    pixels = preprocess(
        Image.fromarray(ramp).convert("RGB"), Preprocessing(64, "crop", 3, ZERO, ONE)
    )
    assert pixels.shape == (64, 64, 3)
    if height == 1:
        assert abs(int(pixels.mean()) - 127) <= 1


def test_threads_do_not_disturb_each_other() -> None:
    """Many threads decoding different files get what one thread gets."""
    data = [written(noise(mode, 60, 40), form) for form, mode in MODES] * 4
    alone = [attempt(each).tobytes() for each in data]
    with ThreadPoolExecutor(8) as threads:
        together = [image.tobytes() for image in threads.map(attempt, data)]
    assert together == alone


def test_photographs_are_upright() -> None:
    """The same photograph stored in all eight EXIF orientations gives the same pixels."""
    assert list(files("exif_orientation"))
    for name in ("Landscape", "Portrait"):
        paths = [SHARED / "exif_orientation" / f"{name}_{turn}.jpg" for turn in range(1, 9)]
        upright = [decode(path.read_bytes(), target=900, max_pixels=MAX_PIXELS) for path in paths]
        for image in upright[1:]:  # each has its number painted in the middle
            difference = np.asarray(image).astype(int) - np.asarray(upright[0])
            assert np.median(np.abs(difference)) <= 4


def test_pillow_is_left_as_it_was() -> None:
    """Decoding changes none of Pillow's settings and lets none of its warnings out."""
    before = (Image.MAX_IMAGE_PIXELS, decode_module.ImageFile.LOAD_TRUNCATED_IMAGES)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        attempt(written(Image.new("1", (9_500, 9_500)), "TIFF"))
    assert not seen
    assert before == (Image.MAX_IMAGE_PIXELS, decode_module.ImageFile.LOAD_TRUNCATED_IMAGES)
