"""Pictures that cost a decoder and an encoder what photographs cost, from a seed."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

WIDTH, HEIGHT = 500, 375
# Amplitude falls as 1/frequency in natural scenes (Field 1987); colour is smoother than light.
LIGHT_SLOPE, COLOUR_SLOPE = 1.05, 1.5
QUALITY = 88


def write_photographs(folder: Path, count: int, seed: int = 0) -> list[Path]:
    """Write `count` JPEGs of 500 x 375 pixels, 50 to 100 kB each; the same seed, the same files."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"photograph_{number:05d}.jpg" for number in range(count)]
    for number, path in enumerate(paths):
        photograph(np.random.default_rng((seed, number))).save(path, quality=QUALITY)
    return paths


def photograph(rng: np.random.Generator) -> Image.Image:
    """Clouds of every scale in one main colour, with a few hard-edged shapes and sensor noise."""
    light = _clouds(rng, LIGHT_SLOPE)[..., None]
    colour = np.stack([_clouds(rng, COLOUR_SLOPE) for _ in range(3)], axis=2)
    picture = rng.uniform(60, 190, 3) + 40 * light + 20 * colour
    for _ in range(rng.integers(3, 12)):
        picture[_shape(rng)] += rng.normal(0, 45, 3)
    picture += rng.normal(0, 3, (HEIGHT, WIDTH, 1))
    return Image.fromarray(picture.clip(0, 255).astype(np.uint8))


def _clouds(rng: np.random.Generator, slope: float) -> NDArray[np.float64]:
    """(HEIGHT, WIDTH) of zero mean and unit deviation, with the spectrum of natural scenes."""
    rows, columns = np.fft.fftfreq(HEIGHT)[:, None], np.fft.rfftfreq(WIDTH)[None]
    frequency = np.maximum(np.hypot(rows, columns), 1 / WIDTH)
    phases = np.exp(2j * np.pi * rng.random(frequency.shape))
    field = np.fft.irfft2(phases / frequency**slope, (HEIGHT, WIDTH))
    clouds: NDArray[np.float64] = (field - field.mean()) / field.std()
    return clouds


def _shape(rng: np.random.Generator) -> NDArray[np.bool_]:
    """Mask of an ellipse anywhere in the picture."""
    rows, columns = np.ogrid[:HEIGHT, :WIDTH]
    middle_row, middle_column = rng.uniform(0, HEIGHT), rng.uniform(0, WIDTH)
    tall, wide = rng.uniform(10, 120, 2)
    distance: NDArray[np.float64] = np.hypot(
        (rows - middle_row) / tall, (columns - middle_column) / wide
    )
    return distance < 1
