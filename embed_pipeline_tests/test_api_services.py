"""The routes that callers of Supervisely's two services know, field by field, over HTTP."""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from embed_pipeline.api.app import create_app
from embed_pipeline.deployment import Deployment
from embed_pipeline.lease import lease
from embed_pipeline.manifest import MANIFEST
from embed_pipeline.models import clip
from embed_pipeline.pause import pause, resume
from embed_pipeline.project_run import ProjectRun
from embed_pipeline.run_progress import ProgressFile
from embed_pipeline.sample import ALONE, PROJECT, make_sample, matches
from embed_pipeline.search.selection import Selected, Selection
from embed_pipeline.settings import load_settings
from embed_pipeline.sync import sync
from embed_pipeline_tests.conftest import draw, draw_many, load_once
from embed_pipeline_tests.places import make_place, visible
from embed_pipeline_tests.processes import dagster_ui, wait_until
from embed_pipeline_tests.supervisely_place import Platform
from embed_pipeline_tests.web import (
    RecordedRuns,
    TestClient,
    client_of,
    served,
    synced,
    with_recorded_runs,
    with_settings,
)

Fields = dict[str, Any]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """The sample project, synced."""
    fill = partial(make_sample, images=120)
    with synced(tmp_path_factory.mktemp("scenes"), fill, PROJECT) as deployment:
        yield deployment


@pytest.fixture
def runs() -> RecordedRuns:
    """What /embeddings starts."""
    return RecordedRuns()


@pytest.fixture
def client(scenes: Deployment, runs: RecordedRuns) -> Iterator[TestClient]:
    """A caller on this machine."""
    app = create_app(scenes)
    app.state.runs = runs
    with client_of(app) as client:
        yield client


def search(client: TestClient, **fields: Any) -> Fields:
    """The answer to /search in the sample project."""
    answered = client.post("/search", json={"project_id": PROJECT, **fields})
    assert answered.status_code == 200, answered.text
    answer: Fields = answered.json()
    return answer


def ids(answer: Fields) -> list[str]:
    """The images of an answer, in order."""
    return [hit["image_id"] for hit in answer["hits"]]


def images_of(deployment: Deployment, dataset: str | None = None) -> list[str]:
    """The project's image ids."""
    manifest = MANIFEST.read(deployment.project_home(PROJECT).manifest)
    chosen = manifest if dataset is None else manifest.filter(dataset_name=dataset)
    return chosen["image_id"].sort().to_list()


def test_a_prompt_finds_images_in_the_envelope_and_as_plain_json(client: TestClient) -> None:
    """Both forms give the same answer, best first, ten where no limit is given."""
    fields = {"project_id": PROJECT, "prompt": "a red circle"}
    plain = client.post("/search", json=fields).json()
    wrapped = client.post("/search", json={"state": fields, "context": {"outside_request": True}})
    assert wrapped.json() == plain
    assert [len(plain["hits"]), plain["collection_id"]] == [10, None]
    assert plain["message"] == "Found 10 images."
    scores = [hit["score"] for hit in plain["hits"]]
    assert scores == sorted(scores, reverse=True)
    assert matches(plain["hits"][0]["name"], "red", "circle")


def test_a_prompt_with_commas_is_one_text_and_a_list_is_several(client: TestClient) -> None:
    """A comma is a comma."""
    one = search(client, prompt="red circle, blue star", limit=50)
    several = search(client, prompt=["red circle", "blue star"], limit=50)
    assert one["hits"] != several["hits"]
    assert search(client, prompt=["red circle, blue star"], limit=50)["hits"] == one["hits"]


def test_by_image_ids_are_references_and_image_ids_beside_them_the_scope(
    client: TestClient, scenes: Deployment
) -> None:
    """References are left out of what is found."""
    first, second, *rest = images_of(scenes)
    alike = ids(search(client, by_image_ids=[first, second], limit=200))
    assert sorted(alike) == sorted(rest)
    inside = ids(search(client, by_image_ids=[first], image_ids=rest[:5]))
    assert sorted(inside) == sorted(rest[:5])


def test_image_ids_alone_are_references_unless_a_setting_says_scope(
    client: TestClient, scenes: Deployment
) -> None:
    """With or without a prompt; `scope_image_ids` always says scope."""
    first, *rest = images_of(scenes)
    assert ids(search(client, image_ids=[first])) == ids(search(client, by_image_ids=[first]))
    assert first not in ids(search(client, prompt="a star", image_ids=[first], limit=200))
    scoped = search(client, prompt="a star", scope_image_ids=rest[:3])
    assert sorted(ids(scoped)) == sorted(rest[:3])

    with client_of(create_app(with_settings(scenes, image_ids_are_scope=True))) as as_platform:
        found = ids(search(as_platform, prompt="a star", image_ids=rest[:3]))
    assert sorted(found) == sorted(rest[:3])


def test_references_that_are_gone_are_left_out_and_none_left_is_told(
    client: TestClient, scenes: Deployment
) -> None:
    """Those that are left are searched for."""
    first, *_ = images_of(scenes)
    alone = search(client, by_image_ids=[first])
    assert search(client, by_image_ids=["gone.jpg", first])["hits"] == alone["hits"]
    gone = client.post("/search", json={"project_id": PROJECT, "by_image_ids": ["gone.jpg", 77]})
    assert gone.status_code == 404
    assert gone.json()["message"] == "No images found for the provided IDs."


def test_dataset_id_is_the_scope_with_nested_ones_unless_images_are(
    client: TestClient, scenes: Deployment
) -> None:
    """By id or name; where both are given, the images count."""
    alone = images_of(scenes, ALONE)
    assert sorted(ids(search(client, prompt="a heart", dataset_id=ALONE, limit=200))) == alone
    groups = ids(search(client, prompt="a heart", dataset_id="groups", limit=200))
    assert sorted(groups) == sorted(set(images_of(scenes)) - set(alone))
    both = search(client, prompt="a heart", dataset_id="groups", scope_image_ids=alone[:2])
    assert sorted(ids(both)) == alone[:2]


def test_threshold_is_the_least_score_and_nothing_found_is_no_error(client: TestClient) -> None:
    """An answer without hits has the message that callers know."""
    every = search(client, prompt="a red circle", limit=20)["hits"]
    least = every[4]["score"] - 0.0001  # it was rounded
    assert search(client, prompt="a red circle", limit=20, threshold=least)["hits"] == [
        hit for hit in every if hit["score"] >= least
    ]
    nothing = search(client, prompt="a red circle", threshold=1)
    assert (nothing["message"], nothing["hits"]) == ("No similar images found.", [])


def test_a_path_that_is_no_text_breaks_no_answer(tmp_path: Path) -> None:
    """Its odd bytes are shown as U+FFFD; the id finds the image again."""

    def fill(root: Path) -> None:
        odd = draw(root / "cats" / "a.png", 1)
        os.rename(odd, os.fsencode(odd.parent) + b"/\xff.png")

    with synced(tmp_path, fill, "cats") as deployment, client_of(create_app(deployment)) as client:
        asked = {"project_id": "cats", "prompt": "x", "limit": 1}
        [hit] = client.post("/search", json=asked).json()["hits"]
        [image] = client.post("/diverse", json=asked).json()["images"]
    assert hit["path"].endswith("/cats/\ufffd.png")
    assert (image["path"], image["image_id"]) == (hit["path"], hit["image_id"])


@pytest.mark.parametrize(
    ("route", "fields", "status", "named"),
    [
        ("search", {}, 400, "No queries provided"),
        ("search", {"prompt": "  "}, 400, "No queries provided"),
        ("search", {"prompt": []}, 400, "No queries provided"),
        ("search", {"prompt": 7}, 422, "prompt"),
        ("search", {"prompt": "x", "limit": "many"}, 422, "limit"),
        ("search", {"prompt": "x", "limit": 0}, 422, "limit"),
        ("search", {"prompt": "x", "threshold": "high"}, 422, "threshold"),
        ("search", {"by_image_ids": "abc"}, 422, "by_image_ids"),
        ("search", {"by_image_ids": [None]}, 422, "by_image_ids.0"),
        ("search", {"prompt": "x", "dataset_id": []}, 422, "dataset_id"),
        ("search", {"prompt": "x", "dataset_id": "nowhere"}, 400, "no such dataset"),
        ("search", {"project_id": None, "prompt": "x"}, 422, "project_id"),
        ("search", {"project_id": "nowhere", "prompt": "x"}, 404, "nowhere"),
        ("search", {"project_id": True, "prompt": "x"}, 422, "project_id"),
        ("diverse", {}, 422, "sample_size"),
        ("diverse", {"sample_size": "x"}, 422, "sample_size"),
        ("diverse", {"limit": 5, "method": "magic"}, 422, "method"),
        ("diverse", {"limit": 5, "sampling_method": "magic"}, 422, "sampling_method"),
        ("diverse", {"limit": 5, "clustering_method": "magic"}, 422, "clustering_method"),
        ("diverse", {"limit": 5, "num_clusters": 0}, 422, "num_clusters"),
        ("diverse", {"limit": 5, "image_ids": 3}, 422, "image_ids"),
        ("embeddings", {"project_id": None}, 422, "project_id"),
        ("embeddings", {"force": "perhaps"}, 422, "force"),
        ("embeddings", {"image_ids": {}}, 422, "image_ids"),
        ("task_status", {"project_id": None}, 422, "project_id"),
        ("cancel_embeddings", {"project_id": ""}, 422, "project_id"),
        ("embeddings_up_to_date", {"project_id": "nowhere"}, 404, "nowhere"),
    ],
)
def test_a_wrong_field_is_named(
    client: TestClient, route: str, fields: Fields, status: int, named: str
) -> None:
    """With the reason, in one line, and the status that fits."""
    answered = client.post(f"/{route}", json={"state": {"project_id": PROJECT} | fields})
    assert answered.status_code == status, answered.text
    problem = answered.json()
    assert named in problem["message"]
    assert problem["error"]["message"] == problem["message"]
    assert problem["error"]["retryable"] is False


@pytest.mark.parametrize(
    ("fields", "selection"),
    [
        # As their README has it.
        ({"method": "kmeans", "limit": 6}, {"method": "kmeans", "members": "medoid"}),
        ({"method": "random", "limit": 6}, {"method": "random"}),
        ({"method": "farthest", "limit": 6}, {"method": "farthest"}),
        ({"method": "dbscan", "limit": 6}, {"method": "dbscan", "members": "medoid"}),
        # As the service reads it.
        ({"sample_size": 6}, {"method": "dbscan", "members": "random"}),
        (
            {
                "sample_size": 6,
                "sampling_method": "centroids",
                "clustering_method": "kmeans",
                "num_clusters": 3,
            },
            {"method": "kmeans", "members": "medoid", "clusters": 3},
        ),
        (
            {"sample_size": 6, "sampling_method": "random", "clustering_method": "kmeans"},
            {"method": "kmeans", "members": "random"},
        ),
        ({"sample_size": 6, "limit": 9}, {"method": "dbscan", "members": "random"}),
        (
            {"sample_size": 6, "clustering_method": "dbscan", "num_clusters": 3},
            {"method": "dbscan", "members": "random", "clusters": None},
        ),
        (
            {"sample_size": 6, "dataset_id": ALONE},
            {"method": "dbscan", "members": "random", "datasets": [ALONE]},
        ),
    ],
)
def test_diverse_takes_the_fields_of_the_service_and_of_its_readme(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, fields: Fields, selection: Fields
) -> None:
    """Each becomes what it says, and the answer holds the images and what they cover."""
    searcher = client.app.state.searcher  # type: ignore[attr-defined]
    told: list[Selection] = []
    choose = searcher.diverse

    def noted(project: str, asked: Selection) -> Selected:
        told.append(asked)
        chosen: Selected = choose(project, asked)
        return chosen

    monkeypatch.setattr(searcher, "diverse", noted)
    answered = client.post("/diverse", json={"project_id": PROJECT, **fields})
    assert answered.status_code == 200, answered.text
    answer = answered.json()
    assert told == [Selection(limit=6, **selection)]
    assert len({image["image_id"] for image in answer["images"]}) == 6
    assert answer["message"] == "Chose 6 images."
    assert 0 < answer["coverage"]["mean_distance"] <= answer["coverage"]["largest_distance"]
    assert answer["random"].keys() == answer["coverage"].keys()


def test_diverse_inside_images_chooses_among_these(client: TestClient, scenes: Deployment) -> None:
    """A dataset beside them does not count."""
    some = images_of(scenes)[:8]
    asked = {"project_id": PROJECT, "image_ids": some, "dataset_id": "nowhere", "sample_size": 3}
    answer = client.post("/diverse", json=asked).json()
    assert answer["candidates"] == 8
    assert {image["image_id"] for image in answer["images"]} <= set(some)


def test_embeddings_starts_a_run_where_there_is_something_to_do(
    root: Path, scenes: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a project; of all of it anew; or of those that hold the images."""
    monkeypatch.setattr(clip, "load_encoder", load_once)
    cat, _ = draw_many(root / "cats", 2)
    draw_many(root / "dogs", 1, first_seed=50)
    deployment = Deployment(load_settings())
    sync(ProjectRun(deployment, "cats", "run"))
    app, runs = with_recorded_runs(deployment)

    def begin(client: TestClient, **state: Any) -> Fields:
        answered = client.post("/embeddings", json={"state": state, "context": {}})
        assert answered.status_code == 200, answered.text
        answer: Fields = answered.json()
        return answer

    with client_of(app) as client:
        new = begin(client, project_id="dogs", team_id=67890)
        assert new["message"] == "[Project: dogs] Embeddings creation started."
        assert new["runs"] == [{"project_id": "dogs", "run_id": "run 1", "message": new["message"]}]
        current = begin(client, project_id="cats")
        assert current["message"] == "[Project: cats] Nothing to update. Skipping."
        begin(client, project_id="cats", force=True)
        draw_many(root / "cats", 3)
        vectors = begin(client, image_ids=[cat.name], return_vectors=True)
        assert "before the run ends" in vectors["details"]
        nowhere = client.post("/embeddings", json={"image_ids": [5]})
    assert runs.started == [("dogs", False), ("cats", True), ("cats", False)]
    assert nowhere.status_code == 404
    deployment.close()


def test_embeddings_of_a_text_is_the_older_services_form(client: TestClient) -> None:
    """One vector, of length 1."""
    answer = client.post("/embeddings", json={"text": "Your text to embed"}).json()
    [vector] = answer["embeddings"]
    assert len(vector) == 256
    assert abs(sum(x * x for x in vector) - 1) < 1e-3


def test_what_is_in_progress_or_paused_is_a_conflict(
    client: TestClient, runs: RecordedRuns, scenes: Deployment
) -> None:
    """Nothing is started."""
    runs.working.add(PROJECT)
    force = {"project_id": PROJECT, "force": True}
    busy = client.post("/embeddings", json=force)
    assert (busy.status_code, busy.json()["error"]["type"]) == (409, "lease_held")
    assert "already in progress" in busy.json()["message"]
    runs.working.clear()
    pause(scenes.project_home(PROJECT))
    paused = client.post("/embeddings", json=force)
    resume(scenes.project_home(PROJECT))
    assert (paused.status_code, paused.json()["error"]["type"]) == (409, "project_paused")
    assert runs.started == []


def test_cancelling_tells_whether_there_was_something_to_cancel(
    client: TestClient, runs: RecordedRuns
) -> None:
    """In the generator's words, and in the auto-updater's on its own route."""
    asked = {"state": {"project_id": PROJECT}}
    nothing = client.post("/cancel_embeddings", json=asked).json()
    assert nothing["message"] == "No running embeddings task found."
    assert nothing["is_current_task"] is False
    runs.working.add(PROJECT)
    cancelled = client.post("/cancel_embeddings", json=asked).json()
    assert cancelled["message"] == "Embeddings task has been cancelled."
    assert (cancelled["success"], cancelled["is_current_task"]) == (True, True)
    runs.working.add(PROJECT)
    stopped = client.post(f"/stop-embeddings-update/{PROJECT}").json()
    assert stopped.keys() == {"project_id", "is_current_task", "success", "message", "details"}
    assert stopped["is_current_task"] is True
    assert client.post("/stop-embeddings-update/nowhere").status_code == 404


def test_task_status_tells_of_the_newest_run(client: TestClient, runs: RecordedRuns) -> None:
    """In the services' words; one that is queued counts as running."""

    def status() -> tuple[str, bool]:
        answer = client.post("/task_status", json={"project_id": PROJECT}).json()
        assert answer["message"]
        return answer["status"], answer["is_running"]

    told = [status()]
    for ended in ("success", "failed", "canceled"):
        runs.ended[PROJECT] = ended
        told.append(status())
    runs.working.add(PROJECT)
    told.append(status())
    assert told == [
        ("no_task", False),
        ("completed", False),
        ("failed", False),
        ("cancelled", False),
        ("running", True),
    ]
    deprecated = client.post("/check_background_task_status", json={"task_id": PROJECT})
    assert deprecated.json()["status"] == "in_progress"
    assert client.post("/check_background_task_status", json={}).status_code == 400


def test_processing_progress_is_that_of_the_run_that_works_now(
    client: TestClient, scenes: Deployment
) -> None:
    """Of one project, or of all; none where nothing works, however the last run ended."""
    home = scenes.project_home(PROJECT)
    none = client.post("/processing_progress", json={"project_id": PROJECT}).json()
    assert none == {
        "message": f"No processing progress found for project {PROJECT}",
        "progress": None,
    }
    with lease(home, PROJECT, "run 7", 0):
        ProgressFile(home, "7")("embed", 30, 120)
        one = client.post("/processing_progress", json={"project_id": PROJECT}).json()["progress"]
        every = client.post("/processing_progress", json={"state": {"project_id": None}}).json()
    assert (one["total"], one["current"], one["status"]) == (120, 30, "processing")
    assert every["progress"] == {PROJECT: one}
    home.progress.unlink()


def test_up_to_date_is_a_bare_true_or_false(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """True where the collection was proved equal to the project as it is now."""
    monkeypatch.setattr(clip, "load_encoder", load_once)
    draw_many(root / "cats", 1)
    deployment = Deployment(load_settings())
    app, _ = with_recorded_runs(deployment)
    told = []
    with client_of(app) as client:

        def ask() -> None:
            told.append(client.post("/embeddings_up_to_date", json={"project_id": "cats"}).json())

        ask()
        sync(ProjectRun(deployment, "cats", "run"))
        ask()
        draw_many(root / "cats", 2)
        ask()
    deployment.close()
    assert told == [False, True, False]


def test_health_is_the_services_json(
    root: Path, dagster_storage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Live at once, ready after a vector was made; /health asks everything and says what is wrong."""
    monkeypatch.setattr(clip, "load_encoder", load_once)
    deployment = Deployment(load_settings())
    app, runs = with_recorded_runs(deployment)
    runs.instance = dagster_storage  # type: ignore[attr-defined]
    with client_of(app) as client:
        for route in ("/health/live", "/livez", "/is_alive"):
            assert client.get(route).status_code == 200
        wait_until(lambda: client.get("/health/ready").status_code == 200, 30, "the model")
        assert client.get("/readyz").json() == {
            "status": "ready",
            "model": "demo",
            "supports_images": True,
        }
        assert client.post("/is_running").json()["running"] is True
        health = client.get("/health")
    assert health.status_code == 503  # no daemon runs here
    assert health.json()["status"] == "degraded"
    assert health.json()["checks"]["qdrant"] == "healthy"
    assert health.json()["checks"]["scheduler"].startswith("unhealthy: Dagster's daemon")
    deployment.close()


def test_not_ready_while_the_model_gives_no_vector(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service lives all the same."""
    monkeypatch.setenv("EMBED_MODEL", str(root))
    with client_of(create_app(Deployment(load_settings()))) as client:
        assert client.get("/health/live").status_code == 200
        waiting = client.get("/health/ready")
    assert (waiting.status_code, waiting.json()["status"]) == (503, "starting")


EXAMPLES: list[tuple[str, Fields]] = [
    ("embeddings", {"project_id": 0, "team_id": 67890}),
    ("embeddings", {"image_ids": [0, 1, 2], "team_id": 67890}),
    ("embeddings", {"project_id": 0, "team_id": 67890, "force": True}),
    ("search", {"project_id": 0, "limit": 50, "prompt": "red car on highway"}),
    ("search", {"project_id": 0, "limit": 20, "image_ids": [0, 1]}),
    ("search", {"project_id": 0, "limit": 30, "prompt": "sports car", "image_ids": [0]}),
    ("diverse", {"project_id": 0, "method": "kmeans", "limit": 100}),
    ("diverse", {"project_id": 0, "method": "random", "limit": 50}),
]


def test_every_published_example_is_answered_through_the_sdk(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sent with `api.task.send_request`; results are in an entities collection of the caller's."""
    from supervisely import Api  # not before the stand-in has imported it

    monkeypatch.setenv("SUPERVISELY_SKIP_HTTPS_USER_HELPER_CHECK", "true")
    project, _, images = platform.make_project(5)
    deployment = platform.deployment
    sync(ProjectRun(deployment, str(project), "run"))
    app, runs = with_recorded_runs(deployment)
    sdk = Api(platform.stand_in.url, "token", retry_count=1)
    answers = []
    with served(app) as url:
        platform.instance.apps[55] = url
        for method, data in EXAMPLES:
            numbered = dict(data)
            if "project_id" in data:
                numbered["project_id"] = project
            if "image_ids" in data:
                numbered["image_ids"] = [images[number] for number in data["image_ids"]]
            answers.append(sdk.task.send_request(55, method, numbered, raise_error=True))

    *embeddings, by_text, by_image, by_both, by_kmeans, by_random = answers
    assert [answer["message"] for answer in embeddings] == [
        f"[Project: {project}] Nothing to update. Skipping.",
        f"[Project: {project}] Nothing to update. Skipping.",
        f"[Project: {project}] Embeddings creation started.",
    ]
    assert runs.started == [(str(project), True)]
    found = [
        {int(hit["image_id"]) for hit in each["hits"]} for each in (by_text, by_image, by_both)
    ]
    assert found == [set(images), set(images[2:]), set(images[1:])]
    chosen = [{int(i["image_id"]) for i in each["images"]} for each in (by_kmeans, by_random)]
    assert chosen == [set(images), set(images)]
    for answer, within in ((by_both, found[2]), (by_random, chosen[1])):
        collection = platform.instance.collections[answer["collection_id"]]
        assert set(collection.items) == within
        assert sdk.entities_collection.get_info_by_id(collection.id).type == "aiSearch"


# Dagster's client calls its own library so.
@pytest.mark.filterwarnings("ignore:Using variable_values and operation_name arguments")
def test_work_is_started_and_stopped_as_dagster_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a real Dagster, none of it in this process; where that is down, the remedy is told."""
    place = make_place(tmp_path)
    visible(place, monkeypatch)
    (place.root / "cats").mkdir()
    monkeypatch.setenv("DAGSTER_HOME", place.env["DAGSTER_HOME"])
    monkeypatch.setenv("EMBED_DAGSTER_URL", "http://127.0.0.1:9")
    cats = {"project_id": "cats"}
    with client_of(create_app(Deployment(load_settings()))) as client:
        down = client.post("/embeddings", json=cats)
    assert down.status_code == 503
    assert "EMBED_DAGSTER_URL=http://127.0.0.1:9" in down.json()["message"]
    assert "embed-pipeline dev" in down.json()["message"]

    (place.root / "cats").rmdir()
    with dagster_ui(place.env, tmp_path / "dev.log") as ui:
        # The sensor finds nothing to do at its first look, and somebody at work at its next.
        wait_until(ui.ticks, 60, "the sensor's first look")
        draw_many(place.root / "cats", 3)
        monkeypatch.setenv("EMBED_DAGSTER_URL", f"http://127.0.0.1:{ui.port}")
        with client_of(create_app(Deployment(load_settings()))) as client:
            begun = client.post("/embeddings", json=cats | {"force": True})
            assert begun.status_code == 200, begun.text
            [run] = begun.json()["runs"]
            assert client.post("/task_status", json=cats).json()["status"] == "running"
            assert client.post("/embeddings", json=cats | {"force": True}).status_code == 409
            assert ui.wait_for(run["run_id"], "SUCCESS", "FAILURE") == "SUCCESS"
            assert client.post("/task_status", json=cats).json()["status"] == "completed"
            assert client.post("/embeddings_up_to_date", json=cats).json() is True
            assert len(search_in(client, "cats")) == 3

            [run] = client.post("/embeddings", json=cats | {"force": True}).json()["runs"]
            stopped = client.post("/cancel_embeddings", json=cats)
            assert stopped.status_code == 200, stopped.text
            assert stopped.json()["is_current_task"] is True
            assert ui.status(run["run_id"]) == "CANCELED"
            assert client.post("/task_status", json=cats).json()["status"] == "cancelled"


def search_in(client: TestClient, project: str) -> list[str]:
    """The images that a search finds."""
    return ids(client.post("/search", json={"project_id": project, "prompt": "x"}).json())
