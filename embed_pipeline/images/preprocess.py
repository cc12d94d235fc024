"""Decoded image to the pixels a model takes."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# Part of every space: raised when the same image would give other pixels.
PREPROCESSING_VERSION = 1

# Pillow keeps the corners of a box in float32: too coarse in the middle of a very long image.
_ELONGATED = 16

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Preprocessing:
    """How a model wants its input, from its preprocessor_config.json.

    size: side of the square input in pixels. fit: `crop` resizes the short side and crops the
    centre (CLIP), `squash` resizes both sides (SigLIP). resample: Pillow's filter number.
    mean, std: per channel, of values scaled to 0..1; applied by the encoder.
    """

    size: int
    fit: Literal["crop", "squash"]
    resample: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def preprocess(image: Image.Image, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """An RGB image of any size → (size, size, 3) uint8, read-only.

    The pixels of transformers' CLIPImageProcessorPil and SiglipImageProcessorPil before rescaling
    and normalising. Only the part inside the crop is ever resized.
    """
    box: Box | None = None
    if preprocessing.fit == "crop":
        box = _centre_box(image.width, image.height, preprocessing.size)
        if max(image.size) > _ELONGATED * min(image.size):
            image, box = _without_far_ends(image, box)
    side = (preprocessing.size, preprocessing.size)
    resized = image.resize(side, Image.Resampling(preprocessing.resample), box=box)
    return np.asarray(resized)


def _centre_box(width: int, height: int, size: int) -> Box:
    """The part of the image that the centre crop keeps, in pixels of the image, not yet resized.

    Rounding as in transformers: the long side after resizing and the offset of the crop are both
    rounded down (`get_resize_output_image_size` and `center_crop` of image_transforms).
    """
    short = min(width, height)
    columns, rows = int(size * width / short), int(size * height / short)
    left, top = (columns - size) // 2, (rows - size) // 2
    return (
        left * width / columns,
        top * height / rows,
        (left + size) * width / columns,
        (top + size) * height / rows,
    )


def _without_far_ends(image: Image.Image, box: Box) -> tuple[Image.Image, Box]:
    """The image cut down to the box and all that its resampling can reach, and the box in it."""
    reach = min(image.size) + 4  # the widest filter reaches 3 pixels of the larger of its two sides
    left, top = max(0, int(box[0]) - reach), max(0, int(box[1]) - reach)
    right = min(image.width, int(box[2]) + reach)
    bottom = min(image.height, int(box[3]) + reach)
    shifted = (box[0] - left, box[1] - top, box[2] - left, box[3] - top)
    return image.crop((left, top, right, bottom)), shifted
