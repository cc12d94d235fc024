"""What was wrong with the two services that this project replaces: faults of their data, by number.

Each of these tests fails on what those services did. Faults of their runs: test_old_faults_runs.py.
"""

import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from PIL import Image, ImageOps

from embed_pipeline import embedding, failures
from embed_pipeline.collection_state import CollectionState
from embed_pipeline.defs.run_history import DagsterRuns
from embed_pipeline.errors import (
    CollectionMissing,
    QueryError,
    SourceRefused,
    SourceUnavailable,
    StoreError,
)
from embed_pipeline.images.decode import decode
from embed_pipeline.images.preprocess import preprocess
from embed_pipeline.models.protocol import Vectors
from embed_pipeline.project_run import ProjectRun
from embed_pipeline.projects import project_statuses
from embed_pipeline.search.query import Query
from embed_pipeline.search.searcher import Searcher
from embed_pipeline.sources import supervisely_listing
from embed_pipeline.sources.protocol import Wanted
from embed_pipeline.sources.supervisely_listing import UNMARKED
from embed_pipeline.stores import qdrant_edge, qdrant_server
from embed_pipeline.sync import sync
from embed_pipeline.watching import Tick, look_around
from embed_pipeline_tests.qdrant_double import Fault as QdrantFault
from embed_pipeline_tests.qdrant_double import QdrantDouble, not_done, refuse
from embed_pipeline_tests.supervisely_door import Door, Exchange
from embed_pipeline_tests.supervisely_faults import Exchange as Asked
from embed_pipeline_tests.supervisely_faults import slow, status, then
from embed_pipeline_tests.supervisely_instance import Instance
from embed_pipeline_tests.supervisely_lists import Body, Reply
from embed_pipeline_tests.supervisely_place import BRIEF, Platform, picture
from embed_pipeline_tests.test_sync import counts

STAMPS = "images.embeddings-updated-at.update"
CAT = Query(texts=["a cat"], limit=100)


def run_of(platform: Platform, project: int) -> ProjectRun:
    """A run on the project, in everything as in a new process."""
    return ProjectRun(platform.deployment, str(project), uuid4().hex)


def synced(platform: Platform, project: int, **options: Any) -> dict[str, int]:
    """What a sync did. It is one without Dagster, which sets and clears the project's flag."""
    return counts(sync(run_of(platform, project), **options))


def look(platform: Platform) -> Tick:
    """What the sensor does, but that nobody starts the runs it asks for."""
    return look_around(platform.deployment, DagsterRuns(platform.dagster))


def asked_for(tick: Tick) -> list[str]:
    """The projects that a look asks for, in order."""
    return [request.project for request in tick.requests]


def found(platform: Platform, project: int) -> set[int]:
    """The images that a search finds."""
    return {
        int(hit.image_id) for hit in Searcher(platform.deployment).search(str(project), CAT).hits
    }


def stamped(platform: Platform, project: int) -> set[int]:
    """The images that the platform shows as embedded."""
    return {id_ for id_, at in platform.instance.stamped(project).items() if at}


def of_image(*images: int) -> Callable[[Body], bool]:
    """Whether a request for bytes is for one of these."""
    return lambda asked: (
        asked.get("id") in images or any(f"/{id_}." in asked.get("path", "") for id_ in images)
    )


def batches_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is committed."""
    monkeypatch.setenv("EMBED_BATCH_SIZE", "2")
    monkeypatch.setattr(embedding, "COMMIT_SECONDS", 0.0)


@pytest.fixture
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three rows each, of whatever is listed."""
    monkeypatch.setattr(supervisely_listing, "PAGE_IMAGES", 3)
    for store in (qdrant_edge, qdrant_server):
        monkeypatch.setattr(store, "_PAGE_POINTS", 3)
        monkeypatch.setattr(store, "_PAGE_POINTS_WITH_VECTORS", 3)


def meanwhile(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object], encoded: int = 0) -> None:
    """Do something once while a run embeds: when so many batches were encoded, before the next."""
    encode, left = embedding._encode, [encoded]

    def acting(*batch: Any) -> embedding.Embedded:
        left[0] -= 1
        if left[0] == -1:
            act()
        return encode(*batch)

    monkeypatch.setattr(embedding, "_encode", acting)


def use(double: QdrantDouble, monkeypatch: pytest.MonkeyPatch) -> QdrantDouble:
    """Have the settings name it; it is waited for briefly."""
    monkeypatch.setenv("QDRANT_URL", double.url)
    monkeypatch.setenv("QDRANT_GRPC_PORT", str(double.grpc_port))
    brief = partial(qdrant_server.connect, reads=BRIEF, writes=BRIEF)
    monkeypatch.setattr(qdrant_server, "connect", brief)
    return double


@pytest.fixture
def qdrant(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> Iterator[QdrantDouble]:
    """A stand-in for a Qdrant server, with REST alone."""
    with QdrantDouble(grpc=False) as double:
        yield use(double, monkeypatch)


def test_w01_a_read_that_fails_changes_nothing(platform: Platform, qdrant: QdrantDouble) -> None:
    """Qdrant refuses: a search raises and asks nothing of the platform; a sync raises and embeds nothing."""
    project, _, images = platform.make_project(3)
    synced(platform, project)
    before = platform.instance.stamped(project)
    for code in ("INTERNAL", "UNAVAILABLE", "UNAUTHENTICATED", "RESOURCE_EXHAUSTED"):
        platform.stand_in.reset_counts()
        for verb in ("scroll", "query_points"):
            qdrant.fail(verb, refuse(code), times=None)
            with pytest.raises(StoreError) as raised:
                found(platform, project)
            assert not isinstance(raised.value, CollectionMissing)
            qdrant.heal()
        assert found(platform, project) == set(images)
        assert not platform.stand_in.requests

        qdrant.fail("scroll", refuse(code), times=None)
        with pytest.raises(StoreError):
            synced(platform, project)
        qdrant.heal()
        assert platform.instance.stamped(project) == before
        assert not platform.stand_in.requests["preview"]
    assert synced(platform, project) == {"unchanged": 3}


def test_w01_a_search_without_a_collection_changes_nothing(platform: Platform) -> None:
    """Where there is nothing to search it says so, and AI search stays on."""
    project, _, images = platform.make_project(3)
    synced(platform, project)
    run_of(platform, project).collection.drop()
    platform.stand_in.reset_counts()
    with pytest.raises(CollectionMissing, match="never synced"):
        found(platform, project)
    assert not platform.stand_in.requests
    assert platform.instance.project(project).embeddings_enabled
    assert stamped(platform, project) == set(images)


def test_w02_a_poison_image_stops_nothing(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be decoded, is gone or refused is left out, in this sync and the next; all others go in."""
    batches_of_two(monkeypatch)
    project, dataset, images = platform.make_project(9)
    stand_in, (rotten, gone, refused) = platform.stand_in, images[3:6]
    platform.instance.replace_image(rotten, b"no picture", same_path=True)
    stand_in.fail("preview", status(404), None, when=of_image(gone, refused))
    stand_in.fail("images.download", status(404), None, when=of_image(gone))
    stand_in.fail("images.download", status(500), None, when=of_image(refused))
    assert synced(platform, project) == {"embed": 6, "failed": 3}
    good = {*images} - {rotten, gone, refused}
    assert platform.indexed(project) == stamped(platform, project) == good
    assert platform.instance.project(project).embeddings_updated_at

    good.add(platform.instance.add_image(dataset, "new.png", picture(100)))
    stand_in.reset_counts()
    assert synced(platform, project) == {"embed": 1, "unchanged": 6, "failed": 3}
    assert not stand_in.requests["images.download"], "they are not tried with every sync"

    stand_in.heal()
    monkeypatch.setattr(failures, "FIRST_RETRY", failures.FIRST_RETRY * 0)
    assert synced(platform, project) == {"embed": 2, "unchanged": 7, "failed": 1}
    assert stamped(platform, project) == good | {gone, refused}


def test_w03_a_rebuild_that_dies_loses_nothing(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All images are found while it works and after it died; the next sync embeds the rest anew."""
    project, _, images = platform.make_project(6)
    synced(platform, project)
    batches_of_two(monkeypatch)

    def die() -> None:
        assert platform.indexed(project) == set(images)
        raise KeyboardInterrupt

    meanwhile(monkeypatch, die, encoded=1)
    with pytest.raises(KeyboardInterrupt):
        synced(platform, project, force=True)
    assert found(platform, project) == set(images)
    platform.stand_in.reset_counts()
    assert synced(platform, project) == {"embed": 4, "unchanged": 2}
    assert platform.stand_in.requests["preview"] == 4
    assert platform.indexed(project) == stamped(platform, project) == set(images)


def test_w03_what_qdrant_lost_is_put_back(platform: Platform) -> None:
    """Images that the platform shows as embedded, and no collection holds, are back after one sync."""
    project, _, images = platform.make_project(4)
    synced(platform, project)
    run = run_of(platform, project)
    points = next(run.collection.scroll())
    run.collection.delete(points["point_id"].head(1))
    assert synced(platform, project) == {"reuse": 1, "unchanged": 3}
    run.collection.drop()
    assert stamped(platform, project) == set(images)
    assert synced(platform, project) == {"reuse": 4}
    assert platform.indexed(project) == set(images)


@pytest.mark.parametrize("skew", [-7200, 7200])
def test_w04_what_is_trashed_during_a_run_is_removed_by_the_next(
    platform: Platform, skew: int
) -> None:
    """Also where the instance's clock is hours off: the project's time is not later than the listing."""
    platform.instance.configure(skew=skew)
    project, dataset, images = platform.make_project(3)
    synced(platform, project)
    new = platform.instance.add_image(dataset, "new.png", picture(100))
    platform.stand_in.fail("preview", then(lambda instance: instance.trash_image(images[0])))
    assert synced(platform, project) == {"embed": 1, "unchanged": 3}

    told = platform.instance.project(project).embeddings_updated_at
    added, trashed = (platform.instance.image(image).updated_at for image in (new, images[0]))
    at = [datetime.fromisoformat(str(each)) for each in (added, told, trashed)]
    assert at[0] <= at[1] < at[2]
    assert asked_for(look(platform)) == [str(project)]
    assert synced(platform, project) == {"remove": 1, "unchanged": 3}
    assert images[0] not in platform.indexed(project) | stamped(platform, project)


@pytest.mark.parametrize(
    "fault", [refuse("INTERNAL"), not_done()], ids=["refused", "acknowledged and not done"]
)
def test_w05_a_delete_that_is_not_carried_out_is_an_error_and_done_later(
    platform: Platform, qdrant: QdrantDouble, fault: QdrantFault
) -> None:
    """The run fails, the image keeps its mark, and the next run removes it."""
    project, _, images = platform.make_project(3)
    synced(platform, project)
    platform.instance.trash_image(images[0])
    qdrant.fail("delete", fault, times=None)
    with pytest.raises(StoreError):
        synced(platform, project)
    assert images[0] in platform.indexed(project) & stamped(platform, project)
    qdrant.heal()
    assert synced(platform, project) == {"remove": 1, "unchanged": 2}
    assert images[0] not in platform.indexed(project) | stamped(platform, project)


def test_w05_images_that_fail_hold_up_no_delete(platform: Platform) -> None:
    """What is in the trash goes in the same run; a mark that could not be taken is taken by the next."""
    project, dataset, images = platform.make_project(3)
    synced(platform, project)
    platform.instance.trash_image(images[0])
    platform.instance.add_image(dataset, "rotten.png", b"no picture")
    platform.stand_in.fail(STAMPS, status(500), times=2)
    with pytest.raises(SourceUnavailable):
        synced(platform, project)
    assert platform.indexed(project) == {*images[1:]}
    assert synced(platform, project) == {"unchanged": 2, "failed": 1}
    assert stamped(platform, project) == {*images[1:]}


def test_w08_more_ids_than_fit_one_request_are_all_asked_for(platform: Platform) -> None:
    """Of 120 images exactly the three that changed are said to have changed; 60 projects are all listed."""
    project, _, images = platform.make_project(120)
    source = platform.deployment.source
    rows = next(source.scan(str(project))).images
    located = rows.select("locator", "content_hash").iter_rows()
    wanted = [Wanted(locator, hash_, 1000, "preview64q90") for locator, hash_ in located]
    asked: list[Body] = []
    platform.stand_in.fail("images.list", slow(0), None, when=lambda b: not asked.append(b))
    assert source.changed(str(project), wanted) == set()
    ids = [body["filter"][0]["value"] for body in asked]
    assert [len(body["filter"]) for body in asked] == [1, 1, 1]
    assert sorted(id_ for some in ids for id_ in some) == images
    changed = {images[1], images[60], images[119]}
    for image in changed:
        platform.instance.annotate(image)
        platform.instance.replace_image(image, picture(1000 + image), same_path=True)
    hashes = dict(rows.select("image_id", "content_hash").iter_rows())
    expected = {hashes[str(image)] for image in changed}
    assert source.changed(str(project), wanted) == expected

    team = next(iter(platform.instance.teams))
    projects = [platform.instance.add_project(f"{number}", team) for number in range(60)]
    assert source.projects() == [str(id_) for id_ in (project, *projects)]


@pytest.mark.parametrize("store", ["embedded", "server"])
def test_w09_every_page_counts(
    platform: Platform, small_pages: None, store: str, request: pytest.FixtureRequest
) -> None:
    """Ten images and points, three a page: each sync sees all of them, with their vectors."""
    if store == "server":
        request.getfixturevalue("qdrant")
    project, _, images = platform.make_project(10)
    assert synced(platform, project) == {"embed": 10}
    collection = run_of(platform, project).collection
    assert [page.height for page in collection.scroll()] == [3, 3, 3, 1]
    vectors = [vectors for _, vectors in collection.scroll_vectors()]
    assert len(np.concatenate(vectors)) == 10
    assert platform.indexed(project) == stamped(platform, project) == set(images)
    for image in images[::2]:
        platform.instance.trash_image(image)
    assert synced(platform, project) == {"remove": 5, "unchanged": 5}


def test_w10_points_of_images_that_vanished_break_no_search(platform: Platform) -> None:
    """Before the next sync they are found, after it they are gone; the platform is not asked for them."""
    project, dataset, images = platform.make_project(6)
    synced(platform, project)
    platform.instance.trash_image(images[0])
    new = platform.instance.add_image(dataset, "new.png", picture(100))
    platform.stand_in.reset_counts()
    assert found(platform, project) == set(images)
    assert not platform.stand_in.requests
    # This one is gone when its bytes are asked for.
    platform.stand_in.fail("preview", then(lambda instance: instance.trash_image(new)))
    assert synced(platform, project) == {"remove": 1, "failed": 1, "unchanged": 5}
    assert synced(platform, project) == {"unchanged": 5}
    assert found(platform, project) == platform.indexed(project) == set(images[1:])


def test_w11_points_follow_their_images(platform: Platform) -> None:
    """Moved, renamed, deleted for good, a dataset renamed or removed, and at last the project removed."""
    instance = platform.instance
    project, one, images = platform.make_project(6)
    two, three = (instance.add_dataset(project, name) for name in ("two", "three"))
    instance.move_image(images[5], three)
    synced(platform, project)
    instance.move_image(images[0], two)
    instance.rename_image(images[1], "tom.png")
    instance.rename_dataset(one, "uno")
    instance.remove_dataset(three)
    with instance.lock:
        del instance.images[images[2]], instance.project(project).images[images[2]]
    assert synced(platform, project) == {"relabel": 4, "remove": 2}
    [page] = run_of(platform, project).collection.scroll()
    columns = page.select("image_id", "dataset_id", "dataset_name", "name").sort("image_id")
    assert columns.rows() == [
        (str(images[0]), str(two), "two", "000.png"),
        (str(images[1]), str(one), "uno", "tom.png"),
        (str(images[3]), str(one), "uno", "003.png"),
        (str(images[4]), str(one), "uno", "004.png"),
    ]
    platform.make_project(0, "stays")
    look(platform)
    instance.remove_project(project)
    assert [look(platform).retired for _ in range(2)] == [[], [str(project)]]
    assert platform.indexed(project) == set()


def test_w13_a_list_that_changes_between_pages_is_read_whole(
    platform: Platform, small_pages: None
) -> None:
    """Images are trashed, restored and added: those that stay are embedded and marked, the others later."""
    project, dataset, images = platform.make_project(10)
    platform.instance.trash_image(images[1])

    def change(instance: Instance) -> None:
        instance.trash_image(images[0])
        instance.trash_image(images[2])
        instance.restore_image(images[1])
        instance.add_image(dataset, "new.png", picture(100))

    pages = iter(range(100))
    platform.stand_in.fail("images.list", then(change), when=lambda _: next(pages) == 2)
    synced(platform, project)
    assert platform.indexed(project) == stamped(platform, project) >= {*images[3:]}
    assert asked_for(look(platform)) == [str(project)]
    synced(platform, project)
    there = {id_ for id_, image in platform.instance.images.items() if not image.disabled}
    assert len(there) == 9
    assert platform.indexed(project) == stamped(platform, project) == there


def test_w13_an_image_that_is_listed_twice_counts_once(
    platform: Platform, small_pages: None
) -> None:
    """As it does where pages shift while they are read."""
    project, _, images = platform.make_project(5)
    told: list[Body] = []

    def with_earlier_ones_again(exchange: Asked) -> None:
        page = json.loads(exchange.work().body)
        told.extend(page["entities"])
        page["entities"] += told[:2]
        exchange.send(Reply.of(page))

    platform.stand_in.fail(
        "images.list", with_earlier_ones_again, None, when=lambda body: "pagination_mode" in body
    )
    assert synced(platform, project) == {"embed": 5}
    assert platform.indexed(project) == stamped(platform, project) == set(images)


def encoded(run: ProjectRun, data: bytes) -> Vectors:
    """The vector of a picture."""
    wanted = run.card.preprocessing
    pixels = preprocess(decode(data, target=wanted.size, max_pixels=10**6), wanted)
    return np.asarray(run.deployment.encoder(run.card).encode_images(pixels[None])[0])


@pytest.mark.parametrize(
    ("kind", "condition", "first"),
    [
        ("preview", None, {"failed": 1}),
        ("images.list", UNMARKED, {"embed": 1}),
        (STAMPS, None, {"embed": 1}),
    ],
    ids=["before its download", "before it is marked", "while it is marked"],
)
def test_w14_an_image_replaced_during_a_run_gets_its_new_vector(
    platform: Platform, kind: str, condition: Body | None, first: dict[str, int]
) -> None:
    """At the same path, the platform keeping its mark: the next sync embeds what is there then."""
    platform.instance.configure(nulls_on_change=False)
    project, _, [image] = platform.make_project(1)
    old, new = platform.instance.image(image).data, picture(100)
    replace = then(lambda instance: instance.replace_image(image, new, same_path=True))
    platform.stand_in.fail(
        kind, replace, when=lambda asked: condition in (None, *asked.get("filter", ()))
    )
    assert synced(platform, project) == first
    assert stamped(platform, project) == ({image} if kind == STAMPS else set())
    assert asked_for(look(platform)) == [str(project)]
    assert synced(platform, project) == {"embed": 1}
    assert stamped(platform, project) == {image}
    run = run_of(platform, project)
    [(_, [vector])] = run.collection.scroll_vectors()
    assert vector @ encoded(run, new) > 0.98 > vector @ encoded(run, old)


def test_w25_content_is_fetched_once_by_many_at_once_over_few_connections(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copies are not fetched, in no project; and what made the vectors is known, so another model is seen."""
    monkeypatch.setenv("EMBED_DOWNLOADS", "8")
    connections = []
    connect = Door.get_request
    monkeypatch.setattr(Door, "get_request", lambda door: connections.append(door) or connect(door))
    project, dataset, images = platform.make_project(40)
    data = [platform.instance.image(image).data for image in images[:10]]
    copies = {f"copy-{number}.png": each for number, each in enumerate(data)}
    platform.instance.add_images(dataset, copies)
    platform.stand_in.fail("preview", slow(0.05), times=None)
    assert synced(platform, project) == {"embed": 40, "reuse": 10}
    requests, most = platform.stand_in.requests, platform.stand_in.in_flight_most
    assert (requests["preview"], requests["images.download"]) == (40, 0)
    assert most["preview"] > 4
    assert len(connections) <= 8 + 4
    other, dataset, _ = platform.make_project(0, "copies alone")
    platform.instance.add_images(dataset, copies)
    assert synced(platform, other) == {"reuse": 10}
    assert requests["preview"] == 40

    run = run_of(platform, project)
    state = CollectionState.read(run.home.state)
    assert state
    assert state.space == run.card.space
    assert state.space.startswith("demo-")
    assert run.deployment.store.spaces(run.project_id) == [run.card.space]
    assert asked_for(look(platform)) == []
    monkeypatch.setenv("EMBED_ORIGINALS", "1")
    assert asked_for(look(platform)) == [str(other), str(project)]


def test_w27_whether_projects_are_up_to_date_takes_as_many_requests_for_any_size(
    platform: Platform, small_pages: None
) -> None:
    """No image is listed for it."""
    (large, dataset, _), (small, _, _) = (platform.make_project(n, f"of {n}") for n in (30, 1))
    for project in (large, small):
        synced(platform, project)
    platform.stand_in.reset_counts()
    assert look(platform).skipped == {"unchanged": [str(small), str(large)]}
    assert [status.status for status in project_statuses(platform.deployment)] == ["in sync"] * 2
    assert platform.stand_in.requests == {"projects.list.all": 2, "teams.info": 2}
    platform.instance.add_image(dataset, "new.png", picture(100))
    assert asked_for(look(platform)) == [str(large)]
    assert platform.stand_in.requests == {"projects.list.all": 3, "teams.info": 3}


def test_w30_previews_are_never_smaller_than_the_models_input(platform: Platform) -> None:
    """Wide, tall, turned by EXIF: the short side is at least the model's; tiny ones come as they are."""
    project, dataset, _ = platform.make_project(0)
    shapes = {"wide": (640, 360), "tall": (360, 640), "tiny": (40, 30), "long": (6600, 100)}
    pictures = {f"{name}.jpg": picture(1, size, "JPEG") for name, size in shapes.items()}
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.open(BytesIO(pictures["wide.jpg"])).save(file := BytesIO(), "JPEG", exif=turned)
    pictures["turned.jpg"] = file.getvalue()
    platform.instance.add_images(dataset, pictures)
    paths: list[str] = []
    platform.stand_in.fail("preview", slow(0), None, when=lambda a: not paths.append(a["path"]))

    run = run_of(platform, project)
    side = run.card.preprocessing.size
    [page] = run.deployment.source.scan(str(project))
    sizes = {}
    for name, locator, hash_ in page.images.select("name", "locator", "content_hash").iter_rows():
        wanted = Wanted(locator, hash_, 10**7, run.card.rendition)
        data = run.deployment.source.fetch(str(project), wanted, threading.Event())
        sizes[name] = ImageOps.exif_transpose(Image.open(BytesIO(data))).size
    short = {name: min(size) for name, size in sizes.items()}
    assert min(short.values()) == short.pop("tiny.jpg") == 30
    assert side <= min(short.values())
    assert sizes["turned.jpg"] == sizes["tall.jpg"]
    assert max(short[name] for name in ("wide.jpg", "tall.jpg", "turned.jpg")) <= side + 2
    assert sizes["long.jpg"] == (6600, 100), "its original is as quickly fetched"
    assert len(paths) == 4
    assert min(int(re.search(r"/q:(\d+)/", path)[1]) for path in paths) >= 90


@pytest.fixture
def elsewhere() -> Iterator[str]:
    """An address where nobody may ever call."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()


def test_w32_no_address_of_a_user_is_ever_called(
    platform: Platform, elsewhere: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Links are followed by the instance, redirects by nobody; previews are asked for without a token."""
    project, dataset, [plain, moved] = platform.make_project(2)
    link = platform.instance.add_image(
        dataset, "far.png", picture(5), link=f"{elsewhere}/far.png", hash_known=False
    )
    away = status(302, {"Location": f"{elsewhere}/x"})
    for kind in ("preview", "images.download"):
        platform.stand_in.fail(kind, away, None, when=of_image(moved))
    tokens = []
    get = Exchange.do_GET
    monkeypatch.setattr(
        Exchange, "do_GET", lambda self: tokens.append(self.headers.get("x-api-key")) or get(self)
    )
    assert synced(platform, project) == {"embed": 2, "failed": 1}
    assert platform.indexed(project) == {plain, link}
    assert tokens
    assert {*tokens} == {None}
    platform.stand_in.fail("projects.info", status(307, {"Location": f"{elsewhere}/y"}))
    with pytest.raises(SourceRefused, match=r"has moved, it says to .* set SERVER_ADDRESS"):
        synced(platform, project)


def test_w32_a_text_is_a_text(
    platform: Platform, elsewhere: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What looks like a file or an address is neither opened nor called; an image is never an address."""
    project, _, [image, _] = platform.make_project(2)
    synced(platform, project)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.jpg").write_bytes(platform.instance.image(image).data)
    deployment, name, url = platform.deployment, str(project), f"{elsewhere}/remote/x.jpg"
    by_file = Searcher(deployment).search(name, Query(like=[tmp_path / "x.jpg"])).hits
    assert by_file[0].score > 0.99
    for text in ("x.jpg", url):
        hits = Searcher(deployment).search(name, Query(texts=[text])).hits
        assert len(hits) == 2
        assert max(hit.score for hit in hits) < 0.9
    for given in ("x.jpg", url):
        with pytest.raises(QueryError, match="neither an image id nor a name"):
            Searcher(deployment).search(name, Query(like=[given]))
