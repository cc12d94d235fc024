"""Train the demo model: `python -m embed_pipeline.models.demo.train [--out DIR] [--steps N] [--seed N]`.

Every step draws new scenes and learns two things from them: which caption belongs to which scene,
and which scenes show what a short mention ("a red circle") asks for; the scenes themselves tell the
truth. The second teaches the model to bind a colour to its shape.

The same seed, steps, kind of processor and versions of the libraries give the same weights.
"""

import argparse
import copy
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import cos, log, pi
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from torch import Tensor
from torch.nn.functional import normalize, softplus
from torch.nn.utils import clip_grad_norm_
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

from embed_pipeline.models.demo.scenes import (
    Scene,
    describe,
    in_words,
    make_scene,
    mention,
    render,
)

MODEL_DIR = Path(__file__).parent / "model"
STEPS = 4000
BATCH = 128  # scenes per step
ALONE = 500  # steps of scenes with one object: shapes are learnt much sooner when alone
WARMUP = 200  # steps
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 0.05
SIDE = 64  # pixels
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's
CONTEXT = 64  # tokens; the longest captions take about 55
VOCABULARY = 1024  # tokens at most; the captions' words need fewer
THREADS = 2  # another number adds up in another order: other weights
LOG_EVERY = 50  # steps
SAVE_EVERY = 500

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Batch:
    """As many captions and mentions as scenes; caption i describes scene i.

    pixels: float32 (scenes, 3, SIDE, SIDE), normalised as CLIP does. truth: bool (mentions, scenes).
    """

    pixels: Tensor
    captions: list[str]
    mentions: list[str]
    truth: Tensor


def make_batch(rng: np.random.Generator, most: int) -> Batch:
    """New scenes of one to `most` objects, and what is said of them."""
    scenes = [make_scene(rng, most=most) for _ in range(BATCH)]
    said = [mention(scene.objects[rng.integers(len(scene.objects))], rng) for scene in scenes]
    images = np.stack([np.asarray(render(scene, SIDE, SIDE)) for scene in scenes])
    pixels = (images / 255 - MEAN) / STD
    return Batch(
        pixels=torch.from_numpy(pixels).float().permute(0, 3, 1, 2),
        captions=[describe(scene, rng) for scene in scenes],
        mentions=[in_words(one, rng) for one in said],
        truth=_truth(said, scenes),
    )


def _truth(said: Sequence[Mapping[str, str]], scenes: Sequence[Scene]) -> Tensor:
    items = [item for scene in scenes for item in scene.objects]
    fits = np.ones((len(said), len(items)), dtype=bool)
    for field in ("colour", "shape", "size", "texture", "place"):
        wanted = np.array([one.get(field, "") for one in said])[:, None]
        fits &= (wanted == "") | (wanted == np.array([getattr(item, field) for item in items]))
    starts = np.cumsum([0, *(len(scene.objects) for scene in scenes[:-1])])
    return torch.from_numpy(np.logical_or.reduceat(fits, starts, axis=1))


def make_tokenizer(rng: np.random.Generator) -> CLIPTokenizer:
    """CLIP's tokenizer with a vocabulary learnt from captions; other text falls to its bytes."""
    alphabet = sorted(ByteLevel.alphabet())
    blank = CLIPTokenizer()
    # Every byte gets a token, also at the end of a word: an unknown one would become the end token,
    # where CLIP pools. Named here, they also get the same numbers each time.
    endings = [f"{byte}</w>" for byte in alphabet]
    trainer = BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[str(blank.bos_token), str(blank.eos_token), *endings],
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    captions = (describe(make_scene(rng), rng) for _ in range(5000))
    blank.backend_tokenizer.train_from_iterator(captions, trainer)
    learnt = json.loads(blank.backend_tokenizer.to_str())["model"]
    merges: Any = [tuple(merge) for merge in learnt["merges"]]
    return CLIPTokenizer(vocab=learnt["vocab"], merges=merges, model_max_length=CONTEXT)


def make_model(tokenizer: CLIPTokenizer) -> CLIPModel:
    """Three million parameters, two thirds of them for pictures; vectors of 256 numbers."""
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "max_position_embeddings": CONTEXT,
        "hidden_act": "gelu",
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {
        "hidden_size": 192,
        "intermediate_size": 768,
        "num_hidden_layers": 5,
        "num_attention_heads": 3,
        "image_size": SIDE,
        "patch_size": 8,
        "hidden_act": "gelu",
    }
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=256)
    model = CLIPModel(config)
    model.set_attn_implementation("eager")  # on a CPU its backward pass takes half as long
    return model


def contrast(scores: Tensor, truth: Tensor) -> Tensor:
    """How far wrong answers come before a right one: the mean over all right ones of a scalar >= 0.

    scores: float (questions, answers). truth: bool, the same shape; rows without a right answer
    do not count.
    """
    wrong = scores.masked_fill(truth, -torch.inf).logsumexp(dim=1, keepdim=True)
    return softplus(wrong - scores)[truth].mean()


def batch_loss(model: CLIPModel, tokenizer: CLIPTokenizer, batch: Batch) -> Tensor:
    """The mean of four contrasts: captions and mentions, each with scenes, either way. A scalar."""
    with torch.autocast("cpu", torch.bfloat16):
        images = model.get_image_features(pixel_values=batch.pixels).pooler_output
        captions, mentions = (
            model.get_text_features(**tokenizer(texts, padding=True, return_tensors="pt"))
            for texts in (batch.captions, batch.mentions)
        )
    own = torch.eye(len(images), dtype=torch.bool)
    directions = []
    for texts, truth in ((captions, own), (mentions, batch.truth)):
        cosines = normalize(texts.pooler_output.float()) @ normalize(images.float()).T
        scores = model.logit_scale.exp() * cosines
        directions += [contrast(scores, truth), contrast(scores.T, truth.T)]
    return torch.stack(directions).mean()


def train(steps: int, seed: int, out: Path) -> None:
    """Train for so many steps and write the model to `out`, also now and then on the way."""
    torch.manual_seed(seed)
    tokenizer = make_tokenizer(np.random.default_rng([seed, 0]))
    model = make_model(tokenizer)
    optimiser = AdamW(
        model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=WEIGHT_DECAY
    )
    schedule = LambdaLR(
        optimiser, lambda step: min((step + 1) / WARMUP, (1 + cos(pi * step / steps)) / 2)
    )
    for step in range(1, steps + 1):
        batch = make_batch(np.random.default_rng([seed, step]), most=1 if step <= ALONE else 4)
        loss = batch_loss(model, tokenizer, batch)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        model.logit_scale.data.clamp_(max=log(100))  # as CLIP: larger would be unstable
        if step % LOG_EVERY == 0:
            logger.info("step %d of %d, loss %.3f", step, steps, loss.item())
        if step % SAVE_EVERY == 0 or step == steps:
            save(model, tokenizer, out)


def save(model: CLIPModel, tokenizer: CLIPTokenizer, out: Path) -> None:
    """Write the ordinary Hugging Face layout: weights stored in half precision, used in single."""
    half = copy.deepcopy(model).half()  # type: ignore[no-untyped-call]
    half.save_pretrained(out)
    half.config.dtype = "float32"
    half.config.save_pretrained(out)
    tokenizer.save_pretrained(out)
    square = {"height": SIDE, "width": SIDE}
    processor = CLIPImageProcessor(
        size={"shortest_edge": SIDE}, crop_size=square, image_mean=MEAN, image_std=STD
    )
    processor.save_pretrained(out)


def main() -> None:
    """Train the shipped model, or another beside it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=MODEL_DIR)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(THREADS)
    train(options.steps, options.seed, options.out)


if __name__ == "__main__":
    main()
