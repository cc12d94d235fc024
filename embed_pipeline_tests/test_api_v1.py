"""The routes of the search page: what they answer, and what they refuse."""

import base64
import os
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.ExifTags import Base as Tag
from pydantic import TypeAdapter

from embed_pipeline.api.app import create_app
from embed_pipeline.deployment import Deployment
from embed_pipeline.project_run import ProjectRun
from embed_pipeline.search.query import query_of
from embed_pipeline.search.selection import Selection
from embed_pipeline.sync import sync
from embed_pipeline_tests.conftest import draw, draw_many
from embed_pipeline_tests.supervisely_place import Platform
from embed_pipeline_tests.web import TestClient, client_of, synced

TURNED = "turned.jpg"
HUGE = "huge.png"
ODD_ID = "//odd%FF.png"


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A synced project with nested datasets, and one that was never synced."""
    with synced(tmp_path_factory.mktemp("v1"), fill, "cats") as deployment:
        yield deployment


@pytest.fixture
def root(deployment: Deployment) -> Path:
    """Where the projects of this file are."""
    return Path(deployment.settings.source.removeprefix("folder:"))


def fill(root: Path) -> None:
    """Make both projects."""
    cats = root / "cats"
    draw_many(cats, 2)
    draw_many(cats / "outer" / "inner", 5, first_seed=10)
    draw_many(root / "unknown", 2)
    turned = Image.new("RGB", (600, 300), "blue")
    turned.paste("red", (0, 0, 300, 300))
    exif = Image.Exif()
    exif[Tag.Orientation] = 6  # to be turned clockwise: what is left comes up
    turned.save(cats / TURNED, exif=exif)
    draw(cats / HUGE, 99, size=(1500, 1000))
    os.rename(draw(cats / "odd.png", 98), os.fsencode(cats) + b"/odd\xff.png")


@pytest.fixture
def client(deployment: Deployment) -> Iterator[TestClient]:
    """A caller on this machine."""
    with client_of(create_app(deployment)) as client:
        yield client


def refused(answer: Any, status: int) -> str:
    """The one line of a refusal, in the one shape of errors."""
    assert answer.status_code == status, answer.text
    told: dict[str, Any] = answer.json()
    assert told["message"] == told["error"]["message"]
    message: str = told["message"]
    return message


def plain(answer: Any) -> Any:
    """What an answer in Python is in JSON."""
    return TypeAdapter(type(answer)).dump_python(answer, mode="json")


def test_projects_say_how_far_they_are(client: TestClient) -> None:
    """Every project, with what it holds and what can be searched."""
    told = {each["project_id"]: each for each in client.get("/v1/projects").json()}
    assert told["cats"] | {"images": 10, "indexed": 10, "status": "in sync"} == told["cats"]
    assert told["unknown"] | {"images": 2, "indexed": 0, "status": "new"} == told["unknown"]


def test_datasets_are_counted(client: TestClient) -> None:
    """Datasets that hold images themselves, by name; none of a project that was never synced."""
    told = client.get("/v1/datasets", params={"project": "cats"}).json()
    assert [(each["name"], each["images"]) for each in told] == [("", 5), ("outer/inner", 5)]
    assert client.get("/v1/datasets", params={"project": "unknown"}).json() == []
    assert "dogs" in refused(client.get("/v1/datasets", params={"project": "dogs"}), 404)


def test_a_search_answers_as_the_searcher_does(
    client: TestClient, deployment: Deployment, root: Path
) -> None:
    """Texts, images of the project and files in base64: the same hits over HTTP as in Python."""
    data = (root / "cats" / "outer" / "inner" / "image-0003.png").read_bytes()
    asked = {"texts": ["a cat, asleep"], "like": ["image-0000.png"], "datasets": ["outer"]}
    file = {"data": base64.b64encode(data).decode(), "weight": 50}
    query = asked | {"like": [*asked["like"], file]}
    answered = client.post("/v1/search", json={"project": "cats", "query": query})
    same = query_of(**(asked | {"like": ["image-0000.png", {"data": data, "weight": 50}]}))
    expected = client.app.state.searcher.search("cats", same)  # type: ignore[attr-defined]
    assert answered.json() == plain(expected)
    assert answered.json()["hits"][0]["name"] == "image-0003.png"


def test_a_selection_answers_as_the_searcher_does(client: TestClient) -> None:
    """The same images and the same coverage over HTTP as in Python."""
    selection = {"limit": 3, "datasets": ["outer"], "seed": 4}
    answered = client.post("/v1/diverse", json={"project": "cats", "selection": selection})
    searcher = client.app.state.searcher  # type: ignore[attr-defined]
    expected = searcher.diverse("cats", Selection(limit=3, datasets=["outer"], seed=4))
    assert answered.json() == plain(expected)
    assert {each["dataset"] for each in answered.json()["images"]} == {"outer/inner"}


def test_a_path_that_is_not_utf8_can_be_answered(client: TestClient) -> None:
    """Its odd bytes are shown as such; the id leads to the image all the same."""
    asked = {"project": "cats", "query": {"like": [ODD_ID], "with_references": True, "limit": 1}}
    [hit] = client.post("/v1/search", json=asked).json()["hits"]
    assert hit["path"].endswith("/cats/odd\N{REPLACEMENT CHARACTER}.png")
    assert picture(client, hit["image_id"]).status_code == 200


@pytest.mark.parametrize(
    ("project", "query", "status", "said"),
    [
        ("cats", {}, 422, "nothing to search for"),
        ("cats", {"texts": ["a"], "limits": 3}, 422, "query.limits"),
        ("cats", {"like": ["nowhere.png"]}, 400, "nowhere.png"),
        ("cats", {"like": [{"data": "no image"}]}, 422, "data"),
        ("cats", {"texts": ["a"], "datasets": ["nowhere"]}, 400, "nowhere"),
        ("dogs", {"texts": ["a"]}, 404, "dogs"),
        ("unknown", {"texts": ["a"]}, 404, "embed-pipeline sync unknown"),
    ],
)
def test_a_search_is_refused_in_one_line(
    client: TestClient, project: str, query: dict[str, Any], status: int, said: str
) -> None:
    """What is wrong with a query is said, with the status that fits."""
    body = {"project": project, "query": query}
    assert said in refused(client.post("/v1/search", json=body), status)


def test_a_large_image_is_refused(deployment: Deployment) -> None:
    """No image of a query is read that has more bytes than EMBED_MAX_IMAGE_SIZE, in either verb."""
    small = deployment.settings.model_copy(update={"max_image_size": 10})
    query = {"like": [{"data": base64.b64encode(bytes(11)).decode()}]}
    with client_of(create_app(Deployment(small))) as client:
        asked = {"project": "cats", "query": query}
        assert "10 bytes" in refused(client.post("/v1/search", json=asked), 413)
        chosen = {"project": "cats", "selection": {"limit": 1, "query": query}}
        assert "10 bytes" in refused(client.post("/v1/diverse", json=chosen), 413)


def picture(client: TestClient, image_id: str, **asked: Any) -> Any:
    """The answer to /v1/picture."""
    headers = asked.pop("headers", {})
    parameters = {"project": "cats", "image_id": image_id, **asked}
    return client.get("/v1/picture", params=parameters, headers=headers)


def test_a_picture_is_small_and_upright(client: TestClient) -> None:
    """A JPEG no longer than the side asked for, turned as the camera was held."""
    answer = picture(client, TURNED, side=128)
    assert answer.headers["content-type"] == "image/jpeg"
    image = Image.open(BytesIO(answer.content))
    assert image.size == (64, 128)
    red, _, blue = image.convert("RGB").getpixel((32, 20))  # type: ignore[misc]  # three bands
    assert red > 200
    assert blue < 50
    refused(picture(client, TURNED, side=2000), 422)


def test_a_picture_is_sent_once(client: TestClient) -> None:
    """A browser that has a picture is told so; another side is another picture."""
    answer = picture(client, HUGE)
    assert answer.headers["cache-control"] == "private, max-age=300"
    known = {"If-None-Match": answer.headers["etag"]}
    assert picture(client, HUGE, headers=known).status_code == 304
    assert picture(client, HUGE, headers=known, side=64).status_code == 200


def test_a_picture_that_cannot_be_shown_is_told(deployment: Deployment, root: Path) -> None:
    """An unknown image, one that is gone by now, one that is larger than the limit: each says so."""
    few = deployment.settings.model_copy(update={"max_image_pixels": 1_000_000})
    with client_of(create_app(Deployment(few))) as client:
        assert "nowhere" in refused(picture(client, "nowhere"), 404)
        assert "limit" in refused(picture(client, HUGE), 422)
        gone = root / "cats" / "image-0001.png"
        gone.rename(root / "elsewhere.png")
        try:
            assert "gone" in refused(picture(client, gone.name), 404)
        finally:
            (root / "elsewhere.png").rename(gone)


def test_a_caller_sees_only_what_the_instance_shows_them(platform: Platform) -> None:
    """With a token, projects that the instance hides are neither listed nor searched nor pictured."""
    (shown, _, images), (hidden, _, others) = (platform.make_project(2, name) for name in "ab")
    instance = platform.instance
    instance.tokens = (*instance.tokens, "caller")
    instance.users["caller"] = 77
    instance.hidden["caller"] = {hidden}
    deployment = platform.deployment
    for project in (shown, hidden):
        sync(ProjectRun(deployment, str(project), "run"))
    app = create_app(deployment)
    with client_of(app, **{"X-Supervisely-Token": "caller"}) as client:
        assert [each["project_id"] for each in client.get("/v1/projects").json()] == [str(shown)]

        def see(project: int, image: int) -> int:
            asked = {"project": str(project), "image_id": str(image)}
            return int(client.get("/v1/picture", params=asked).status_code)

        assert see(shown, images[0]) == 200
        assert see(hidden, others[0]) in (403, 404)


@pytest.mark.parametrize("name", ["", "static/app.js", "static/style.css", "static/icon.svg"])
def test_the_page_comes_under_a_strict_policy(client: TestClient, name: str) -> None:
    """Every file of the page allows nothing from elsewhere and nothing inline, and is sent once."""
    answer = client.get(f"/{name}")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    known = {"If-None-Match": answer.headers["etag"]}
    assert client.get(f"/{name}", headers=known).status_code == 304


@pytest.mark.parametrize("name", ["page.py", "..%2Fv1.py", "%2Fetc%2Fpasswd", ""])
def test_nothing_but_the_page_is_served(client: TestClient, name: str) -> None:
    """No name leads to another file."""
    refused(client.get(f"/static/{name}"), 404)
