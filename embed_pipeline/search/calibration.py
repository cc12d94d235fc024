"""What unrelated queries find in a project: the footing that texts and images are compared on.

Raw cosines of texts (0.2 to 0.4) and of images (0.5 to 1) cannot be compared, neither with each other nor
across projects (Liang et al. 2022, "Mind the Gap"). So each part of a query counts in units of its own
spread over the project, and confidence asks how high the best image of the project stands for a query that
has nothing to do with it. That is measured with unrelated queries: for texts, those of null_texts.py; for
images, points drawn from the normal distribution that the project's own vectors have. Best scores
follow a Gumbel distribution; its parameters are read off the quartiles, so that some queries which
happen to match do no harm.
"""

from dataclasses import astuple, dataclass, field
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Literal, Self
from zipfile import BadZipFile

import numpy as np
import polars as pl
from numpy.typing import NDArray

from embed_pipeline.durable import replace_durably
from embed_pipeline.models.protocol import Vectors
from embed_pipeline.vector_library import VectorLibrary

Kind = Literal["text", "image"]
KINDS: tuple[Kind, ...] = ("text", "image")
Weights = tuple[tuple[Kind, float], ...]

# Images that stand for a project: drawn by content hash, which is as good as by lot.
SAMPLE = 4096
KEPT = 1024
# Of a few images, mean and spread say little: both count as if that many more said nothing.
PRIOR_IMAGES = 8
LEAST_SPREAD = 0.01
LEAST_SCALE = 0.01
SEED = 0
QUARTILES = (0.25, 0.75)
SMALLEST = 1e-6
MIXED_KEPT = 100


@dataclass(frozen=True)
class Best:
    """The distribution of the best score that an unrelated query finds: Gumbel's parameters."""

    location: float
    scale: float

    @classmethod
    def fitted(cls, best: Vectors, times: float) -> Self:
        """To the best of a sample for each query (n,), where the project is `times` as large."""
        low, high = np.quantile(best, QUARTILES)
        reduced_low, reduced_high = (-np.log(-np.log(p)) for p in QUARTILES)
        scale = max(float((high - low) / (reduced_high - reduced_low)), LEAST_SCALE)
        # The largest of n draws of a Gumbel distribution is one again, further up.
        location = float(low) - scale * reduced_low + scale * np.log(max(times, 1.0))
        return cls(float(location), scale)

    def below(self, scores: Vectors) -> Vectors:
        """The chance that the best hit of an unrelated query has a lower score than each of these."""
        return np.asarray(np.exp(-np.exp((self.location - scores) / self.scale)), np.float32)


@dataclass(frozen=True)
class Calibration:
    """Of one project in one space.

    contents: how many different images the project has. sample: unit vectors of some, (n, dimension).
    means: of each kind, (dimension,). nulls: vectors of unrelated queries of each kind, (n, dimension).
    best: of each kind.
    """

    contents: int
    sample: Vectors
    means: dict[Kind, Vectors]
    nulls: dict[Kind, Vectors]
    best: dict[Kind, Best]
    _mixed: dict[Weights, Best] = field(default_factory=dict, compare=False)

    def spread(self, vectors: Vectors) -> Vectors:
        """Standard deviation of queries' (..., dimension) cosines over the project's images: (...)."""
        # Not by BLAS: for so little its threads take longer to meet than to work.
        cosines = np.einsum("...d,nd->...n", vectors, self.sample)
        return np.asarray(np.maximum(cosines.std(axis=-1), LEAST_SPREAD))

    def mean_cosine(self, vector: Vectors) -> float:
        """Mean of a query's cosine over the project's images."""
        return float(self.means["image"] @ vector)

    def confidence(self, kind: Kind, vector: Vectors, images: Vectors) -> Vectors:
        """The chance that the best hit of an unrelated query matches less well than each image: 0..1.

        (n,) for images (n, dimension). For one query it rises with the cosine.
        """
        cosines = images @ vector
        if kind == "text":
            cosines *= telling(vector, self.means["text"])
        return self.best[kind].below(cosines)

    def best_of_mixed(self, weights: Weights) -> Best:
        """What is found by unrelated queries of several parts, each with that kind and weight."""
        best = self._mixed.get(weights)
        if best is None:
            if len(self._mixed) >= MIXED_KEPT:
                self._mixed.clear()
            best = self._mixed[weights] = self._measured(weights)
        return best

    def _measured(self, weights: Weights) -> Best:
        mixed = np.zeros_like(self._scaled["text"])
        for number, (kind, weight) in enumerate(weights):
            # Each part of a query is another one.
            mixed += weight * np.roll(self._scaled[kind], number, axis=0)
        found = (unit(mixed) @ self.sample.T).max(axis=1)
        return Best.fitted(found, self.contents / len(self.sample))

    @cached_property
    def _scaled(self) -> dict[Kind, Vectors]:
        """Unrelated queries in units of their own spread, as parts are."""
        return {kind: null / self.spread(null)[:, None] for kind, null in self.nulls.items()}


def telling(texts: Vectors, mean: Vectors) -> Vectors:
    """How much texts (..., dimension) say: the less, the nearer they are to the mean of all texts.

    What says little resembles every image a little, so its cosines count less. Of the powers of the
    distance, the square root tells both near misses and unrelated prompts best from those with a match
    (benchmarks/relevance.py).
    """
    return np.asarray(np.sqrt(np.linalg.norm(texts - mean, axis=-1)), np.float32)


def calibrate(images: Vectors, contents: int, null_texts: Vectors) -> Calibration:
    """From a sample of the project's vectors (n, dimension), of `contents` different images in all."""
    mean = images.mean(axis=0) * (len(images) / (len(images) + PRIOR_IMAGES))
    text_mean = null_texts.mean(axis=0)
    null_images = _null_images(images, mean, len(null_texts))
    found: dict[Kind, Vectors] = {
        "text": (null_texts @ images.T).max(axis=1) * telling(null_texts, text_mean),
        "image": (null_images @ images.T).max(axis=1),
    }
    times = contents / len(images)
    return Calibration(
        contents=contents,
        sample=images[:KEPT],
        means={"text": text_mean, "image": mean},
        nulls={"text": null_texts, "image": null_images},
        best={kind: Best.fitted(scores, times) for kind, scores in found.items()},
    )


def sample_of(library: VectorLibrary, contents: pl.Series) -> Vectors:
    """Vectors of at most SAMPLE of `contents` (32 bytes each, each once), always the same ones."""
    hashes, vectors = library.vectors(contents.sort().head(SAMPLE))
    return np.asarray(vectors[hashes.arg_sort().to_numpy()])


def write(calibration: Calibration, version: str, path: Path) -> None:
    """Keep it for other processes. Raises OutOfSpace or NotWritable."""
    buffer = BytesIO()
    np.savez(
        buffer,
        version=np.array(version),
        contents=np.array(calibration.contents),
        sample=calibration.sample.astype(np.float16),
        means=np.array([calibration.means[kind] for kind in KINDS]),
        nulls=np.array([calibration.nulls[kind] for kind in KINDS]),
        best=np.array([astuple(calibration.best[kind]) for kind in KINDS]),
    )
    replace_durably(path, lambda temporary: temporary.write_bytes(buffer.getbuffer()))


def read(path: Path) -> tuple[str, Calibration] | None:
    """What was written last, and its version; None where nothing (whole) is there."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as kept:
            calibration = Calibration(
                contents=int(kept["contents"]),
                sample=kept["sample"].astype(np.float32),
                means=dict(zip(KINDS, kept["means"], strict=True)),
                nulls=dict(zip(KINDS, kept["nulls"], strict=True)),
                best={
                    kind: Best(float(location), float(scale))
                    for kind, (location, scale) in zip(KINDS, kept["best"], strict=True)
                },
            )
            return str(kept["version"]), calibration
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return None


def unit(vectors: Vectors) -> Vectors:
    """Brought to length 1 along the last axis; next to nothing stays what it is."""
    lengths: NDArray[np.float32] = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, SMALLEST), np.float32)


def _null_images(images: Vectors, mean: Vectors, number: int) -> Vectors:
    """Unit vectors such as the project's, but of no image: (number, dimension)."""
    lots = np.random.default_rng(SEED)
    count, dimension = images.shape
    own = PRIOR_IMAGES / (count + PRIOR_IMAGES)
    like_the_project = lots.standard_normal((number, count)) @ (images - mean) / np.sqrt(count)
    anywhere = lots.standard_normal((number, dimension)) / np.sqrt(dimension)
    anywhere *= np.sqrt(max(0.0, 1.0 - float(mean @ mean)))
    drawn = mean + np.sqrt(1 - own) * like_the_project + np.sqrt(own) * anywhere
    return unit(drawn.astype(np.float32))
