"""A model that another process runs: the same space, the same vectors, and nothing lost when it is away."""

import base64
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import uvicorn
from fastapi import Request, Response
from PIL import Image

from embed_pipeline import doctor, health
from embed_pipeline.api.app import create_app
from embed_pipeline.deployment import Deployment
from embed_pipeline.errors import ModelError
from embed_pipeline.images.decode import decode
from embed_pipeline.images.preprocess import Preprocessing, preprocess
from embed_pipeline.models import clip
from embed_pipeline.models.remote import RemoteEncoder, _as_file
from embed_pipeline.models.remote_service import Service, ServiceAway
from embed_pipeline.patience import Patience
from embed_pipeline.project_run import ProjectRun
from embed_pipeline.settings import load_settings
from embed_pipeline.sync import sync
from embed_pipeline_tests.conftest import draw_many, load_once
from embed_pipeline_tests.processes import free_port, wait_until

KEY = "a key that nobody else is told"
QUICK = Patience(tries=3, try_seconds=10, total_seconds=12, first_wait_seconds=0.02)
Meddle = Callable[[Request], Response | None]


class Place:
    """A service with the demo model, on a port of its own: it can be stopped, and started again.

    meddle: told of each request, before it is answered; may answer in the service's place.
    """

    def __init__(self, deployment: Deployment) -> None:
        # Python 3.11 has one lock for a cached property of all deployments: who asks here, holds it.
        _ = deployment.card
        self.port = free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self.requests: list[str] = []
        self.headers: dict[str, str] = {}
        self.meddle: Meddle = lambda _: None
        self.app = create_app(deployment)
        self.app.middleware("http")(self._seen)

    async def _seen(self, request: Request, answer: Any) -> Response:
        self.requests.append(request.url.path)
        self.headers = dict(request.headers)
        return self.meddle(request) or await answer(request)

    def start(self) -> None:
        """Listen."""
        config = uvicorn.Config(self.app, port=self.port, log_config=None, lifespan="off")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        wait_until(lambda: self._server.started, 20, "the service")

    def end(self) -> None:
        """Drop every connection and listen no more."""
        self._server.should_exit = self._server.force_exit = True

    def stop(self) -> None:
        """As `end`, and wait for that."""
        self.end()
        self._thread.join(20)


@pytest.fixture
def service(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """A running service, of which EMBED_MODEL is the address from here on."""
    monkeypatch.setattr(clip, "load_encoder", load_once)
    for kind in ("looks", "texts", "images"):
        monkeypatch.setitem(Service.__init__.__kwdefaults__, kind, QUICK)
    # In bf16 a vector depends, in its last digits, on what else is in the batch.
    monkeypatch.setenv("EMBED_PRECISION", "fp32")
    settings = load_settings().model_copy(update={"home": tmp_path / "there"})
    with closing(Deployment(settings, share_encoders=True)) as deployment:
        place = Place(deployment)
        place.start()
        monkeypatch.setenv("EMBED_MODEL", place.address)
        yield place
        place.stop()


@pytest.fixture
def local(root: Path, tmp_path: Path) -> Iterator[Deployment]:
    """The same model in this process."""
    here = {"model_name": "demo", "home": tmp_path / "local", "precision": "fp32"}
    settings = load_settings().model_copy(update=here)
    with closing(Deployment(settings)) as deployment:
        yield deployment


@pytest.fixture
def far(service: Place) -> Iterator[Deployment]:
    """A deployment whose model the service runs."""
    with closing(Deployment(load_settings())) as deployment:
        yield deployment


def encoder_of(deployment: Deployment) -> RemoteEncoder:
    """Its encoder."""
    encoder = deployment.encoder(deployment.card)
    assert isinstance(encoder, RemoteEncoder)
    return encoder


def noise(count: int, size: int = 64) -> Any:
    """Pixels that no lossy format would bring over."""
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)


def test_vectors_and_space_are_those_of_the_same_model_here(
    far: Deployment, local: Deployment, service: Place
) -> None:
    """Images, texts and long texts have the local model's vectors, in its space, however many they are."""
    remote, here = encoder_of(far), local.encoder(local.card)
    assert far.card.name == service.address
    assert far.card.space == local.card.space
    pixels = noise(50)
    np.testing.assert_allclose(remote.encode_images(pixels), here.encode_images(pixels), atol=1e-6)
    texts = [f"{number} red circles, \ud800" for number in range(120)] + ["", "a blue star " * 99]
    there, ours = remote.encode_texts(texts), here.encode_texts(texts)
    np.testing.assert_allclose(there.vectors, ours.vectors, atol=1e-6)
    assert (there.truncated, there.tokens) == (ours.truncated, ours.tokens)
    whole, ours_whole = remote.encode_long_texts(texts), here.encode_long_texts(texts)
    np.testing.assert_allclose(whole.vectors, ours_whole.vectors, atol=1e-6)
    assert whole.chunks == ours_whole.chunks
    assert service.requests.count("/v1/embeddings") == 3 + 2 + 2
    assert remote.encode_images(noise(0)).shape == (0, 256)
    assert remote.encode_texts([]).vectors.shape == (0, 256)


@pytest.mark.parametrize("fit", ["crop", "squash"])
@pytest.mark.parametrize("resample", [0, 2, 3])
def test_the_service_sees_the_very_pixels(fit: Any, resample: int) -> None:
    """What is sent of preprocessed pixels is, decoded and preprocessed again, the same pixels."""
    wanted = Preprocessing(64, fit, resample, (0, 0, 0), (1, 1, 1))
    image = Image.fromarray(noise(1, 101)[0]).crop((0, 0, 101, 77))
    pixels = preprocess(image, wanted)
    sent = base64.b64decode(_as_file(pixels))
    again = preprocess(decode(sent, target=64, max_pixels=10**6), wanted)
    np.testing.assert_array_equal(again, pixels)


def stored(deployment: Deployment) -> pl.DataFrame:
    """Content hashes and vectors of the library."""
    parts = deployment.home.vectors(deployment.card.space).glob("part-*.parquet")
    return pl.concat(map(pl.read_parquet, parts)).sort("content_hash")


def run_of(deployment: Deployment) -> ProjectRun:
    """A run on the project `cats`."""
    return ProjectRun(deployment, "cats", "run")


def points_of(deployment: Deployment) -> list[str]:
    """Ids of the project's points."""
    scrolled = pl.concat(run_of(deployment).collection.scroll())
    return sorted(scrolled["point_id"].to_list())


def test_a_sync_writes_the_same_points_and_vectors(
    root: Path, far: Deployment, local: Deployment
) -> None:
    """A project that is synced through a service holds what it would hold otherwise, in the same space."""
    draw_many(root / "cats", 30)
    assert sync(run_of(far)).embed == sync(run_of(local)).embed == 30
    assert points_of(far) == points_of(local)
    theirs, ours = stored(far), stored(local)
    assert theirs["content_hash"].equals(ours["content_hash"])
    # float16 has about three digits: the last one may round the other way
    np.testing.assert_allclose(theirs["vector"].to_numpy(), ours["vector"].to_numpy(), atol=2.5e-4)
    settings = far.settings.model_copy(update={"model_name": "demo"})
    with closing(Deployment(settings)) as brought_home:
        assert sync(run_of(brought_home)).unchanged == 30


def test_a_service_that_is_killed_in_the_middle_loses_no_image(
    root: Path, service: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sync whose service dies fails and keeps what was embedded; the next one embeds the rest, once."""
    monkeypatch.setenv("EMBED_BATCH_SIZE", "8")
    draw_many(root / "cats", 64)
    embedding = 0

    def die(request: Request) -> None:
        nonlocal embedding
        embedding += request.method == "POST"
        if embedding == 4:
            service.end()

    service.meddle = die
    with closing(Deployment(load_settings())) as deployment:
        with pytest.raises(ServiceAway, match=r"serve runs there; a later sync goes on") as failed:
            sync(run_of(deployment))
        assert failed.value.retryable
        kept = stored(deployment).height
    assert 16 <= kept < 64

    service.meddle = lambda _: None
    service.stop()
    service.start()
    with closing(Deployment(load_settings())) as deployment:
        state = sync(run_of(deployment))
        assert (state.embed, state.failed, state.equal) == (64 - kept, 0, True)
        assert stored(deployment)["content_hash"].n_unique() == stored(deployment).height == 64


def test_what_needs_no_vector_goes_on_without_the_service(
    root: Path, far: Deployment, service: Place
) -> None:
    """A sync that has nothing to embed works while the service is away; a new home cannot know the model."""
    draw_many(root / "cats", 3)
    sync(run_of(far))
    service.stop()
    with closing(Deployment(load_settings())) as deployment:
        assert sync(run_of(deployment)).unchanged == 3
        with pytest.raises(ServiceAway, match="EMBED_MODEL=http://127"):
            deployment.encoder(deployment.card)
    elsewhere = load_settings().model_copy(update={"home": root.parent / "elsewhere"})
    with pytest.raises(ServiceAway):
        _ = Deployment(elsewhere).card


def test_vectors_of_another_model_are_never_taken(
    root: Path, far: Deployment, service: Place
) -> None:
    """A service that changes its model under a run fails it before a vector is written."""
    draw_many(root / "cats", 3)
    encoder_of(far)
    embedder = service.app.state.embedder
    changed = replace(embedder._own_card, revision="0" * 12)
    service.app.state.embedder = type(embedder)(embedder._deployment)
    service.app.state.embedder.__dict__["card"] = embedder.card.model_copy(
        update={"revision": changed.revision, "space": changed.space}
    )
    with pytest.raises(ModelError, match=r"now runs demo-000000000000-p1-original, not demo-"):
        sync(run_of(far))
    assert not list(far.home.root.glob("vectors/*/part-*"))
    with closing(Deployment(load_settings())) as deployment:
        assert deployment.card.space == changed.space


def answering(status: int, body: object, **headers: str) -> Meddle:
    """Answers every request so."""
    return lambda _: Response(json.dumps(body), status, headers)


@pytest.mark.parametrize(
    ("meddle", "said"),
    [
        (answering(401, {"message": f"{KEY} is wrong"}), "401 .* set EMBED_MODEL_API_KEY"),
        (answering(404, {}), "404; set EMBED_MODEL to the address"),
        (answering(200, {"data": [{"id": "gpt"}]}), "not that of `embed-pipeline serve`"),
        (answering(307, {}, location="http://elsewhere"), "307; set EMBED_MODEL"),
        (answering(503, {"message": "starting"}), "503 starting; look whether"),
    ],
)
def test_a_service_that_is_of_no_use_is_told_in_one_line(
    meddle: Meddle, said: str, service: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is wrong, EMBED_MODEL and the remedy stand in one line; the key does not."""
    monkeypatch.setenv("EMBED_MODEL_API_KEY", KEY)
    service.meddle = meddle
    with pytest.raises(ModelError, match=said) as error:
        _ = Deployment(load_settings()).card
    assert str(error.value).startswith(f"EMBED_MODEL={service.address}: ")
    assert service.headers["authorization"] == f"Bearer {KEY}"
    assert KEY not in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "address",
    [
        "http://",
        "http://me:secret@host",
        "http://host?key=secret",
        "http://host:0",
        "http://host:x/",
    ],
)
def test_an_address_that_is_none_is_refused(
    address: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody is asked, and a password in it is not repeated."""
    monkeypatch.setenv("EMBED_MODEL", address)
    with pytest.raises(ModelError, match="EMBED_MODEL=http") as error:
        _ = Deployment(load_settings()).card
    assert "secret" not in str(error.value)


def test_what_passes_by_itself_is_asked_again(far: Deployment, service: Place) -> None:
    """A busy service, one that says how long to wait, and one that hangs up, are asked again."""
    encoder = encoder_of(far)
    faults = [answering(503, {}), answering(429, {}, **{"retry-after": "1"})]

    def meddle(request: Request) -> Response | None:
        return faults.pop(0)(request) if faults else None

    service.meddle = meddle
    assert encoder.encode_texts(["a red circle"]).vectors.shape == (1, 256)
    assert service.requests.count("/v1/embeddings") == 3


def test_an_image_without_a_vector_is_a_row_of_nan(far: Deployment, service: Place) -> None:
    """One image of which the model makes nothing costs no other; a service's limit is no image's fault."""
    encoder = encoder_of(far)

    def changed(kind: str) -> Meddle:
        error = {"type": kind, "message": "so"}
        data = [
            {"object": "embedding", "index": 0, "embedding": "AACAPw=="},
            {"object": "error", "index": 1, "error": error},
        ]
        card = service.app.state.embedder.card.model_copy(update={"dimension": 1})
        usage = {"prompt_tokens": 0, "total_tokens": 0}
        return answering(
            200, {"model": "demo", "data": data, "usage": usage, "card": card.model_dump()}
        )

    encoder.card = encoder._sent = replace(encoder._sent, dimension=1)
    service.meddle = changed("not_finite")
    np.testing.assert_array_equal(encoder.encode_images(noise(2)), [[1], [np.nan]])
    service.meddle = changed("too_large")
    with pytest.raises(ModelError, match="too_large: so; look at that service's log and limits"):
        encoder.encode_images(noise(2))


def test_a_key_is_told_to_its_own_service_only(
    root: Path, service: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service that a project was indexed with before does not get the key of the one in EMBED_MODEL."""
    draw_many(root / "cats", 1)
    gate = service.app.state.gate
    gate._key = KEY
    with pytest.raises(ModelError, match=r"401 .* set EMBED_MODEL_API_KEY"):
        _ = Deployment(load_settings()).card
    monkeypatch.setenv("EMBED_MODEL_API_KEY", KEY)
    with closing(Deployment(load_settings())) as deployment:
        assert sync(run_of(deployment)).embed == 1
    gate._key = None
    monkeypatch.setenv("EMBED_MODEL", "http://127.0.0.1:1")
    with closing(Deployment(load_settings())) as deployment:
        card = deployment.serving_card("cats")
        assert deployment.encoder(card).encode_texts(["a"]).vectors.shape == (1, 256)
    assert "authorization" not in service.headers


def test_a_process_that_uses_a_service_loads_no_torch(root: Path, service: Place) -> None:
    """Syncing and asking for vectors through a service imports neither torch nor transformers."""
    draw_many(root / "cats", 2)
    script = (
        "import sys\n"
        "from embed_pipeline.deployment import open_deployment\n"
        "from embed_pipeline.project_run import ProjectRun\n"
        "from embed_pipeline.sync import sync\n"
        "deployment = open_deployment()\n"
        "print(sync(ProjectRun(deployment, 'cats', 'run')).embed, end=' ')\n"
        "deployment.encoder(deployment.card).encode_texts(['a'])\n"
        "print(*sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    embedded, *modules = done.stdout.split()
    assert embedded == "2"
    assert not {"torch", "transformers", "fastapi"} & set(modules)


def test_health_and_doctor_ask_the_service(root: Path, service: Place, far: Deployment) -> None:
    """A service that answers is well, and says which model it runs; one that is away is told so."""
    health._check_encoder(far)
    assert doctor._model(far).startswith(
        f"{service.address}: runs demo, 256 dimensions, space demo-"
    )
    service.stop()
    with closing(Deployment(load_settings())) as deployment:
        with pytest.raises(ServiceAway):
            health._check_encoder(deployment)
        found = doctor._checked("model", doctor._model, deployment)
        assert (found.ok, "look whether embed-pipeline serve runs there" in found.finding) == (
            False,
            True,
        )
