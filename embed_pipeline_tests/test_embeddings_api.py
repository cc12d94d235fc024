"""Embeddings over HTTP: one result or error per item, within limits, and shared forward passes."""

import base64
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer

from embed_pipeline.api.app import create_app
from embed_pipeline.deployment import Deployment
from embed_pipeline.errors import ModelError
from embed_pipeline.images.decode import decode
from embed_pipeline.images.preprocess import preprocess
from embed_pipeline.models import clip
from embed_pipeline.models.hub import model_directory
from embed_pipeline.models.protocol import ImageTextEncoder, Pixels, Tokens, Vectors
from embed_pipeline.models.shared import SharedEncoder
from embed_pipeline.models.texts import TextReader
from embed_pipeline.settings import load_settings
from embed_pipeline_tests.conftest import draw, load_once
from embed_pipeline_tests.web import TestClient, client_of

SETTINGS = {
    # In bf16 a vector depends, in its last digits, on what else is in the batch.
    "EMBED_PRECISION": "fp32",
    "MAX_TEXTS_PER_BATCH": "5",
    "MAX_IMAGES_PER_BATCH": "6",
    "MAX_IMAGE_SIZE": "50000",
    "EMBED_MAX_IMAGE_PIXELS": "1000000",
}
LONG = "a red circle and a blue square, " * 40


@pytest.fixture
def deployment(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Deployment]:
    """The demo model, shared and exact, with small limits."""
    monkeypatch.setattr(clip, "load_encoder", load_once)
    for name, value in SETTINGS.items():
        monkeypatch.setenv(name, value)
    with closing(Deployment(load_settings(), share_encoders=True)) as deployment:
        yield deployment


@pytest.fixture
def encoder(deployment: Deployment) -> ImageTextEncoder:
    """The model itself, to compare with."""
    return deployment.encoder(deployment.card)


@pytest.fixture
def client(deployment: Deployment) -> Iterator[TestClient]:
    """A client of the service."""
    with client_of(create_app(deployment)) as client:
        yield client


@pytest.fixture
def picture(tmp_path: Path) -> bytes:
    """A file's bytes."""
    return draw(tmp_path / "picture.png", 7).read_bytes()


def encoded(data: bytes) -> str:
    """As it is sent in JSON."""
    return base64.b64encode(data).decode()


def embed(client: TestClient, items: Any, **more: Any) -> dict[str, Any]:
    """The answer of /v1/embeddings, which must be a success."""
    answer = client.post("/v1/embeddings", json={"input": items, **more})
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = answer.json()
    return told


def vectors_of(told: dict[str, Any]) -> Vectors:
    """Vectors of an answer in numbers."""
    return np.array([each["embedding"] for each in told["data"]], np.float32)


def vector_of_file(encoder: ImageTextEncoder, data: bytes) -> Vectors:
    """As a sync makes it."""
    wanted = encoder.card.preprocessing
    image = decode(data, target=wanted.size, max_pixels=10**8)
    return encoder.encode_images(preprocess(image, wanted)[None])[0]


def test_texts_and_images_have_the_vectors_that_a_sync_makes(
    client: TestClient, encoder: ImageTextEncoder, picture: bytes
) -> None:
    """Texts and images, mixed in one request, come back in order with the model's own vectors and card."""
    url = f"data:image/png;base64,{encoded(picture)}"
    told = embed(
        client, ["a red circle", {"image": encoded(picture)}, {"text": ""}, {"image": url}]
    )
    text, image = (
        encoder.encode_texts(["a red circle", ""]).vectors,
        vector_of_file(encoder, picture),
    )
    np.testing.assert_allclose(vectors_of(told), [text[0], image, text[1], image], atol=1e-6)
    assert [each["index"] for each in told["data"]] == [0, 1, 2, 3]
    assert (told["object"], told["model"]) == ("list", "demo")
    assert told["usage"] == {"prompt_tokens": 3, "total_tokens": 3}
    assert told["card"]["space"] == encoder.card.space
    assert (told["card"]["dimension"], told["card"]["image_size"]) == (256, 64)


def test_openais_forms_are_understood(client: TestClient, encoder: ImageTextEncoder) -> None:
    """A single string, `model`, `dimensions`, `user` and base64 work as OpenAI's clients use them."""
    model = client.get("/v1/models").json()["data"][0]
    told = embed(client, "a red circle", model=model["id"], dimensions=256, user="me")
    same = embed(client, "a red circle", model=encoder.card.space, encoding_format="base64")
    packed = base64.b64decode(same["data"][0]["embedding"])
    np.testing.assert_array_equal(vectors_of(told)[0], np.frombuffer(packed, "<f4"))
    assert model["limits"] == {
        "texts": 5,
        "images": 6,
        "characters": 1_000_000,
        "image_bytes": 50000,
        "image_pixels": 1000000,
    }


def test_one_bad_image_costs_its_own_result_only(
    client: TestClient, encoder: ImageTextEncoder, picture: bytes
) -> None:
    """A broken, oversized or unreadable item is answered with its own error; the others have vectors."""
    big = BytesIO()
    Image.new("1", (1001, 1000)).save(big, "PNG")
    bad = {
        "truncated": encoded(picture[:200]),
        "too_large": encoded(bytes(50001)),
        "too_many_pixels": encoded(big.getvalue()),
        "unknown_format": encoded(b"not an image"),
        "not_base64": "data:image/svg+xml,<svg/>",
    }
    told = embed(client, [*({"image": each} for each in bad.values()), {"image": encoded(picture)}])
    *failed, good = told["data"]
    assert [each["object"] for each in failed] == ["error"] * 5
    assert [each["error"]["type"] for each in failed] == list(bad)
    assert all(each["error"]["message"] for each in failed)
    np.testing.assert_allclose(good["embedding"], vector_of_file(encoder, picture), atol=1e-6)


def test_no_address_is_ever_opened(client: TestClient, tmp_path: Path, picture: bytes) -> None:
    """An image that is a URL or a path is an error, and nobody is called."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        address = f"http://127.0.0.1:{server.getsockname()[1]}/x.png"
        told = embed(
            client, [{"image": address}, {"image": str(tmp_path / "picture.png")}, address]
        )
        with pytest.raises(TimeoutError):
            server.accept()
    assert [each["object"] for each in told["data"]] == ["error", "error", "embedding"]


def test_files_can_be_sent_as_a_form(
    client: TestClient, encoder: ImageTextEncoder, picture: bytes
) -> None:
    """Files of a multipart form are embedded as those in JSON, each with its own result."""
    files = [
        ("image", ("a.png", picture)),
        ("image", ("b.png", b"")),
        ("image", ("c", bytes(50001))),
    ]
    answer = client.post("/v1/embeddings", files=files, data={"encoding_format": "base64"})
    good, empty, large = answer.json()["data"]
    vector = np.frombuffer(base64.b64decode(good["embedding"]), "<f4")
    np.testing.assert_allclose(vector, vector_of_file(encoder, picture), atol=1e-6)
    assert (empty["error"]["type"], large["error"]["type"]) == ("empty", "too_large")
    for wrong in ({"other": ("a.png", picture)}, {"image": (None, "text")}):
        assert client.post("/v1/embeddings", files=wrong).status_code == 422


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"input": ["a"] * 6}, 422, "MAX_TEXTS_PER_BATCH"),
        ({"input": [{"image": ""}] * 7}, 422, "MAX_IMAGES_PER_BATCH"),
        ({"input": "a" * 1_000_001}, 422, "characters"),
        ({"input": []}, 422, "input"),
        ({"input": [[1, 2, 3]]}, 422, "input"),
        ({"input": "a", "model": "other"}, 404, "runs demo only"),
        ({"input": "a", "dimensions": 64}, 422, "dimensions"),
        ({"input": "a", "encoding_format": "hex"}, 422, "encoding_format"),
        ({"input": "a", "path": "/etc"}, 422, "path"),
        ({}, 422, "input"),
    ],
)
def test_what_cannot_be_answered_is_refused_in_one_line(
    client: TestClient, body: dict[str, Any], status: int, said: str
) -> None:
    """Too many items, another model, other dimensions and malformed requests are refused with the reason."""
    answer = client.post("/v1/embeddings", json=body)
    assert answer.status_code == status
    assert said in answer.json()["message"]
    assert answer.json()["error"]["retryable"] is False


def test_a_body_that_is_no_json_is_refused(client: TestClient) -> None:
    """Nonsense is the caller's fault."""
    assert client.post("/v1/embeddings", content=b"{").status_code in (400, 422)
    assert client.post("/v1/embeddings", content=b"\xff").status_code in (400, 422)


def test_a_long_text_is_averaged_over_its_chunks_and_says_so(
    client: TestClient, encoder: ImageTextEncoder
) -> None:
    """A long text's vector is the mean of its chunks' by length, of unit norm; `truncate` cuts it instead."""
    told = embed(client, [LONG, "a red circle"])["data"]
    chunks = told[0]["chunks"]
    assert len(chunks) > 1
    assert (sum(chunks), max(chunks)) == (40 * 8, 62)
    words, parts = LONG.split(), []
    for length in chunks:
        part: list[str] = []
        while sum(map(tokens_of, part)) < length:
            part.append(words.pop(0))
        parts.append(" ".join(part))
    mean = np.average(encoder.encode_texts(parts).vectors, axis=0, weights=chunks)
    np.testing.assert_allclose(told[0]["embedding"], mean / np.linalg.norm(mean), atol=1e-6)
    assert (told[1]["chunks"], told[1]["truncated"]) == ([3], False)
    cut = embed(client, LONG, long_texts="truncate")["data"][0]
    np.testing.assert_allclose(cut["embedding"], encoder.encode_texts([LONG]).vectors[0], atol=1e-6)
    assert (cut["chunks"], cut["truncated"]) == ([62], True)


def tokens_of(word: str) -> int:
    """A comma is a token of its own."""
    return 1 + word.endswith(",")


def demo_tokenizer() -> Tokenizer:
    """The demo model's."""
    return Tokenizer.from_file(str(model_directory("demo") / "tokenizer.json"))


@pytest.mark.parametrize(
    "text", ["", "a", LONG, "🙂" * 100, "x" * 300, f"{'y' * 100} {LONG}", "中" * 90]
)
def test_splitting_loses_nothing_and_cutting_is_the_tokenizers(text: str) -> None:
    """Chunks hold every token once, within the context; what is cut is what tokenizers cut."""
    reader = TextReader(demo_tokenizer(), 16, lower_case=False)
    (chunks,) = reader.split([text])
    plain = demo_tokenizer().encode(text, add_special_tokens=False).ids
    assert list(chain.from_iterable(each.ids[1:-1] for each in chunks)) == plain
    assert all(len(each.ids) == each.length + 2 <= 16 for each in chunks)
    theirs = demo_tokenizer()
    theirs.enable_truncation(16)
    ((cut,), (truncated,)) = reader.cut([text])
    assert (cut.ids, truncated) == (theirs.encode(text).ids, bool(theirs.encode(text).overflowing))


def test_words_stay_whole_where_they_can() -> None:
    """A chunk ends between words, with their punctuation; a word longer than a chunk is split."""
    reader = TextReader(demo_tokenizer(), 16, lower_case=False)
    text = "one, two three. " * 9 + "q" * 60 + " end"
    (chunks,) = reader.split([text])
    ends_word = "</w>"
    said = [demo_tokenizer().decode(each.ids).replace(ends_word, "") for each in chunks]
    assert "".join(said) == "".join(text.split())
    assert all(part.startswith(("one", "two", "three", "q", "end")) for part in said)


def test_the_older_services_routes_answer_in_its_forms(
    client: TestClient, encoder: ImageTextEncoder, picture: bytes
) -> None:
    """Batches of texts, an image and batches of images come in the nested lists of the older service."""
    single = client.post("/embeddings", json={"text": "First text"}).json()
    first = encoder.encode_texts(["First text"]).vectors
    np.testing.assert_allclose(single["embeddings"], first, atol=1e-6)

    texts = ["First text", "Second text", LONG]
    told = client.post("/embeddings/batch", json={"texts": texts}).json()
    vectors = np.array(told["embeddings"])
    assert vectors.shape == (3, 1, 256)
    np.testing.assert_allclose(vectors[:, 0], encoder.encode_long_texts(texts).vectors, atol=1e-6)
    assert [len(chunks) for chunks in told["chunks"]] == [1, 1, 6]

    image = vector_of_file(encoder, picture)
    one = client.post("/embeddings/image", json={"image": encoded(picture)}).json()
    np.testing.assert_allclose(one["embeddings"], [image], atol=1e-6)
    two = client.post("/embeddings/image/batch", json={"images": [encoded(picture)] * 2}).json()
    np.testing.assert_allclose(two["embeddings"], [[image], [image]], atol=1e-6)


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("batch", {"texts": ["a"] * 6}, 422, "at most 5"),
        ("batch", {"texts": "a"}, 422, "texts"),
        ("image", {"image": encoded(b"no image")}, 422, "image: begins with"),
        ("image", {"image": encoded(bytes(50001))}, 413, "MAX_IMAGE_SIZE"),
        ("image", {"image": "http://127.0.0.1/x.jpg"}, 422, "not opened"),
        ("image/batch", {"images": [""] * 7}, 422, "at most 6"),
        ("image/batch", {"images": ["", "?"]}, 422, "images.0"),
        ("image/batch", {}, 422, "images"),
    ],
)
def test_the_older_routes_refuse_with_the_reason(
    client: TestClient, path: str, body: dict[str, Any], status: int, said: str
) -> None:
    """Where there is no place for an item's error, the request fails and names the item."""
    answer = client.post(f"/embeddings/{path}", json=body)
    assert (answer.status_code, said in answer.json()["message"]) == (status, True), answer.text


class Counting:
    """A real encoder that counts its forward passes, and can be held up in the first."""

    def __init__(self, encoder: Any) -> None:
        self.card, self.reader = encoder.card, encoder.reader
        self._encoder = encoder
        self.passes: list[int] = []
        self.begun, self.go_on = threading.Event(), threading.Event()

    def _counted(self, count: int) -> None:
        self.passes.append(count)
        self.begun.set()
        assert self.go_on.wait(10)

    def encode_tokens(self, texts: list[Tokens]) -> Vectors:
        """Fails for an empty text."""
        self._counted(len(texts))
        if any(each.length == 0 for each in texts):
            raise ModelError("an empty text breaks this model")
        vectors: Vectors = self._encoder.encode_tokens(texts)
        return vectors

    def encode_images(self, pixels: Pixels) -> Vectors:
        """Counted."""
        self._counted(len(pixels))
        vectors: Vectors = self._encoder.encode_images(pixels)
        return vectors


@pytest.fixture
def counting(encoder: ImageTextEncoder) -> Counting:
    """The demo model, counting."""
    return Counting(load_once(encoder.card, model_directory("demo"), "auto", "fp32"))


@pytest.fixture
def shared(counting: Counting) -> Iterator[SharedEncoder]:
    """An encoder whose first forward pass is under way for somebody else, and waits for `go_on`."""
    with closing(SharedEncoder(counting, 8)) as shared, ThreadPoolExecutor(1) as first:  # type: ignore[arg-type]
        busy = first.submit(shared.encode_texts, ["first"])
        assert counting.begun.wait(10)
        yield shared
        counting.go_on.set()
        busy.result(10)


def all_at_once(asked: list[Callable[[], Any]], shared: SharedEncoder, counting: Counting) -> Any:
    """What each caller gets, or its error, where all were waiting when the model became free."""
    with ThreadPoolExecutor(len(asked)) as callers:
        answers = [callers.submit(each) for each in asked]
        while sum(len(queue.waiting) for queue in shared._turns) < len(asked):
            threading.Event().wait(0.01)
        counting.go_on.set()
        return [answer.exception(10) or answer.result() for answer in answers]


def test_requests_that_arrive_together_share_a_forward_pass(
    shared: SharedEncoder, counting: Counting, encoder: ImageTextEncoder
) -> None:
    """Twelve texts take one pass and twelve images two of at most eight; each caller has its own rows."""
    texts = [f"a red circle and {number} squares" for number in range(12)]
    pixels = np.random.default_rng(0).integers(0, 256, (12, 1, 64, 64, 3), np.uint8)
    told = all_at_once(
        [lambda text=text: shared.encode_texts([text]).vectors for text in texts]
        + [lambda one=one: shared.encode_images(one) for one in pixels],
        shared,
        counting,
    )
    assert counting.passes[0] == 1
    assert sorted(counting.passes[1:]) == [4, 8, 12]
    np.testing.assert_allclose(
        np.concatenate(told[:12]), encoder.encode_texts(texts).vectors, atol=1e-6
    )
    np.testing.assert_allclose(
        np.concatenate(told[12:]), encoder.encode_images(np.concatenate(pixels)), atol=1e-6
    )


def test_a_request_that_fails_does_not_fail_its_neighbours(
    shared: SharedEncoder, counting: Counting, encoder: ImageTextEncoder
) -> None:
    """Of requests that shared a pass, only the one that the model cannot answer has an error."""
    wrong_size = np.zeros((1, 32, 32, 3), np.uint8)
    right_size = np.zeros((1, 64, 64, 3), np.uint8)
    good, bad, small, right = all_at_once(
        [
            lambda: shared.encode_texts(["good"]).vectors,
            lambda: shared.encode_texts([""]),
            lambda: shared.encode_images(wrong_size),
            lambda: shared.encode_images(right_size),
        ],
        shared,
        counting,
    )
    np.testing.assert_allclose(good, encoder.encode_texts(["good"]).vectors, atol=1e-6)
    np.testing.assert_allclose(right, encoder.encode_images(right_size), atol=1e-6)
    assert isinstance(bad, ModelError)
    assert isinstance(small, ValueError)


def test_who_asks_for_much_lets_others_in(shared: SharedEncoder, counting: Counting) -> None:
    """Forty images and a text arrive together: the text waits for one pass of images at most."""
    many = np.zeros((40, 64, 64, 3), np.uint8)
    all_at_once(
        [lambda: shared.encode_images(many), lambda: shared.encode_texts(["one"])], shared, counting
    )
    assert counting.passes.index(1, 1) <= 2
    assert counting.passes.count(8) == 5


def test_a_closed_encoder_says_so(encoder: ImageTextEncoder) -> None:
    """Nobody waits for an encoder that was closed; nothing asked of an open one is an empty answer."""
    shared = SharedEncoder(load_once(encoder.card, model_directory("demo"), "auto", "fp32"), 8)
    assert shared.encode_images(np.empty((0, 64, 64, 3), np.uint8)).shape == (0, 256)
    shared.close()
    with pytest.raises(ModelError, match="is closed"):
        shared.encode_texts(["late"])


def test_two_threads_load_a_model_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that need the model at the same time share one that is loaded once."""
    loaded = []

    def load(*arguments: Any, **options: Any) -> Any:
        loaded.append(arguments)
        threading.Event().wait(0.1)
        return load_once(*arguments, **options)

    monkeypatch.setattr(clip, "load_encoder", load)
    opened = Deployment(load_settings(), share_encoders=True)
    with closing(opened) as deployment, ThreadPoolExecutor(4) as threads:
        found = list(threads.map(deployment.encoder, [deployment.card] * 4))
    assert len(loaded) == 1
    assert all(each is found[0] for each in found)
