"""The card of a model from its directory: no torch, no transformers, no weights loaded."""

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from embed_pipeline.durable import replace_durably
from embed_pipeline.errors import ModelError, NotWritable, OutOfSpace
from embed_pipeline.images.preprocess import Preprocessing
from embed_pipeline.models.hub import model_directory, model_files
from embed_pipeline.models.protocol import ModelCard

BICUBIC = 3  # Pillow's number, the default of both families' processors

# What transformers' configuration classes fill in where config.json is silent.
_CLIP_DIMENSION = 512
_SIGLIP_DIMENSION = 768

# Likewise of the image processors.
_MEAN_AND_STD = {
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "siglip": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}


def load_card(model: str, cache: Path) -> ModelCard:
    """The card of `demo`, of a directory, or of a Hugging Face id.

    cache: a directory of ours that keeps the digests of weights between calls, so that 600 MB are
    read only when a file's size or times changed; it may be lost or damaged. Raises ModelNotFound
    or ModelError as `model_directory` does, and ModelError for a model that is no CLIP or SigLIP of
    fixed square input.
    """
    directory = model_directory(model)
    config = _read(directory / "config.json")
    family = _family(directory, config)
    return ModelCard(
        name=model,
        revision=_revision(directory, cache),
        dimension=_dimension(family, config),
        preprocessing=_preprocessing(directory, family),
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{path}: not readable as JSON ({error}); fetch the model again"
        ) from error
    if not isinstance(content, dict):
        raise ModelError(f"{path}: not a JSON object; fetch the model again")
    return content


def _family(directory: Path, config: Mapping[str, Any]) -> Literal["clip", "siglip"]:
    match config.get("model_type"):
        case "clip":
            return "clip"
        case "siglip":
            return "siglip"
        case other:
            raise ModelError(
                f"{directory}: model_type {other!r} is not supported; supported are clip (CLIP "
                "ViT-B/32, B/16, L/14, …) and siglip (SigLIP, SigLIP2 of fixed size, not NaFlex)"
            )


def _dimension(family: str, config: Mapping[str, Any]) -> int:
    if family == "clip":
        return int(config.get("projection_dim", _CLIP_DIMENSION))
    return int(config.get("vision_config", {}).get("hidden_size", _SIGLIP_DIMENSION))


def _preprocessing(directory: Path, family: Literal["clip", "siglip"]) -> Preprocessing:
    stated = _stated_preprocessing(directory)
    crops = stated.get("do_center_crop", family == "clip")
    size, crop = _side(stated.get("size", 224)), _side(stated.get("crop_size", 224))
    if size is None or (crops and crop != size):
        raise ModelError(
            f"{directory}: its processor resizes to {stated.get('size')} and crops to "
            f"{stated.get('crop_size')}; supported are equal, square sizes only"
        )
    mean, std = _MEAN_AND_STD[family]
    return Preprocessing(
        size=size,
        fit="crop" if crops else "squash",
        resample=int(stated.get("resample", BICUBIC)),
        mean=_channels(stated.get("image_mean", mean)),
        std=_channels(stated.get("image_std", std)),
    )


def _stated_preprocessing(directory: Path) -> dict[str, Any]:
    """The image processor's own file, or its part of the processor's file (transformers 5)."""
    own = directory / "preprocessor_config.json"
    if own.exists():
        return _read(own)
    part = _read(directory / "processor_config.json").get("image_processor", {})
    if not isinstance(part, dict):
        raise ModelError(f"{directory}/processor_config.json: says nothing about images")
    return part


def _side(size: int | Mapping[str, int]) -> int | None:
    """Pixels of {"shortest_edge": n}, {"height": n, "width": n} or n; None if not square."""
    if isinstance(size, int):
        return size
    sides = set(size.values())
    return int(sides.pop()) if len(sides) == 1 else None


def _channels(values: Any) -> tuple[float, float, float]:
    red, green, blue = map(float, values)
    return red, green, blue


def _revision(directory: Path, cache: Path) -> str:
    """The hub's commit hash where the directory is a snapshot of it, else a digest of the files."""
    if directory.parent.name == "snapshots":
        return directory.name
    whole = hashlib.sha256()
    for name, digest in _digests(directory, cache / "model_digests.json").items():
        whole.update(f"{name}\0{digest}\n".encode())
    return whole.hexdigest()[:12]


def _digests(directory: Path, cache: Path) -> dict[str, str]:
    """sha256 of every file that decides a vector, by name; files unchanged since are not read."""
    known = _known_digests(cache)
    found, digests = {}, {}
    for path in model_files(directory.resolve()):
        stat = path.stat()
        key = f"{path}:{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ctime_ns}"
        found[key] = digests[path.name] = known.get(key) or _sha256(path)
    if not found.keys() <= known.keys():
        everything = json.dumps(known | found, indent=1).encode()
        with suppress(OSError, OutOfSpace, NotWritable):  # it only saves time
            replace_durably(cache, lambda temporary: temporary.write_bytes(everything))
    return digests


def _known_digests(cache: Path) -> dict[str, str]:
    try:
        known = json.loads(cache.read_bytes())
        return {key: digest for key, digest in known.items() if isinstance(digest, str)}
    except (OSError, ValueError, AttributeError):
        return {}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
