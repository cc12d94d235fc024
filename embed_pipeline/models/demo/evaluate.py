"""Measure a model on scenes it has never seen: `python -m embed_pipeline.models.demo.evaluate`."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

from embed_pipeline.models.demo.scenes import (
    HELD_OUT_PAIRS,
    PAIRS,
    SEEN_PAIRS,
    Pair,
    Scene,
    describe,
    make_scene,
    render,
)

MODEL_DIR = Path(__file__).parent / "model"
SCENES = 1000
SIDE = 256  # pixels: as a picture from a camera, larger than what the model sees
TOP = 10
SEED = 1_000_000  # far from the seeds of training


class Encoder:
    """A CLIP from a folder in the Hugging Face layout. Vectors: float32 (n, dim), of length 1."""

    def __init__(self, folder: Path) -> None:
        self.model = CLIPModel.from_pretrained(folder).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.processor = CLIPImageProcessor.from_pretrained(folder)

    @torch.inference_mode()
    def scenes(self, scenes: Sequence[Scene]) -> Tensor:
        vectors = []
        for start in range(0, len(scenes), 100):
            images = [render(scene, SIDE, SIDE) for scene in scenes[start : start + 100]]
            pixels = self.processor(images, return_tensors="pt")
            vectors.append(self.model.get_image_features(**pixels).pooler_output)
        return normalize(torch.cat(vectors))

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> Tensor:
        tokens = self.tokenizer(list(texts), padding=True, return_tensors="pt")
        return normalize(self.model.get_text_features(**tokens).pooler_output)


def precision(encoder: Encoder, scenes: Sequence[Scene], pairs: Sequence[Pair]) -> float:
    """Precision@10 averaged over the queries "a COLOUR SHAPE" that ten scenes or more answer."""
    shown = [{(item.colour, item.shape) for item in scene.objects} for scene in scenes]
    truth = torch.tensor([[pair in pairs_shown for pairs_shown in shown] for pair in pairs])
    asked = truth.sum(dim=1) >= TOP
    queries = encoder.texts([f"a {colour} {shape}" for colour, shape in pairs])
    hits = (queries @ encoder.scenes(scenes).T).topk(TOP).indices
    return float(truth.gather(1, hits)[asked].float().mean())


def recall(encoder: Encoder, scenes: Sequence[Scene], captions: Sequence[str]) -> float:
    """Share of captions that find their own scene among the first ten."""
    hits = (encoder.texts(captions) @ encoder.scenes(scenes).T).topk(TOP).indices
    return float((hits == torch.arange(len(scenes))[:, None]).any(dim=1).float().mean())


@dataclass(frozen=True)
class Figures:
    precision_at_10: float
    caption_recall_at_10: float
    held_out_precision_at_10: float
    ...


def measure(folder: Path):
    encoder = Encoder(folder)
    rng = np.random.default_rng(SEED)
    scenes = [make_scene(rng) for _ in range(SCENES)]
    mixed = [make_scene(rng, PAIRS) for _ in range(SCENES)]
    return dict(
        p=precision(encoder, scenes, SEEN_PAIRS),
        r=recall(encoder, scenes, [describe(scene, rng) for scene in scenes]),
        held=precision(encoder, mixed, HELD_OUT_PAIRS),
        mixed=precision(encoder, mixed, PAIRS),
    )

if __name__ == "__main__":
    import sys
    print(measure(Path(sys.argv[1])))
