"""Models: cards without loading anything, and encoders that agree with transformers."""

import io
import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from huggingface_hub import HfApi
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoProcessor,
    AutoTokenizer,
    CLIPConfig,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
)

from benchmarks.models import byte_tokenizer, write_random_clip
from benchmarks.photographs import photograph
from embed_pipeline.errors import ModelError, ModelNotFound
from embed_pipeline.images.decode import decode
from embed_pipeline.images.preprocess import preprocess
from embed_pipeline.models import clip, hub
from embed_pipeline.models.card import load_card
from embed_pipeline.models.clip import ClipEncoder, Precision, load_encoder
from embed_pipeline.models.protocol import ModelCard, Vectors

SHARED = Path(__file__).parents[2] / "shared" / "data"
PHOTOGRAPHS = 100

TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 600,
    "max_position_embeddings": 16,
    "bos_token_id": 598,
    "eos_token_id": 599,
    "pad_token_id": 599,
}
VISION = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "image_size": 32,
    "patch_size": 8,
}
SMALL = CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=24)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where digests are kept between cards."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP directory of a few hundred kilobytes."""
    return write_random_clip(tmp_path_factory.mktemp("small"), SMALL)


@pytest.fixture
def copy(small: Path, tmp_path: Path) -> Path:
    """The small CLIP, to be damaged."""
    return shutil.copytree(small, tmp_path / "copy")


@pytest.fixture(scope="module")
def vit_b_32(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A standard CLIP ViT-B/32 directory with random weights; 605 MB, removed afterwards."""
    directory = write_random_clip(tmp_path_factory.mktemp("vit-b-32"))
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(scope="module")
def photographs() -> list[Path]:
    """Photographs of the shared test data."""
    folder = SHARED / "photos160"
    if not folder.is_dir():
        pytest.skip("no ../shared/data/photos160 beside this checkout")
    return sorted(folder.glob("*.JPEG"))[:PHOTOGRAPHS]


def opened(directory: Path, cache: Path, precision: Precision = "auto") -> ClipEncoder:
    """The encoder of a directory, on the CPU."""
    card = load_card(str(directory), cache)
    return load_encoder(card, directory, device="cpu", precision=precision)


def encoded(encoder: ClipEncoder, files: list[bytes]) -> Vectors:
    """Images through the project's own decoding, preprocessing and model."""
    wanted = encoder.card.preprocessing
    images = (decode(file, target=wanted.size, max_pixels=10**8) for file in files)
    pixels = np.stack([preprocess(image, wanted) for image in images])
    return np.concatenate([encoder.encode_images(part) for part in np.array_split(pixels, 4)])


def encoded_by_transformers(directory: Path, files: list[Path]) -> Vectors:
    """Files through transformers' processor and model, in fp32."""
    processor, model = (
        AutoProcessor.from_pretrained(directory),
        AutoModel.from_pretrained(directory),
    )
    parts = []
    for chunk in np.array_split(np.array(files), 4):
        pixels = processor(images=[Image.open(file) for file in chunk], return_tensors="pt")
        with torch.inference_mode():
            parts.append(model.get_image_features(**pixels).pooler_output.numpy())
    return unit(np.concatenate(parts))


def unit(vectors: Vectors) -> Vectors:
    """Vectors of length one."""
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def cosines(ours: Vectors, theirs: Vectors, *, centred: bool = False) -> Vectors:
    """Cosine of each pair; centred: after subtracting the mean vector of `theirs`."""
    mean = theirs.mean(axis=0) if centred else 0
    return (unit(ours - mean) * unit(theirs - mean)).sum(axis=1)


def test_vectors_agree_with_transformers(
    vit_b_32: Path, photographs: list[Path], cache: Path
) -> None:
    """On photographs, ViT-B/32 gives the vectors of transformers' own processor and model."""
    ours = encoded(opened(vit_b_32, cache), [path.read_bytes() for path in photographs])
    theirs = encoded_by_transformers(vit_b_32, photographs)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1, atol=1e-5)
    plain, centred = cosines(ours, theirs), cosines(ours, theirs, centred=True)
    assert plain.min() >= 0.998
    assert plain.mean() >= 0.9995
    assert centred.min() >= 0.9
    assert centred.mean() >= 0.99


def turned(photo: Image.Image, orientation: int) -> bytes:
    """A JPEG of the photograph as a camera held that way would store it."""
    turn = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }.get(orientation)
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    (photo if turn is None else photo.transpose(turn)).save(file, "JPEG", quality=95, exif=exif)
    return file.getvalue()


@pytest.mark.parametrize("size", [(500, 375), (2003, 1501)])
def test_the_eight_orientations_give_one_vector(
    size: tuple[int, int], small: Path, cache: Path
) -> None:
    """A photograph in any EXIF orientation has the vector of the upright one."""
    demo = Path(hub.__file__).parent / "demo" / "model"
    encoder = opened(demo if (demo / "model.safetensors").exists() else small, cache)
    photo = photograph(np.random.default_rng(0)).resize(size)
    vectors = encoded(encoder, [turned(photo, orientation) for orientation in range(1, 9)])
    assert (vectors @ vectors.T).min() >= 0.999


def test_texts_agree_with_transformers_and_say_what_was_cut(small: Path, cache: Path) -> None:
    """Texts have transformers' vectors; the ones too long for the model are reported."""
    texts = ["a red circle", "", "x" * 14, "x" * 15, "Ünï🙂"]
    ours = opened(small, cache, "fp32").encode_texts(texts)
    assert ours.truncated == [False, False, False, True, False]
    tokens = AutoTokenizer.from_pretrained(small)(
        texts, padding=True, truncation=True, return_tensors="pt"
    )
    with torch.inference_mode():
        theirs = AutoModel.from_pretrained(small).get_text_features(**tokens).pooler_output
    assert cosines(ours.vectors, theirs.numpy()).min() > 0.99999
    assert opened(small, cache).encode_texts([]).vectors.shape == (0, 24)


def test_siglip_loads_through_the_same_path(tmp_path: Path, cache: Path) -> None:
    """SigLIP is squashed, not cropped, padded to its context, and agrees with transformers."""
    config = SiglipConfig(text_config=TEXT | {"projection_size": 48}, vision_config=VISION)
    SiglipModel(config).save_pretrained(tmp_path)
    SiglipImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    byte_tokenizer(SMALL).save_pretrained(tmp_path)
    encoder = opened(tmp_path, cache, "fp32")
    assert encoder.card.preprocessing.fit == "squash"
    assert encoder.card.dimension == 48
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 90, 3), np.uint8))
    theirs = SiglipImageProcessorPil.from_pretrained(tmp_path)(picture, return_tensors="pt")
    tokens = AutoTokenizer.from_pretrained(tmp_path)(
        ["a cat"], padding="max_length", max_length=16, return_tensors="pt"
    )
    model = AutoModel.from_pretrained(tmp_path)
    with torch.inference_mode():
        image = model.get_image_features(**theirs).pooler_output.numpy()
        text = model.get_text_features(tokens["input_ids"]).pooler_output.numpy()
    ours = encoder.encode_images(preprocess(picture, encoder.card.preprocessing)[None])
    assert cosines(ours, image).min() > 0.9999
    assert cosines(encoder.encode_texts(["A Cat"]).vectors, text).min() > 0.9999


def test_bf16_is_used_only_where_it_agrees(
    small: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """bf16 is close to fp32, can be forced either way, and is dropped if the probe disagrees."""
    monkeypatch.setattr(clip, "_computes_in_bf16", lambda _device: True)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)
    exact, half = opened(small, cache, "fp32"), opened(small, cache)
    assert (exact.precision, half.precision) == ("fp32", "bf16")
    assert cosines(half.encode_images(pixels), exact.encode_images(pixels)).min() >= 0.999
    monkeypatch.setattr(clip, "LEAST_AGREEMENT", 1.1)
    assert opened(small, cache).precision == "fp32"
    assert opened(small, cache, "bf16").precision == "bf16"


def test_a_vector_is_never_partly_nan(small: Path, cache: Path) -> None:
    """An image without a finite vector gets a row of NaN, its neighbours keep theirs."""
    features = torch.tensor([[3.0, 4.0], [torch.inf, 1.0], [0.0, 0.0], [torch.nan, 1.0]])
    vectors = clip._unit(features)
    np.testing.assert_allclose(vectors[0], [0.6, 0.8])
    assert np.isnan(vectors[1:]).all()
    assert opened(small, cache).encode_images(np.empty((0, 32, 32, 3), np.uint8)).shape == (0, 24)


@pytest.mark.parametrize("damage", ["nan", "missing", "cut", "absent", "pickled", "naflex", "crop"])
def test_unfit_models_are_refused_with_a_reason(damage: str, copy: Path, cache: Path) -> None:
    """Damaged, missing or pickled weights, and models of other kinds, never give vectors."""
    weights = copy / "model.safetensors"
    tensors = load_file(weights)
    said = damage
    match damage:
        case "nan":
            tensors["visual_projection.weight"][0, 0] = torch.nan
            save_file(tensors, weights)
            said = "no finite vectors"
        case "missing":
            del tensors["visual_projection.weight"]
            save_file(tensors, weights)
            said = "weights are missing"
        case "cut":
            weights.write_bytes(weights.read_bytes()[:-1000])
            said = "cannot be loaded"
        case "absent":
            weights.unlink()
            said = "lacks model.safetensors"
        case "pickled":
            weights.rename(copy / "pytorch_model.bin")
            said = "pickled weights"
        case "naflex":
            (copy / "config.json").write_text('{"model_type": "siglip2"}')
            said = "not NaFlex"
        case "crop":
            settings = json.loads((copy / "preprocessor_config.json").read_text())
            settings["size"] = {"shortest_edge": 64}
            (copy / "preprocessor_config.json").write_text(json.dumps(settings))
            said = "crops to"
    with pytest.raises(ModelError, match=said) as raised:
        opened(copy, cache)
    assert "\n" not in str(raised.value)


def test_a_card_costs_no_torch_and_weights_are_hashed_once(small: Path, tmp_path: Path) -> None:
    """A card is known without torch; its weights are read again only when they changed."""
    code = (
        "import sys; from pathlib import Path; from embed_pipeline.models.card import load_card;"
        f"load_card({str(small)!r}, Path({str(tmp_path)!r}));"
        "assert not {'torch', 'transformers', 'huggingface_hub'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    digests = tmp_path / "model_digests.json"
    invented = dict.fromkeys(json.loads(digests.read_text()), "0" * 64)
    first = load_card(str(small), tmp_path)
    digests.write_text(json.dumps(invented))
    assert load_card(str(small), tmp_path).revision != first.revision
    digests.write_text("damaged {")
    assert load_card(str(small), tmp_path) == first


def test_the_space_follows_the_weights(small: Path, copy: Path, cache: Path) -> None:
    """The same files elsewhere are the same revision; other weights or tokens are another."""

    def revision(directory: Path) -> str:
        return load_card(str(directory), cache).revision

    before = revision(small)
    assert revision(copy) == before
    (copy / "README.md").write_text("notes")
    assert revision(copy) == before
    (copy / "tokenizer_config.json").write_text("{}")
    assert revision(copy) != before


def test_a_model_that_is_nowhere_is_found_out_soon(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With no network an error comes soon that names the model and every way to provide it."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        monkeypatch.setattr(hub, "_HUB_TIMEOUT_SECONDS", 0.5)
        started = time.monotonic()
        with pytest.raises(ModelNotFound) as raised:
            load_card("nobody/nothing", cache)
        assert time.monotonic() - started < 10
    for word in ("nobody/nothing", "EMBED_MODEL=/", "hf download", "HF_HOME", "HF_HUB_OFFLINE"):
        assert word in str(raised.value)
    with pytest.raises(ModelNotFound, match="no such directory"):
        load_card("/nowhere/at/all", cache)


def test_the_hub_cache_is_used_before_the_hub(
    small: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole snapshot in the local cache is the model, its commit the revision."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    snapshots = tmp_path / "models--owner--name" / "snapshots"
    shutil.copytree(small, snapshots / "aaaa")
    (snapshots / "aaaa" / "model.safetensors").unlink()
    shutil.copytree(small, snapshots / "bbbb")
    card = load_card("owner/name", cache)
    assert isinstance(card, ModelCard)
    assert card.revision == "bbbb"
    assert card.space == "name-bbbb-p1-original"


def test_pickled_repositories_are_taken_from_the_hubs_conversion(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where `main` has only .bin, the conversion by the hub's own bot is used, or nothing."""

    def model_info(_: HfApi, _model: str, revision: str = "main", **__: object) -> SimpleNamespace:
        return SimpleNamespace(
            sha=f"sha of {revision}", siblings=[SimpleNamespace(rfilename="x.bin")]
        )

    requests = [SimpleNamespace(git_reference="refs/pr/7")]
    monkeypatch.setattr(HfApi, "model_info", model_info)
    monkeypatch.setattr(HfApi, "get_repo_discussions", lambda *_, **__: iter(requests))
    assert hub._revision_with_safetensors(HfApi(), "owner/name") == "sha of refs/pr/7"
    requests.clear()
    with pytest.raises(ModelError, match="no safetensors"):
        hub._revision_with_safetensors(HfApi(), "owner/name")
