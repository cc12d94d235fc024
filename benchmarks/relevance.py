"""How well searches find what they should, with the demo model on scenes that it never saw.

python -m benchmarks.relevance [--scenes 1000]

prints one JSON line. composed: a reference image and a colour ("like this, but red"), the share of
queries with a right image among the first 5; `max_raw` is what the highest raw cosine of both gives.
negative: the share of queries ("a star", not "red") where nothing that was named is among the first 10.
confidence: the area under the ROC curve of the best hit's confidence, prompts that have a match against
those that have none: near misses (colours and shapes are there, but not together), and unrelated prompts.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import polars as pl
from sklearn.metrics import roc_auc_score

from benchmarks.machine import machine, versions
from embed_pipeline.deployment import Deployment
from embed_pipeline.models.demo.scenes import (
    COLOURS,
    PAIRS,
    SEEN_PAIRS,
    SHAPES,
    Pair,
    Scene,
    make_scene,
    render,
)
from embed_pipeline.project_run import ProjectRun
from embed_pipeline.search.parts import parts_of
from embed_pipeline.search.query import Hit, Query
from embed_pipeline.search.searcher import Searcher
from embed_pipeline.search.view import view_of
from embed_pipeline.settings import Settings
from embed_pipeline.sync import sync

SIDE = 128  # pixels, twice the demo model's input
REFERENCES = 200
SEED = 901  # training draws from [its seed, step], and the shipped model's seed is 0
UNRELATED = (
    "a photo of a dog",
    "an invoice from a hotel",
    "people dancing in the street",
    "a helicopter",
    "the view from a train window",
    "a pair of shoes",
    "cheese on a wooden table",
    "a lecture hall",
    "an old telephone",
    "a wolf in the snow",
    "two men shaking hands",
    "a broken window",
    "a map of Norway",
    "strawberries",
    "a dark forest",
    "a screwdriver",
)


@dataclass(frozen=True)
class Figures:
    """Shares of queries, and areas under ROC curves, all 0..1."""

    composed: float
    composed_max_raw: float
    negative: float
    negative_left_out: float
    confidence_near_misses: float
    confidence_unrelated: float


class Scenes:
    """Two projects of scenes: `all` shows every pair of colour and shape, `half` half of them."""

    def __init__(self, folder: Path, count: int) -> None:
        self._lots = np.random.default_rng(SEED)
        order = self._lots.permutation(len(PAIRS))
        self.half = [PAIRS[i] for i in order[: len(PAIRS) // 2]]
        self.shown = {
            (project, image_id): pairs
            for project, chosen in (("all", SEEN_PAIRS), ("half", self.half))
            for image_id, pairs in self._write(folder / "root" / project, chosen, count)
        }
        settings = Settings(
            source=f"folder:{folder / 'root'}",
            EMBED_MODEL="demo",  # type: ignore[call-arg]  # by the name of its variable
            home=folder / "home",
        )
        self.deployment = Deployment(settings)
        for project in ("all", "half"):
            sync(ProjectRun(self.deployment, project, "benchmark"))
        self.searcher = Searcher(self.deployment)

    def search(self, project: str, query: Query) -> list[set[Pair]]:
        """What the hits show, best first."""
        hits = self.searcher.search(project, query).hits
        return [self.shown[project, hit.image_id] for hit in hits]

    def best(self, project: str, text: str) -> Hit:
        """The best hit of a text."""
        return self.searcher.search(project, Query(texts=[text], limit=1)).hits[0]

    def reference(self) -> Scene:
        """A scene with one thing in it, in no project."""
        return make_scene(self._lots, SEEN_PAIRS, most=1)

    def _write(
        self, folder: Path, pairs: Sequence[Pair], count: int
    ) -> list[tuple[str, set[Pair]]]:
        folder.mkdir(parents=True)
        shown = []
        for number in range(count):
            scene = make_scene(self._lots, pairs)
            (folder / f"{number:04}.png").write_bytes(picture_of(scene))
            shown.append(
                (f"{number:04}.png", {(each.colour, each.shape) for each in scene.objects})
            )
        return shown


def picture_of(scene: Scene) -> bytes:
    """A PNG file."""
    render(scene, SIDE, SIDE).save(buffer := BytesIO(), "PNG", compress_level=1)
    return buffer.getvalue()


def measure(scenes: Scenes, references: int = REFERENCES) -> Figures:
    """All figures, with so many reference images."""
    composed, max_raw = _composed(scenes, references)
    without_colour, without_pair = _negative(scenes)
    near, unrelated = _confidence(scenes)
    return Figures(
        composed=composed,
        composed_max_raw=max_raw,
        negative=without_colour,
        negative_left_out=without_pair,
        confidence_near_misses=near,
        confidence_unrelated=unrelated,
    )


def _composed(scenes: Scenes, references: int) -> tuple[float, float]:
    ours, raw = [], []
    for number in range(references):
        reference = scenes.reference()
        thing = reference.objects[0]
        colours = [c for c in COLOURS if c != thing.colour and (c, thing.shape) in SEEN_PAIRS]
        colour = colours[number % len(colours)]
        query = Query(texts=[colour], like=[picture_of(reference)], limit=5)
        right = (colour, thing.shape)
        ours.append(any(right in shown for shown in scenes.search("all", query)))
        raw.append(any(right in shown for shown in _max_raw(scenes, query)))
    return float(np.mean(ours)), float(np.mean(raw))


def _max_raw(scenes: Scenes, query: Query) -> list[set[Pair]]:
    """What taking the highest raw cosine of the parts finds."""
    view = view_of(scenes.deployment, "all")
    parts = parts_of(view, query).wanted
    found = pl.concat([view.collection.nearest(part.vector, query.limit) for part in parts])
    best = found.group_by("image_id").agg(pl.col("score").max())
    ids = best.sort("score", "image_id", descending=[True, False]).head(query.limit)["image_id"]
    return [scenes.shown["all", image_id] for image_id in ids]


def _negative(scenes: Scenes) -> tuple[float, float]:
    colours, pairs = [], []
    for colour, shape in SEEN_PAIRS:
        found = scenes.search("all", Query(texts=[f"a {shape}"], not_texts=[colour]))
        colours.append(not any(colour in {c for c, _ in shown} for shown in found))
        found = scenes.search("all", Query(texts=[f"a {shape}"], not_texts=[f"a {colour} {shape}"]))
        pairs.append(not any((colour, shape) in shown for shown in found))
    return float(np.mean(colours)), float(np.mean(pairs))


def _confidence(scenes: Scenes) -> tuple[float, float]:
    def sure(text: str) -> float:
        return scenes.best("half", text).confidence

    there = [sure(f"a {colour} {shape}") for colour, shape in scenes.half]
    near = [sure(f"a {colour} {shape}") for colour, shape in set(PAIRS) - set(scenes.half)]
    unrelated = [sure(text) for text in UNRELATED]
    return _auc(there, near), _auc(there, unrelated)


def _auc(right: Sequence[float], wrong: Sequence[float]) -> float:
    return float(roc_auc_score([1] * len(right) + [0] * len(wrong), [*right, *wrong]))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.relevance", description=__doc__)
    parser.add_argument("--scenes", type=int, default=1000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Scenes(Path(folder), arguments.scenes))
    report = {name: round(value, 3) for name, value in asdict(figures).items()}
    about = {"scenes": arguments.scenes, "shapes": len(SHAPES), "colours": len(COLOURS)}
    print(json.dumps(report | about | {"machine": machine(), "versions": versions()}))


if __name__ == "__main__":
    main()
