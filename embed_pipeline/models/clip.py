"""CLIP and SigLIP through transformers: the one implementation of ImageTextEncoder.

Importing this module imports torch and transformers, which takes seconds.
"""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging as transformers_logging

from embed_pipeline.errors import ModelError
from embed_pipeline.models.protocol import (
    LongTextVectors,
    ModelCard,
    Pixels,
    TextVectors,
    Tokens,
    Vectors,
)
from embed_pipeline.models.texts import (
    TEXTS_AT_ONCE,
    TextReader,
    encode_long_texts,
    encode_texts,
)

Device = Literal["auto", "cpu", "cuda", "mps"]
Precision = Literal["auto", "fp32", "bf16"]

# Least cosine between bf16 and fp32 on the probe for bf16 to be used.
LEAST_AGREEMENT = 0.999

_PROBE_TEXTS = ("a photo of a cat", "two red cars on a street at night", "")

_log = logging.getLogger(__name__)


def load_encoder(
    card: ModelCard, directory: Path, *, device: Device = "auto", precision: Precision = "auto"
) -> "ClipEncoder":
    """Load the model in `directory` and try it on a few images and texts.

    precision auto: bf16 where the device computes in it and the probe's vectors agree with those of
    fp32, else fp32. Raises ModelError for weights that are missing, damaged, do not fit the card or
    give vectors that are not finite, and for a device that is not there.
    """
    where = _device(device)
    encoder = _load(card, directory, where)
    exact = _probe(encoder)
    if precision == "fp32" or (precision == "auto" and not _computes_in_bf16(where)):
        return encoder
    encoder.model.to(torch.bfloat16)
    agreement = float((_probe(encoder) * exact).sum(axis=1).min())
    if precision == "bf16" or agreement >= LEAST_AGREEMENT:
        return encoder
    _log.warning("%s: bf16 agrees with fp32 to %.5f only; using fp32", card.name, agreement)
    return _load(card, directory, where)


class ClipEncoder:
    """A loaded model. Not for several threads at once."""

    def __init__(self, card: ModelCard, model: Any, reader: TextReader, pad_id: int) -> None:
        self.card = card
        self.model = model
        self.reader = reader
        self._pad_id = pad_id
        self._is_siglip = model.config.model_type == "siglip"
        mean, std = torch.tensor(card.preprocessing.mean), torch.tensor(card.preprocessing.std)
        self._scale = (1 / (255 * std)).view(3, 1, 1).to(model.device)
        self._shift = (mean / std).view(3, 1, 1).to(model.device)

    @property
    def precision(self) -> str:
        """`fp32` or `bf16`, whichever the weights have."""
        return "bf16" if self.model.dtype == torch.bfloat16 else "fp32"

    @torch.inference_mode()
    def encode_images(self, pixels: Pixels) -> Vectors:
        """(n, size, size, 3) uint8 RGB, preprocessed as the card says → (n, dimension).

        A row for which the model gives no finite vector is all NaN; the other rows are unit norm.
        """
        if not len(pixels):
            return np.empty((0, self.card.dimension), np.float32)
        writable = np.require(pixels, np.uint8, ["C", "W"])
        planes = torch.from_numpy(writable).to(self.model.device).permute(0, 3, 1, 2).contiguous()
        values = planes.float().mul_(self._scale).sub_(self._shift)
        output = self.model.get_image_features(pixel_values=values.to(self.model.dtype))
        return _unit(output.pooler_output)

    def encode_texts(self, texts: Sequence[str]) -> TextVectors:
        """Encode n texts → (n, dimension), in order. Raises ModelError for a vector not finite."""
        return encode_texts(self, texts)

    def encode_long_texts(self, texts: Sequence[str]) -> LongTextVectors:
        """Encode n texts of any length → (n, dimension). Raises ModelError as `encode_texts`."""
        return encode_long_texts(self, texts)

    @torch.inference_mode()
    def encode_tokens(self, texts: Sequence[Tokens]) -> Vectors:
        """Encode n texts → (n, dimension), in order. A row that is not finite is all NaN."""
        vectors = np.empty((len(texts), self.card.dimension), np.float32)
        for start in range(0, len(texts), TEXTS_AT_ONCE):
            part = texts[start : start + TEXTS_AT_ONCE]
            output = self.model.get_text_features(**self._inputs(part))
            vectors[start : start + len(part)] = _unit(output.pooler_output)
        return vectors

    def _inputs(self, texts: Sequence[Tokens]) -> dict[str, torch.Tensor]:
        """What the model takes: padded to the longest, and for SigLIP to the whole context, unmasked."""
        context: int = self.model.config.text_config.max_position_embeddings
        width = context if self._is_siglip else max(len(each.ids) for each in texts)
        ids = torch.full((len(texts), width), self._pad_id)
        mask = torch.zeros((len(texts), width), dtype=torch.long)
        for row, each in enumerate(texts):
            ids[row, : len(each.ids)] = torch.tensor(each.ids)
            mask[row, : len(each.ids)] = 1
        inputs = (
            {"input_ids": ids} if self._is_siglip else {"input_ids": ids, "attention_mask": mask}
        )
        return {name: numbers.to(self.model.device) for name, numbers in inputs.items()}


def _unit(features: torch.Tensor) -> NDArray[np.float32]:
    vectors = features.float()
    vectors = vectors / vectors.norm(dim=1, keepdim=True)
    vectors[~vectors.isfinite().all(dim=1)] = torch.nan
    unit: NDArray[np.float32] = vectors.cpu().numpy()
    return unit


def _device(wanted: Device) -> torch.device:
    there = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if wanted == "auto":
        return torch.device(next(name for name, available in there.items() if available))
    if not there[wanted]:
        raise ModelError(f"EMBED_DEVICE={wanted}: torch finds no such device here; use auto or cpu")
    return torch.device(wanted)


def _computes_in_bf16(device: torch.device) -> bool:
    """Whether bf16 is faster than fp32 there, rather than emulated."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        # older versions of torch do not tell
        features: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
        return any(features.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"))
    return False


def _load(card: ModelCard, directory: Path, device: torch.device) -> ClipEncoder:
    try:
        with _quiet():
            model, report = AutoModel.from_pretrained(
                directory,
                dtype=torch.float32,
                attn_implementation="sdpa",
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
            )
            tokenizer = _tokenizer(directory)
            reader = _reader(tokenizer, model.config)
            pad_id = _pad_id(directory, tokenizer)
    except Exception as error:  # a damaged file surfaces as any of a dozen types
        raise ModelError(f"{directory}: cannot be loaded: {_one_line(error)}") from error
    if report["missing_keys"]:
        some = ", ".join(sorted(report["missing_keys"])[:3])
        raise ModelError(f"{directory}: weights are missing ({some}, …); fetch the model again")
    return ClipEncoder(card, model.eval().to(device), reader, pad_id)


def _tokenizer(directory: Path) -> Tokenizer:
    """The tokenizer as its own file describes it.

    transformers would rebuild it by the name of its class, and wants sentencepiece for SigLIP's.
    """
    if (directory / "tokenizer.json").exists():
        return Tokenizer.from_file(str(directory / "tokenizer.json"))
    named = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    tokenizer: Tokenizer = named.backend_tokenizer
    return tokenizer


def _reader(tokenizer: Tokenizer, config: Any) -> TextReader:
    context = config.text_config.max_position_embeddings
    lower_case = config.model_type == "siglip"  # it was trained so
    return TextReader(tokenizer, context, lower_case=lower_case)


def _pad_id(directory: Path, tokenizer: Tokenizer) -> int:
    """Number of the padding token. SigLIP sees it; CLIP masks it."""
    try:
        token = json.loads((directory / "tokenizer_config.json").read_bytes())["pad_token"]
    except (OSError, LookupError):
        return 0
    return tokenizer.token_to_id(token["content"] if isinstance(token, dict) else str(token)) or 0


def _probe(encoder: ClipEncoder) -> Vectors:
    """Vectors of a few generated images and texts. Raises ModelError unless all are sound."""
    size, name = encoder.card.preprocessing.size, encoder.card.name
    images = np.stack([_checkered(cells, size) for cells in (2, 5, 16, size)])
    try:
        of_images = encoder.encode_images(images)
        of_texts = encoder.encode_texts(_PROBE_TEXTS).vectors
    except (RuntimeError, ValueError, IndexError) as error:
        raise ModelError(f"{name}: does not run: {_one_line(error)}") from error
    vectors = np.concatenate([of_images, of_texts])
    if vectors.shape[1] != encoder.card.dimension:
        raise ModelError(
            f"{name}: gives {vectors.shape[1]} numbers, not the {encoder.card.dimension} of its card"
        )
    if not np.isfinite(vectors).all():
        raise ModelError(f"{name}: gives no finite vectors: damaged weights; fetch the model again")
    return vectors


def _checkered(cells: int, size: int) -> Pixels:
    """Random colours in cells x cells, the same every time."""
    colours = np.random.default_rng(cells).integers(0, 256, (cells, cells, 3), np.uint8)
    cell = np.arange(size) * cells // size
    return colours[cell][:, cell]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars or advice of transformers: they belong to nobody's output."""
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
