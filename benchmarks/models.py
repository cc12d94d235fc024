"""Standard models with random weights: as fast as trained ones, and there without a network."""

from pathlib import Path
from typing import Any

import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer


def write_random_clip(directory: Path, config: CLIPConfig | None = None, seed: int = 0) -> Path:
    """Write a CLIP in the Hugging Face layout, fp32: ViT-B/32 (605 MB) unless `config` says else.

    Its tokenizer knows the 256 bytes and no merges. The same seed gives the same weights.
    """
    config = config or CLIPConfig()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        CLIPModel(config).save_pretrained(directory)
    vision: Any = config.vision_config  # transformers types it as a union with dict
    side = vision.image_size
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}
    )
    processor.save_pretrained(directory)
    byte_tokenizer(config).save_pretrained(directory)
    return directory


def byte_tokenizer(config: CLIPConfig) -> CLIPTokenizer:
    """CLIP's tokenizer over the 256 bytes, within the model's vocabulary and context."""
    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters)]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    text: Any = config.text_config
    vocabulary["<|startoftext|>"] = text.bos_token_id
    vocabulary["<|endoftext|>"] = text.eos_token_id
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=text.max_position_embeddings)
