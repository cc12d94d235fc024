"""A Supervisely instance as a source: what changes there is in search, or out of it, after one sync."""

import json
import logging
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from datetime import timedelta

import dagster as dg
import pytest
from PIL import Image
from typer.testing import CliRunner

from embed_pipeline import deployment as deployments
from embed_pipeline import failures
from embed_pipeline.changes import Noticed, read_noticed, write_noticed
from embed_pipeline.cli import app
from embed_pipeline.defs.run_history import DagsterRuns
from embed_pipeline.deployment import Deployment
from embed_pipeline.errors import SettingsError
from embed_pipeline.stopping import stop_project
from embed_pipeline.watching import Tick, look_around
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
from embed_pipeline_tests.supervisely_instance import Instance
from embed_pipeline_tests.supervisely_place import Platform, counts, picture

STOP_KEYS = (
    *("cancel_task", "clear_current_task", "clear_in_progress_flag", "clear_update_flag"),
    "clear_autorestart",
)
EMPTY = {"entities": [], "total": 0, "after": None, "perPage": 1000, "pagesCount": 0}


def look(platform: Platform) -> Tick:
    """What the sensor does, but that nobody starts the runs it asks for."""
    return look_around(platform.deployment, DagsterRuns(platform.dagster))


def settle(deployment: Deployment, projects: list[int]) -> None:
    """Have the sensor believe that the projects are in sync."""
    path = deployment.home.noticed(deployment.source.source_id)
    noticed = read_noticed(path)
    for project in map(str, projects):
        _, token = deployment.source.revision(project, as_listed=True)
        noticed[project] = Noticed(project, settled=deployment.revision(token))
    write_noticed(noticed, path)


def starting(platform: Platform, project: int) -> None:
    """A run that has set its flag, and whose process is gone."""
    platform.deployment.source.begin(str(project))
    tags = {"dagster/partition": str(project)}
    platform.dagster.add_run(
        dg.DagsterRun("sync_project", status=dg.DagsterRunStatus.STARTING, tags=tags)
    )


class TestChanges:
    def test_each_change_is_in_search_after_one_sync(self, platform: Platform) -> None:
        """New, changed, annotated, moved, renamed, trashed, restored, and a dataset that is removed."""
        instance = platform.instance
        project, one, images = platform.make_project(6)
        two = instance.add_dataset(project, "two", parent_id=one)
        assert counts(platform.sync(project)) == {"embed": 6}
        assert platform.indexed(project) == set(images)

        steps: list[tuple[Callable[[], object], dict[str, int]]] = [
            (
                lambda: instance.add_image(one, "new.png", picture(100)),
                {"embed": 1, "unchanged": 6},
            ),
            (
                lambda: instance.add_image(two, "copy.png", picture(100)),
                {"reuse": 1, "unchanged": 7},
            ),
            (
                lambda: instance.replace_image(images[0], picture(101), same_path=False),
                {"embed": 1, "unchanged": 7},
            ),
            (lambda: instance.annotate(images[1]), {"unchanged": 8}),
            (lambda: instance.move_image(images[2], two), {"relabel": 1, "unchanged": 7}),
            (lambda: instance.rename_image(images[2], "tom.png"), {"relabel": 1, "unchanged": 7}),
            (lambda: instance.trash_image(images[3]), {"remove": 1, "unchanged": 7}),
            (lambda: instance.restore_image(images[3]), {"reuse": 1, "unchanged": 7}),
            (lambda: instance.rename_dataset(two, "duo"), {"relabel": 2, "unchanged": 6}),
            (lambda: instance.remove_dataset(two), {"remove": 2, "unchanged": 6}),
        ]
        for change, expected in steps:
            change()
            platform.stand_in.reset_counts()
            assert counts(platform.sync(project)) == expected
            there = {id_ for id_, i in instance.project(project).images.items() if not i.disabled}
            assert platform.indexed(project) == there
            if "embed" not in expected:
                assert not platform.stand_in.requests["preview"], "the model was not needed"
        assert set(instance.stamped(project)) >= there

    def test_a_removed_project_leaves_search(self, platform: Platform) -> None:
        """After two listings without it, its points and its partition are gone; others stay."""
        (gone, _, _), (stays, _, images) = (
            platform.make_project(2),
            platform.make_project(2, "dogs"),
        )
        for project in (gone, stays):
            platform.sync(project)
        look(platform)
        platform.instance.remove_project(gone)
        assert look(platform).retired == []
        assert look(platform).retired == [str(gone)]
        assert platform.indexed(gone) == set()
        assert platform.indexed(stays) == set(images)
        assert f"{gone}: no such project" in str(platform.sync(gone).error)

    def test_a_linked_image_is_known_by_its_link_and_time(self, platform: Platform) -> None:
        """Without a hash it is embedded again when its time changes, and not because we marked it."""
        project, dataset, _ = platform.make_project(0)
        platform.instance.configure(bumps_on_stamp=True)
        link = f"{platform.stand_in.url}/links/far.png"
        image = platform.instance.add_image(
            dataset, "far.png", picture(1), link=link, hash_known=False
        )
        assert counts(platform.sync(project)) == {"embed": 1}
        assert platform.instance.stamped(project)[image]
        assert counts(platform.sync(project)) == {"unchanged": 1}
        platform.instance.annotate(image)
        assert counts(platform.sync(project)) == {"embed": 1}


class TestCommands:
    def test_every_command_works(self, platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
        """With a Supervisely instance as with folders; projects are known by their numbers."""
        monkeypatch.setattr(logging.getLogger("embed_pipeline"), "handlers", [])
        monkeypatch.setenv("DAGSTER_HOME", platform.dagster.root_directory)
        monkeypatch.setattr(deployments, "open_deployment", lambda: platform.deployment)
        project, _, images = platform.make_project(4)
        name = str(project)

        def answer(*arguments: str) -> object:
            done = CliRunner().invoke(app, [*arguments, "--json"])
            assert done.exit_code == 0, done.output
            return json.loads(done.stdout)

        assert answer("sync", "--all")[0]["embed"] == 4
        [told] = answer("projects")
        assert (told["project_id"], told["name"], told["status"]) == (name, "cats", "in sync")
        [hit] = answer("search", name, "--like", "002.png", "--limit", "1")
        assert hit["path"].startswith(f"{platform.stand_in.url}/app/images/")
        assert hit["path"].endswith(f"#image-{hit['image_id']}")
        assert len(answer("search", name, "a cat", "--limit", "9")) == 4
        assert answer("verify", name, "--vectors")["indexed"] == len(images)
        not_current = {
            "project_id": project,
            "is_current_task": False,
            "success": True,
            "message": f"[Project: {project}] Is not the current active task in the auto-updater.",
            "details": {},
        }
        assert answer("stop", name) == not_current
        assert answer("pause", name) == not_current
        assert answer("resume", name)["project_id"] == name
        assert answer("prune") == []
        found = {finding["what"]: finding for finding in answer("doctor")}
        assert found["source"]["ok"]

    def test_half_an_image_stays_an_error(self) -> None:
        """Also where the SDK was imported, which has Pillow take it for a whole one."""
        script = (
            "from PIL import Image, ImageFile\n"
            "from embed_pipeline.sources.supervisely_http import Address, Connection\n"
            "from embed_pipeline.sources.supervisely_sdk import open_sdk\n"
            "connection = Connection(Address('http://127.0.0.1:9', 'token'))\n"
            "open_sdk(connection, connection.calls)\n"
            "print(ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS)"
        )
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True
        )
        assert done.stdout == f"False {Image.MAX_IMAGE_PIXELS}\n"

    def test_settings_are_checked_first(
        self, platform: Platform, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Without an address or a token one line says which setting to make; nothing is asked."""
        for name, said in (
            ("SERVER_ADDRESS", "must be like https://"),
            ("API_TOKEN", "a token of"),
        ):
            with monkeypatch.context() as without:
                without.delenv(name)
                with pytest.raises(SettingsError, match=said):
                    platform.deployment.source.projects()
        assert not platform.stand_in.requests

    def test_inside_a_network_the_access_token_is_exchanged(
        self, platform: Platform, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """With the API's own address and no API_TOKEN, as the services before this did."""
        project, _, _ = platform.make_project(1)
        monkeypatch.delenv("API_TOKEN")
        monkeypatch.setenv("SUPERVISELY_API_ACCESS_TOKEN", "access")
        monkeypatch.setenv("SERVER_ADDRESS", "https://supervisely.example")
        monkeypatch.setenv("SUPERVISELY_API_SERVER_ADDRESS", f"{platform.stand_in.url}/public/api")
        assert platform.deployment.source.projects() == [str(project)]


LISTS = ("projects.info", "datasets.list", "images.list")
BROKEN: dict[str, tuple[Fault, str]] = {
    "401": (status(401), "set API_TOKEN to a valid token"),
    "403": (status(403), "a role in the team"),
    "404": (status(404), ""),
    "429": (status(429, {"Retry-After": "60"}), "the next run tries again"),
    "500": (status(500), "the next run tries again"),
    "timeout": (slow(5), "the next run tries again"),
    "trickle": (trickle(60), "the next run tries again"),
    "cut": (cut(), "the next run tries again"),
    "cut midway": (cut_midway(), "the next run tries again"),
    "no JSON": (not_json(), "check SERVER_ADDRESS"),
}


class TestTrouble:
    @pytest.fixture
    def project(self, platform: Platform) -> int:
        """A project of five images, in search."""
        project, _, _ = platform.make_project(5)
        assert counts(platform.sync(project)) == {"embed": 5}
        return project

    @pytest.mark.parametrize("kind", BROKEN)
    def test_a_listing_that_fails_removes_nothing(
        self, platform: Platform, project: int, kind: str
    ) -> None:
        """Whatever the instance does: the error says what to do, and the next run recovers by itself."""
        fault, remedy = BROKEN[kind]
        before = platform.indexed(project)
        for method in LISTS if kind == "500" else LISTS[-1:]:
            platform.stand_in.fail(method, fault, times=None)
            failed = platform.sync(project)
            assert failed.status == "failed"
            assert "\n" not in str(failed.error)
            assert remedy in str(failed.error)
            assert platform.indexed(project) == before
            platform.stand_in.heal()
        assert not platform.instance.project(project).embeddings_in_progress
        assert counts(platform.sync(project)) == {"unchanged": 5}
        assert platform.instance.project(project).error_message is None

    @pytest.mark.parametrize("method", ["images.list", "projects.list.all"])
    def test_a_list_that_is_suddenly_empty_removes_nothing(
        self, platform: Platform, project: int, method: str
    ) -> None:
        """Images: the run fails and says how to confirm. Projects: none is retired, however often."""
        before = platform.indexed(project)
        platform.stand_in.fail(method, answer(EMPTY), times=None)
        if method == "images.list":
            assert "nothing was removed" in str(platform.sync(project).error)
        else:
            for _ in range(4):
                assert look(platform).retired == []
        assert platform.indexed(project) == before
        platform.stand_in.heal()
        assert counts(platform.sync(project)) == {"unchanged": 5}

    def test_half_a_list_is_never_taken_for_the_whole(
        self, platform: Platform, project: int
    ) -> None:
        """Fewer images than the instance counts, or the same page for ever: an error, nothing removed."""
        whole = platform.indexed(project)
        half = {**EMPTY, "total": 5}
        endless = {**EMPTY, "after": "again"}
        for wrong in (half, endless, {"entities": []}):
            platform.stand_in.fail("images.list", answer(wrong), times=None)
            assert "does not list its images as a whole" in str(platform.sync(project).error)
            platform.stand_in.heal()
        assert platform.indexed(project) == whole

    @pytest.mark.parametrize(
        "fault",
        [status(404), status(500), slow(5), cut(), cut_midway(), wrong_bytes(b"<html>")],
        ids=["404", "500", "slow", "cut", "cut midway", "no image"],
    )
    def test_where_a_preview_fails_the_original_is_taken(
        self, platform: Platform, fault: Fault
    ) -> None:
        """Each image has its vector, and the one with a bad preview delays no other."""
        project, _, images = platform.make_project(6)
        bad = f"/{images[2]}.png"
        platform.stand_in.fail("preview", fault, None, lambda asked: asked["path"].endswith(bad))
        assert counts(platform.sync(project)) == {"embed": 6}
        assert platform.stand_in.requests["images.download"] == 2, "for its vector, and to show it"

    @pytest.mark.parametrize(
        "fault",
        [status(404), status(500), slow(5), cut_midway(), wrong_bytes()],
        ids=["404", "500", "slow", "cut midway", "wrong checksum"],
    )
    def test_an_image_that_cannot_be_had_is_a_row(
        self, platform: Platform, fault: Fault, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The others are embedded and marked; it is tried again later, and found then."""
        monkeypatch.setenv("EMBED_ORIGINALS", "true")
        project, _, images = platform.make_project(4)
        platform.stand_in.fail("images.download", fault, None, lambda b: b["id"] == images[1])
        assert counts(platform.sync(project)) == {"embed": 3, "failed": 1}
        marked = platform.instance.stamped(project)
        assert {id_ for id_, at in marked.items() if at} == set(images) - {images[1]}
        platform.stand_in.heal()
        monkeypatch.setattr(failures, "FIRST_RETRY", timedelta(0))
        assert counts(platform.sync(project)) == {"embed": 1, "unchanged": 3}
        assert platform.instance.stamped(project)[images[1]]

    def test_a_token_that_is_taken_back_ends_the_run(
        self, platform: Platform, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A bad run is no row for each of its images: one error that says what to do."""
        project, _, _ = platform.make_project(5)
        for kind in ("preview", "images.download"):
            platform.stand_in.fail(kind, status(401), times=None)
        failed = platform.sync(project)
        assert "set API_TOKEN to a valid token" in str(failed.error)
        assert platform.instance.project(project).error_message == failed.error


class TestDriving:
    @pytest.mark.parametrize("bumps", [False, True])
    def test_our_own_marks_ask_for_no_run(self, platform: Platform, *, bumps: bool) -> None:
        """Also where the platform takes marks and flags for changes; a real change is seen."""
        platform.instance.configure(bumps_on_stamp=bumps)
        project, _, images = platform.make_project(4)
        assert [asked.project for asked in look(platform).requests] == [str(project)]
        assert counts(platform.sync(project)) == {"embed": 4}
        assert look(platform).requests == []
        platform.instance.trash_image(images[0])
        assert [asked.project for asked in look(platform).requests] == [str(project)]
        assert counts(platform.sync(project)) == {"remove": 1, "unchanged": 3}
        assert platform.instance.stamped(project)[images[0]] is None
        assert look(platform).requests == []

    def test_a_change_during_the_run_is_not_taken_for_ours(self, platform: Platform) -> None:
        """What comes in while a run marks its images is asked for by the next look."""
        platform.instance.configure(bumps_on_stamp=True)
        project, dataset, _ = platform.make_project(2)

        def add(instance: Instance) -> None:
            instance.add_image(dataset, "late.png", picture(50))

        platform.stand_in.fail("images.embeddings-updated-at.update", then(add))
        assert counts(platform.sync(project)) == {"embed": 2}
        assert [asked.project for asked in look(platform).requests] == [str(project)]
        assert counts(platform.sync(project)) == {"embed": 1, "unchanged": 2}
        assert look(platform).requests == []

    def test_a_look_at_500_projects_asks_little(self, platform: Platform) -> None:
        """One listing and one request for each team, however many projects; three changed, three runs."""
        teams = [platform.instance.add_team(f"team {i}", "pro") for i in range(2)]
        made = [platform.instance.add_project(f"{i}", teams[i % 2]) for i in range(500)]
        datasets = {project: platform.instance.add_dataset(project, "one") for project in made[:3]}
        deployment = platform.deployment
        deployment.source.projects()
        settle(deployment, made)
        for project, dataset in datasets.items():
            platform.instance.add_image(dataset, "a.png", picture(project))
        platform.stand_in.reset_counts()
        asked = {request.project for request in look(platform).requests}
        assert asked == {str(project) for project in made[:3]}
        assert platform.stand_in.requests == {"projects.list.all": 1, "teams.info": 2}

    def test_projects_of_a_free_team_are_left_out_visibly(self, platform: Platform) -> None:
        """They are not synced; what was indexed stays, and nothing is switched off."""
        project, _, images = platform.make_project(2)
        platform.sync(project)
        team = platform.instance.project(project).team_id
        platform.instance.set_plan(team, "free")
        for _ in range(4):
            assert f"team {team} has the free plan, without AI search: 1 ({project})" in str(
                look(platform)
            )
        assert platform.indexed(project) == set(images)
        assert platform.instance.project(project).embeddings_enabled

    def test_a_stopped_project_stays_stopped(self, platform: Platform) -> None:
        """`stop` clears the flag of a run that was killed; that is no change of the project."""
        platform.instance.configure(bumps_on_stamp=True)
        project, dataset, _ = platform.make_project(3)
        starting(platform, project)
        stopped = stop_project(platform.deployment, platform.dagster, str(project))
        assert asdict(stopped) == {
            "project_id": project,
            "is_current_task": True,
            "success": True,
            "message": "Stopped auto update task successfully",
            "details": dict.fromkeys(STOP_KEYS, "success"),
        }
        assert not platform.instance.project(project).embeddings_in_progress
        for _ in range(2):
            assert "stopped until it changes or is resumed: 1" in str(look(platform))
        platform.instance.add_image(dataset, "new.png", picture(9))
        assert [asked.project for asked in look(platform).requests] == [str(project)]

    @pytest.mark.parametrize("method", ["projects.embeddings-in-progress.update", "projects.info"])
    def test_a_flag_that_cannot_be_cleared_is_told(self, platform: Platform, method: str) -> None:
        """In the words of the service before; the next look clears it."""
        project, _, _ = platform.make_project(1)
        starting(platform, project)
        platform.stand_in.fail(method, status(500), times=None)
        stopped = stop_project(platform.deployment, platform.dagster, str(project))
        assert (stopped.success, stopped.is_current_task) == (False, True)
        assert (
            stopped.message
            == "Failed to clear the in-progress status. Please contact technical support."
        )
        assert stopped.details["clear_in_progress_flag"] == "failed"
        platform.stand_in.heal()
        look(platform)
        assert not platform.instance.project(project).embeddings_in_progress
