"""The stand-in for a Supervisely instance, driven by the real `supervisely` package."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from subprocess import PIPE
from threading import Timer
from typing import Any

import httpx
import pytest
import requests
from PIL import Image

from embed_pipeline_tests.processes import started
from embed_pipeline_tests.supervisely_faults import (
    Fault,
    answer,
    cut,
    cut_midway,
    not_json,
    slow,
    status,
    then,
    trickle,
    wrong_bytes,
)
from embed_pipeline_tests.supervisely_pictures import drawn
from embed_pipeline_tests.supervisely_records import as_text, content_hash
from embed_pipeline_tests.supervisely_server import StandIn

# What importing the package warns of; the first as an error ends the process.
pytestmark = [
    pytest.mark.filterwarnings("ignore:builtin type (SwigPy|swig):DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Pydantic V1 style `@root_validator`"),
    pytest.mark.filterwarnings("ignore:Support for class-based `config` is deprecated"),
]

RED = drawn("red", "circle")
BLUE = drawn("blue", "square")
MOMENT = "2030-01-01T00:00:00.123456Z"


@pytest.fixture
def server() -> Iterator[StandIn]:
    """A stand-in that was asked nothing unknown."""
    with StandIn() as server:
        yield server
        assert server.unknown == []


@pytest.fixture
def api(server: StandIn, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The real client of it."""
    monkeypatch.setenv("SUPERVISELY_SKIP_HTTPS_USER_HELPER_CHECK", "true")
    import supervisely

    return supervisely.Api(server.url, "token", retry_count=1, retry_sleep_sec=0)


@pytest.fixture
def project(server: StandIn) -> int:
    """A project with a dataset."""
    return server.instance.add_project("cats", server.instance.add_team("team"))


@pytest.fixture
def dataset(server: StandIn, project: int) -> int:
    """A dataset of it."""
    return server.instance.add_dataset(project, "set")


@pytest.fixture
def image(server: StandIn, dataset: int) -> int:
    """An image of it."""
    return server.instance.add_image(dataset, "red.jpg", RED)


def token_pages(api: Any, project: int, **asked: Any) -> list[list[int]]:
    """The ids of each page of a project's listing by tokens."""
    pages = api.image.get_list_generator(project_id=project, **asked)
    return [[info.id for info in page] for page in pages]


def test_projects_are_listed_by_their_flags(server: StandIn, api: Any, project: int) -> None:
    """The list of all projects filters on AI search, and tells flags to those who ask for them."""
    server.instance.add_project("off", server.instance.add_team("b"), embeddings_enabled=False)
    enabled = [{"field": "embeddingsEnabled", "operator": "=", "value": True}]
    assert [p.embeddings_enabled for p in api.project.get_list_all(enabled)["entities"]] == [None]
    listed = api.project.get_list_all(enabled, extra_fields=["embeddingsEnabled"])["entities"]
    assert [(p.id, p.embeddings_enabled) for p in listed] == [(project, True)]
    assert api.team.get_info_by_id(listed[0].team_id).usage.plan == "pro"


def test_images_come_in_pages_by_token(server: StandIn, api: Any, dataset: int) -> None:
    """Pages by token go on behind the last id, under filters, with null as a value."""
    ids = server.instance.add_images(dataset, {f"{n}.jpg": b"%d" % n for n in range(5)})
    project = server.instance.image(ids[0]).project_id
    assert token_pages(api, project, batch_size=2) == [ids[:2], ids[2:4], ids[4:]]
    api.image.set_embeddings_updated_at(ids[:2], [MOMENT] * 2)
    nulls = [{"field": "embeddingsUpdatedAt", "operator": "eq", "value": None}]
    assert token_pages(api, project, batch_size=2, filters=nulls) == [ids[2:4], ids[4:]]


def test_images_come_in_pages_by_number(server: StandIn, api: Any, dataset: int) -> None:
    """Numbered pages show stamps where asked for, and the trash alone where asked for."""
    a, b, c = server.instance.add_images(dataset, {"a.jpg": RED, "b.jpg": BLUE, "c.jpg": b"no"})
    before = server.instance.image(b).updated_at
    server.instance.trash_image(b)
    listed = api.image.get_list(dataset, extra_fields=["embeddingsUpdatedAt"])
    assert [(i.id, i.embeddings_updated_at, i.width) for i in listed] == [
        (a, None, 320),
        (c, None, None),
    ]
    newer = [{"field": "updatedAt", "operator": "gt", "value": before}]
    asked = {"datasetId": dataset, "showDisabled": True, "filter": newer, "per_page": 1, "page": 1}
    trash = api.post("images.list", asked).json()
    assert (trash["total"], trash["entities"][0]["id"]) == (1, b)


def test_datasets_nest(server: StandIn, api: Any, dataset: int) -> None:
    """The recursive list has nested datasets, until one above them is removed with all its images."""
    project = server.instance.datasets[dataset].project_id
    nested = server.instance.add_dataset(project, "nested", parent_id=dataset)
    inside = server.instance.add_image(nested, "a.jpg", RED)
    assert [d.id for d in api.dataset.get_list(project)] == [dataset]
    listed = api.dataset.get_list(project, recursive=True)
    assert [(d.id, d.parent_id) for d in listed] == [(dataset, None), (nested, dataset)]
    server.instance.remove_dataset(dataset)
    assert api.dataset.get_list(project, recursive=True) == []
    assert server.instance.image(inside).disabled
    server.instance.remove_project(project)
    assert api.project.get_info_by_id(project) is None


def test_stamps_and_flags(server: StandIn, api: Any, image: int) -> None:
    """Stamps and flags are taken; they date nothing anew unless the instance is told so."""
    project = server.instance.image(image).project_id
    dated = server.instance.project(project).updated_at
    api.image.set_embeddings_updated_at([image], [MOMENT])
    api.project.set_embeddings_in_progress(project, True, "no luck")
    api.project.set_embeddings_updated_at(project, MOMENT)
    api.project.disable_embeddings(project)
    state = server.instance.project(project)
    assert server.instance.stamped(project) == {image: MOMENT}
    assert (state.embeddings_in_progress, state.error_message) == (True, "no luck")
    assert (state.embeddings_enabled, state.embeddings_updated_at) == (False, MOMENT)
    assert state.updated_at == dated
    server.instance.bumps_on_stamp = True
    api.image.set_embeddings_updated_at([image], [None])
    assert server.instance.image(image).updated_at == state.updated_at > dated


def test_every_change_is_dated_later(server: StandIn, image: int, dataset: int) -> None:
    """Two changes in a row never have the same date, and the clock does not run ahead."""
    dates = []
    for _ in range(20):
        server.instance.annotate(image)
        dates.append(server.instance.image(image).updated_at)
    assert dates == sorted(set(dates))
    assert dates[-1] <= as_text(int(time.time() * 1000) + 1)
    server.instance.skew = 3600
    server.instance.rename_image(image, "b.jpg")
    assert server.instance.datasets[dataset].updated_at > dates[-1]


def test_previews_are_made(server: StandIn, api: Any, dataset: int) -> None:
    """A preview fits its box, upright and never enlarged, also of a link; a broken picture has none."""
    from supervisely._utils import resize_image_url

    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (400, 200), "red").save(data := BytesIO(), "JPEG", exif=turned)
    link = f"{server.url}/links/a.jpg"
    ids = [
        server.instance.add_image(dataset, "a.jpg", data.getvalue()),
        server.instance.add_image(dataset, "b.jpg", data.getvalue(), link, hash_known=False),
        server.instance.add_image(dataset, "c.jpg", b"no picture"),
    ]
    infos = [api.image.get_info_by_id(id_) for id_ in ids]
    assert [(i.hash is None, i.full_storage_url == link) for i in infos[:2]] == [
        (False, False),
        (True, True),
    ]
    urls = [
        resize_image_url(i.full_storage_url, method="fit", width=100, height=100) for i in infos
    ]
    urls += [
        urls[0].replace(":100:100:", ":999:0:"),
        f"{server.url}{'/previews/q/ext:jpeg'}/resize:fit:100:100:0/q:70/plain/{link}",
    ]
    answers = [httpx.get(url) for url in urls]
    assert [a.status_code for a in answers] == [200, 200, 404, 200, 200]
    sizes = [Image.open(BytesIO(a.content)).size for a in answers if a.status_code == 200]
    assert sizes == [(50, 100), (50, 100), (200, 400), (50, 100)]
    assert httpx.get(infos[0].full_storage_url).content == data.getvalue()


def test_originals_are_downloaded(api: Any, server: StandIn, dataset: int, image: int) -> None:
    """Both downloads of the client give the bytes; one of them checks them by the header."""
    other = server.instance.add_image(dataset, "blue.jpg", BLUE)

    async def both() -> Any:
        try:
            return await api.image.download_bytes_many_async([image, other])
        finally:
            await api.async_httpx_client.aclose()

    assert asyncio.run(both()) == [RED, BLUE]
    assert api.image.download_bytes(dataset, [other, image]) == [BLUE, RED]
    assert api.image.get_info_by_id(image).hash == content_hash(RED)
    server.fail("images.download", wrong_bytes())
    with pytest.raises(RuntimeError, match="does not match"):
        asyncio.run(both())


def test_a_replaced_image(server: StandIn, api: Any, image: int) -> None:
    """New bytes come with a new hash and no stamp, at the path of the old ones or another."""
    url = api.image.get_info_by_id(image).full_storage_url
    server.instance.image(image).embeddings_updated_at = MOMENT
    server.instance.replace_image(image, BLUE, same_path=True)
    assert httpx.get(url).content == BLUE
    assert server.instance.image(image).embeddings_updated_at is None
    server.instance.replace_image(image, RED, same_path=False)
    info = api.image.get_info_by_id(image)
    assert (info.hash, httpx.get(info.full_storage_url).content) == (content_hash(RED), RED)
    assert httpx.get(url).content == BLUE


def test_collections(server: StandIn, api: Any, project: int, image: int) -> None:
    """A collection keeps scores, shows its images above a threshold, and names what it misses."""
    from supervisely.api.entities_collection_api import CollectionItem, CollectionTypeFilter

    made = api.entities_collection.create(project, "found", type="aiSearch", ai_search_key="KEY")
    item = CollectionItem(image, CollectionItem.Meta(0.5))
    api.entities_collection.add_items(made.id, [item])
    assert api.entities_collection.get_info_by_ai_search_key(project, "KEY").id == made.id
    kind = CollectionTypeFilter.AI_SEARCH
    (found,) = api.entities_collection.get_items(made.id, kind)
    assert found.ai_search_meta["score"] == 0.5
    assert api.entities_collection.get_items(made.id, kind, ai_search_threshold=0.6) == []
    with pytest.raises(RuntimeError):
        api.entities_collection.add_items(made.id, [image, 10_000])
    with pytest.raises(requests.HTTPError, match="NONUNIQUE"):
        api.entities_collection.create(project, "found", type="aiSearch", ai_search_key="KEY")
    api.entities_collection.remove_items(made.id, [image])
    api.entities_collection.remove(made.id, force=True)
    assert api.entities_collection.get_info_by_id(made.id) is None


@pytest.mark.parametrize(
    ("fault", "raised"),
    [
        (status(403), requests.HTTPError),
        (status(503, {"Retry-After": "0"}), requests.exceptions.RetryError),
        (cut(), requests.exceptions.RetryError),
        (cut_midway(), Exception),
        (not_json(), ValueError),
        (answer({"id": 5, "name": "other"}), None),
        (trickle(0.1), None),
        (slow(0.1), None),
        (then(lambda instance: instance.add_team("new")), None),
    ],
)
def test_faults(
    server: StandIn, api: Any, project: int, fault: Fault, raised: type[Exception] | None
) -> None:
    """A fault shows once, where its condition holds, and the next answer is right."""
    server.fail("projects.info", fault, when=lambda body: body["id"] == project)
    assert api.project.get_info_by_id(project + 1000) is None
    if raised:
        with pytest.raises(raised):
            api.project.get_info_by_id(project)
    else:
        api.project.get_info_by_id(project)
    assert api.project.get_info_by_id(project).name == "cats"


def test_a_stop_ends_what_is_slow(server: StandIn, image: int) -> None:
    """A stop cuts connections at once, and a start on the same port serves the same instance."""
    url = f"{server.url}{server.instance.image(image).path}"
    server.fail("original", slow(60), times=None)
    began = time.monotonic()
    with httpx.Client() as client:
        Timer(0.1, server.stop).start()
        with pytest.raises(httpx.RemoteProtocolError):
            client.get(url)
        with pytest.raises(httpx.ConnectError):
            client.get(url)
        server.start()
        Timer(0.1, server.heal).start()
        assert client.get(url).content == RED
    assert time.monotonic() - began < 5


def test_what_is_unknown_is_noted() -> None:
    """A method, key or filter outside the contract is refused and noted; a wrong token only refused."""
    with StandIn() as server:

        def ask(method: str, body: Any, token: str = "token") -> int:
            url = f"{server.url}/public/api/v3/{method}"
            return httpx.post(url, json=body, headers={"x-api-key": token}).status_code

        assert ask("users.me", {}) == 200
        assert ask("users.me", {}, "wrong") == 401
        assert server.unknown == []
        assert ask("projects.remove", {"id": 1}) == 404
        assert ask("projects.list.all", {"perPage": 1}) == 400
        assert ask("projects.list.all", {"filter": [{"field": "a", "value": 1}]}) == 400
        assert httpx.get(f"{server.url}/login").status_code == 404
        assert len(server.unknown) == 4
        assert server.requests["users.me"] == 2


@contextmanager
def process(state: Path, *arguments: str) -> Iterator[tuple[str, Callable[[], None]]]:
    """A stand-in with a state file: its address, and what kills it."""
    program = [sys.executable, "-m", "embed_pipeline_tests.supervisely_server"]
    with started([*program, "--state", str(state), *arguments], dict(os.environ), stdout=PIPE) as p:
        assert p.stdout
        told = dict(line.split(maxsplit=1) for line in iter(p.stdout.readline, "ready\n"))
        yield told["address"].strip(), lambda: os.killpg(p.pid, signal.SIGKILL)


def test_a_killed_stand_in_comes_back(tmp_path: Path) -> None:
    """A process that is killed comes back with what it was told."""
    with process(tmp_path / "state", "--sample", "1") as (url, kill):
        held = httpx.get(f"{url}/admin/state").json()
        id_ = held["images"][0]["id"]
        call = {"call": "rename_image", "args": {"image_id": id_, "name": "new.jpg"}}
        assert httpx.post(f"{url}/admin", json=call).status_code == 200
        assert httpx.post(f"{url}/admin", json={"call": "_date"}).status_code == 400
        kill()
    with process(tmp_path / "state") as (url, _):
        images = httpx.get(f"{url}/admin/state").json()["images"]
        assert [i["name"] for i in images if i["id"] == id_] == ["new.jpg"]
        assert len(images) == len(held["images"])
