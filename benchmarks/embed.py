"""Images per second from files to vectors, beside the ceilings of its parts and a peer.

python -m benchmarks.embed [--images FOLDER | --generate N] [--model DIR | random:clip-vit-b-32]
                           [--peer sentence-transformers] [--seed N]

prints one JSON line. Models are loaded and warmed up before any clock starts.
"""

import argparse
import hashlib
import json
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import polars as pl
from PIL import Image
from platformdirs import user_cache_path

from benchmarks.machine import machine, versions
from benchmarks.models import write_random_clip
from benchmarks.photographs import write_photographs
from embed_pipeline.embedding import Content, Embedded, Work, embed_contents
from embed_pipeline.images.decode import decode
from embed_pipeline.images.preprocess import preprocess
from embed_pipeline.models.card import load_card
from embed_pipeline.models.clip import ClipEncoder, load_encoder
from embed_pipeline.models.hub import model_directory
from embed_pipeline.models.protocol import Pixels
from embed_pipeline.settings import Settings, load_settings
from embed_pipeline.vector_library import VectorLibrary

RANDOM_MODEL = "random:clip-vit-b-32"
SENTENCE_TRANSFORMERS = "sentence-transformers"
CACHE = user_cache_path("embed_pipeline") / "benchmarks"
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}

ENCODER_SECONDS = 10.0
PEER_FILES_OPEN = 256


def main() -> None:
    """Measure and print."""
    arguments = _arguments()
    settings = load_settings()
    files = _files(arguments)
    model = _model(arguments)
    card = load_card(model, CACHE)
    encoder = load_encoder(
        card, model_directory(model), device=settings.device, precision=settings.precision
    )
    end_to_end = images_per_second_end_to_end(files, encoder, settings)
    ceiling = images_per_second_of_encoder(encoder, settings.batch_size)
    report = {
        "images": len(files),
        "megabytes": round(sum(file.stat().st_size for file in files) / 1e6, 1),
        "model": arguments.model,
        "images_per_second": round(end_to_end, 1),
        "encoder_images_per_second": round(ceiling, 1),
        "of_encoder": round(end_to_end / ceiling, 3),
        "decoder_images_per_second_per_core": round(
            images_per_second_of_decoder(files, encoder), 1
        ),
        "precision": encoder.precision,
        "device": str(encoder.model.device),
        "batch_size": settings.batch_size,
        "decode_workers": settings.decode_workers,
    }
    if arguments.peer:
        peer = images_per_second_of_sentence_transformers(files, model)
        report |= {
            "peer": arguments.peer,
            "peer_images_per_second": round(peer, 1),
            "peer_precision": "fp32",
            "times_peer": round(end_to_end / peer, 2),
        }
    print(json.dumps(report | {"machine": machine(), "versions": versions()}))


def images_per_second_end_to_end(
    files: list[Path], encoder: ClipEncoder, settings: Settings
) -> float:
    """Files → bytes → pixels → vectors → a vector library on disk, through the project's own flow."""
    contents = [
        Content(hashlib.sha256(str(file).encode()).digest(), file.name, str(file)) for file in files
    ]
    failures = []
    with tempfile.TemporaryDirectory() as folder:
        library = VectorLibrary(Path(folder), encoder.card.dimension)

        def commit(embedded: Embedded) -> None:
            hashes = pl.Series([content.content_hash for content in embedded.contents])
            library.add(hashes, embedded.vectors)

        work = Work(
            read=lambda content: Path(content.locator).read_bytes(),
            encoder=encoder,
            commit=commit,
            failed=lambda content, error: failures.append((content.image_id, str(error))),
            progress=lambda _more: None,
            batch_size=settings.batch_size,
            workers=settings.decode_workers,
            max_pixels=settings.max_image_pixels,
        )
        embed_contents(contents[: settings.batch_size], work)
        done = embed_contents(contents, work)
    if failures:
        raise SystemExit(f"not embedded: {failures[:3]}")
    return done.embedded / done.seconds


def images_per_second_of_encoder(encoder: ClipEncoder, batch_size: int) -> float:
    """The encoder alone, on batches already in memory."""
    size = encoder.card.preprocessing.size
    shape = (batch_size, size, size, 3)
    pixels: Pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    encoder.encode_images(pixels)
    started, batches = time.perf_counter(), 0
    while (seconds := time.perf_counter() - started) < ENCODER_SECONDS:
        encoder.encode_images(pixels)
        batches += 1
    return batches * batch_size / seconds


def images_per_second_of_decoder(files: list[Path], encoder: ClipEncoder) -> float:
    """Reading, decoding and preprocessing, on one core."""
    wanted = encoder.card.preprocessing

    def prepare_all() -> None:
        for file in files:
            preprocess(decode(file.read_bytes(), target=wanted.size, max_pixels=10**9), wanted)

    return _rate(files, prepare_all)


def images_per_second_of_sentence_transformers(files: list[Path], model: str) -> float:
    """The same files through SentenceTransformer.encode as it comes: fp32, batches of 32."""
    from sentence_transformers import SentenceTransformer

    peer = SentenceTransformer(str(model_directory(model)))

    def encode(some: list[Path]) -> None:
        waiting = iter(some)
        while chunk := list(islice(waiting, PEER_FILES_OPEN)):
            peer.encode([Image.open(file) for file in chunk])

    encode(files[:32])
    return _rate(files, lambda: encode(files))


def _rate(files: list[Path], work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return len(files) / (time.perf_counter() - started)


def _files(arguments: argparse.Namespace) -> list[Path]:
    if arguments.images is None:
        folder = CACHE / f"photographs-{arguments.seed}-{arguments.generate}"
        if folder.is_dir():
            return sorted(folder.iterdir())
        return write_photographs(folder, arguments.generate, arguments.seed)
    files = [file for file in arguments.images.rglob("*") if file.suffix.lower() in SUFFIXES]
    if not files:
        raise SystemExit(f"{arguments.images}: no images")
    return sorted(files)


def _model(arguments: argparse.Namespace) -> str:
    if arguments.model != RANDOM_MODEL:
        return str(arguments.model)
    directory = CACHE / f"clip-vit-b-32-{arguments.seed}"
    if not (directory / "tokenizer.json").exists():  # written last
        write_random_clip(directory, seed=arguments.seed)
    return str(directory)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.embed", description=__doc__)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--images", type=Path, help="folder of images")
    source.add_argument("--generate", type=int, default=512, help="how many photographs to make")
    parser.add_argument("--model", default=RANDOM_MODEL, help="directory, id, or " + RANDOM_MODEL)
    parser.add_argument("--peer", choices=[SENTENCE_TRANSFORMERS], help="measure this one as well")
    parser.add_argument("--seed", type=int, default=0, help="of photographs and random weights")
    return parser.parse_args()


if __name__ == "__main__":
    main()
