"""The sample project: generated scenes in the layout of a source root, for the demo and the tests."""

from pathlib import Path

import numpy as np

from embed_pipeline.models.demo.scenes import Pair, Scene, make_scene, render

PROJECT = "scenes"
# What the demo searches for ("a red circle"); each is in many pictures of the sample.
DEMO_QUERIES: tuple[Pair, ...] = (("red", "circle"), ("blue", "star"), ("green", "heart"))

ALONE = "single"  # the dataset of pictures with one object
_DATASETS = {1: ALONE, 2: "groups/pairs", 3: "groups/crowds", 4: "groups/crowds"}
_PICTURE_SIZES = ((400, 300), (384, 256), (320, 320), (300, 400), (320, 240))  # pixels


def make_sample(folder: Path, *, images: int = 400, seed: int = 7) -> None:
    """Write the sample project into `folder`, a source root; the same seed gives the same bytes.

    Files that are there already stay untouched, so a call that was cut short can be repeated.
    """
    for index in range(images):
        rng = np.random.default_rng([seed, index])
        scene = make_scene(rng)
        width, height = _PICTURE_SIZES[rng.integers(len(_PICTURE_SIZES))]
        dataset = folder / PROJECT / _DATASETS[len(scene.objects)]
        path = dataset / f"{_title(scene)}-{index:04}.jpg"
        if not path.exists():
            dataset.mkdir(parents=True, exist_ok=True)
            unfinished = path.with_suffix(".part")
            render(scene, width, height).save(unfinished, "JPEG", quality=90)
            unfinished.replace(path)


def _title(scene: Scene) -> str:
    pairs = dict.fromkeys(f"{item.colour}-{item.shape}" for item in scene.objects)
    return f"{'-'.join(pairs)}-on-{scene.background}"


def matches(name: str, colour: str, shape: str) -> bool:
    """Whether a sample picture of this file name shows, say, a red circle: its name says so."""
    return f"-{colour}-{shape}-" in f"-{name}"
