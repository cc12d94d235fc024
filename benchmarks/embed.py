"""Images per second from files to vectors, beside the ceilings of its parts and a peer.

python -m benchmarks.embed [--images FOLDER | --generate N] [--model DIR | random:clip-vit-b-32]
                           [--peer sentence-transformers] [--seed N]

prints one JSON line. Models are loaded and warmed up before any clock starts. A FOLDER is taken for a
project; copies of a picture count once.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image
from platformdirs import user_cache_path

from benchmarks.machine import machine, versions
from benchmarks.models import write_random_clip
from benchmarks.photographs import write_photographs
from embed_pipeline.deployment import Deployment
from embed_pipeline.images.decode import decode
from embed_pipeline.images.preprocess import preprocess
from embed_pipeline.models.clip import ClipEncoder
from embed_pipeline.models.hub import model_directory
from embed_pipeline.models.protocol import Pixels
from embed_pipeline.project_run import ProjectRun
from embed_pipeline.settings import load_settings
from embed_pipeline.sync import diff, embed, scan

RANDOM_MODEL = "random:clip-vit-b-32"
SENTENCE_TRANSFORMERS = "sentence-transformers"
CACHE = user_cache_path("embed_pipeline") / "benchmarks"

ENCODER_SECONDS = 10.0
PEER_FILES_OPEN = 256


def main() -> None:
    """Measure and print."""
    arguments = _arguments()
    folder, model = _images(arguments), _model(arguments)
    with tempfile.TemporaryDirectory() as home:
        chosen = {
            "home": Path(home),
            "source": f"folder:{folder.parent}",
            "model_name": model,
            "qdrant_url": None,
        }
        deployment = Deployment(load_settings().model_copy(update=chosen))
        files = [
            Path(deployment.source.where(folder.name, row)) for row in _listed(deployment, folder)
        ]
        encoder = deployment.encoder(deployment.card)
        assert isinstance(encoder, ClipEncoder)
        settings = deployment.settings
        ceiling = images_per_second_of_encoder(encoder, settings.batch_size)
        end_to_end = images_per_second_end_to_end(deployment, folder.name)
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


def images_per_second_end_to_end(deployment: Deployment, project: str) -> float:
    """The step `embed` as a sync runs it: files to library parts and points in the embedded store."""
    done = embed(ProjectRun(deployment, project, "benchmark"))
    return done.embedded / done.seconds


def _listed(deployment: Deployment, folder: Path) -> list[str]:
    """List and compare, as a sync does before it embeds; the contents that it will embed."""
    run = ProjectRun(deployment, folder.name, "benchmark")
    scan(run)
    return diff(run).actions.filter(action="embed")["image_id"].to_list()


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


def _images(arguments: argparse.Namespace) -> Path:
    if arguments.images is not None:
        return Path(arguments.images).absolute()
    folder = CACHE / "photographs" / f"{arguments.generate}-of-seed-{arguments.seed}"
    if not folder.is_dir():
        write_photographs(folder, arguments.generate, arguments.seed)
    return folder


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
