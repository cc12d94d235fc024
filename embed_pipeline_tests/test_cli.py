"""The command line as people and programs meet it: its output and its exit codes.

In processes of its own where a promise is about those, and otherwise in this one, which starts sooner.
"""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from embed_pipeline.cli import app, main
from embed_pipeline.models import clip
from embed_pipeline_tests.conftest import draw, draw_many, load_once
from embed_pipeline_tests.processes import (
    PROGRAM,
    Environment,
    Terminal,
    answer,
    command,
    environment,
    started,
    wait_until,
)

COMMANDS = sorted(entry.callback.__name__ for entry in app.registered_commands if entry.callback)
Here = Callable[..., subprocess.CompletedProcess[str]]
COUNTS = {"embed", "reuse", "relabel", "remove", "unchanged", "failed"}
SYNC_KEYS = {"project_id", "run_id", "status", "error", *COUNTS}
# A project whose name holds what names may hold; the last two bytes are not UTF-8.
NASTY = "50% größe\n'x' ".encode() + b"\xff\xfe"
WITH_MODULES = (
    "import sys; from embed_pipeline import cli; sys.argv[0] = 'embed-pipeline'\n"
    "try: cli.main()\n"
    "finally: print(*sys.modules, file=sys.stderr)"
)


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """Three projects, all synced: cats of ten images, a nasty name, and one of a good and a bad image."""
    top = tmp_path_factory.mktemp("cli")
    root = top / "root"
    draw_many(root / "cats" / "indoors", 8)
    draw(root / "cats" / "a" / "twin.png", 100)
    draw(root / "cats" / "b" / "twin.png", 101)
    os.mkdir(os.fsencode(root) + b"/" + NASTY)
    picture = draw(top / "picture.png", 200).read_bytes()
    for name in (NASTY + b".png", b"plain.png"):
        with open(os.fsencode(root) + b"/" + NASTY + b"/" + name, "wb") as file:
            file.write(picture + name)
    draw(root / "half" / "good.png", 300)
    (root / "half" / "bad.png").write_text("no picture")
    env = environment(
        EMBED_SOURCE=f"folder:{root}",
        EMBED_SOURCE_ID="test",
        EMBED_MODEL="demo",
        EMBED_HOME=top / "home",
    )
    synced = command("sync", "--all", "--json", env=env)
    assert synced.returncode == 0, synced.stderr
    outcomes = {outcome["project_id"]: outcome for outcome in json.loads(synced.stdout)}
    assert all(outcome.keys() == SYNC_KEYS for outcome in outcomes.values())
    assert {name: (o["embed"], o["failed"]) for name, o in outcomes.items()} == {
        "cats": (10, 0),
        "half": (1, 1),
        nasty_text(): (2, 0),
    }
    return env


@pytest.fixture
def here(
    env: Environment, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Here:
    """Run `embed-pipeline` to its end in this process, all but the model opened anew."""
    monkeypatch.setattr(logging.getLogger("embed_pipeline"), "handlers", [])
    monkeypatch.setattr(clip, "load_encoder", load_once)
    for name, value in env.items():
        monkeypatch.setenv(name, value)

    def here(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        capfd.readouterr()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["embed-pipeline", *arguments])
            for name, value in variables.items():
                patch.setenv(name, value)
            with pytest.raises(SystemExit) as ended:
                main()
        assert isinstance(ended.value.code, int)
        return subprocess.CompletedProcess(arguments, ended.value.code, *capfd.readouterr())

    return here


def read(done: subprocess.CompletedProcess[str]) -> Any:
    """The document of a command that succeeded."""
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def nasty_text() -> str:
    """How the nasty project is called in JSON."""
    from embed_pipeline.sources.names import to_text

    return to_text(NASTY)


def root_of(env: Environment) -> Path:
    """The root folder of the projects."""
    return Path(env["EMBED_SOURCE"].removeprefix("folder:"))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str) -> None:
    """`COMMAND --help` says what the command does and what each option means."""
    shown = CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "200"})
    assert shown.exit_code == 0
    assert "Usage:" in shown.output


def test_json_is_one_document_of_the_documented_keys(here: Here) -> None:
    """Every command that answers prints exactly the keys that the README lists, and nothing else."""
    counts = {"images", "indexed", "failed", "behind"}
    projects = {"project_id", "name", "status", "progress", *counts}
    statuses = read(here("projects", "--json"))
    assert [status.keys() for status in statuses] == [projects] * 3
    assert {status["project_id"]: status["status"] for status in statuses} == {
        "cats": "in sync",
        "half": "in sync",
        nasty_text(): "in sync",
    }
    assert read(here("verify", "cats", "--vectors", "--json")) == {
        "project_id": "cats",
        "indexed": 10,
        "missing": 0,
        "stale": 0,
        "extra": 0,
        "failed": 0,
    }
    hits = read(here("search", "cats", "a red circle", "--limit", "3", "--json"))
    keys = {"image_id", "name", "dataset", "score", "confidence", "path"}
    assert [hit.keys() for hit in hits] == [keys] * 3
    assert [hit["score"] for hit in hits] == sorted((hit["score"] for hit in hits), reverse=True)
    assert all(Path(hit["path"]).is_file() for hit in hits)
    findings = read(here("doctor", "--json"))
    assert {finding["what"]: finding["ok"] for finding in findings} == dict.fromkeys(
        ["settings", "home", "source", "model", "store", "dagster"], True
    )


def test_any_name_goes_through(env: Environment, here: Here) -> None:
    """A project and an image whose names are not UTF-8 are searched and verified by those names."""
    [hit] = answer("search", NASTY, "--like", NASTY + b".png", env=env)
    assert hit["image_id"] == "plain.png"
    assert read(here("verify", os.fsdecode(NASTY), "--json"))["indexed"] == 2


def test_images_are_found_by_image(env: Environment, here: Here) -> None:
    """A reference may be an id, a name or a file; it is left out itself, and --unlike turns away."""

    def found(*arguments: str) -> list[str]:
        hits = read(here("search", "cats", *arguments, "--json"))
        return [hit["image_id"] for hit in hits]

    by_id = found("--like", "indoors/image-0003.png")
    assert by_id == found("--like", "image-0003.png")
    assert "indoors/image-0003.png" not in by_id
    file = str(root_of(env) / "cats" / "indoors" / "image-0003.png")
    assert found("--like", file, "--limit", "1") == ["indoors/image-0003.png"]
    assert by_id[0] not in found("--like", file, "--unlike", by_id[0])


def test_a_paused_project_is_left_alone(env: Environment, here: Here) -> None:
    """`pause` holds in other processes: `sync` refuses, `sync --all` leaves it out, `resume` ends it."""
    stopped = {
        "project_id": "cats",
        "is_current_task": False,
        "success": True,
        "message": "[Project: cats] Is not the current active task in the auto-updater.",
        "details": {},
    }
    assert read(here("stop", "cats", "--json")) == stopped
    assert read(here("pause", "cats", "--json")) == stopped
    statuses = {each["name"]: each["status"] for each in read(here("projects", "--json"))}
    assert statuses["cats"] == "paused"
    refused = command("sync", "cats", env=env)
    assert refused.returncode == 1
    assert "to let it go on: embed-pipeline resume cats" in refused.stderr
    others = here("sync", "--all", "--json")
    assert [outcome["project_id"] for outcome in read(others)] == [nasty_text(), "half"]
    assert "cats: paused, left out" in others.stderr
    resumed = read(here("resume", "cats", "--json"))
    assert resumed.keys() == {"project_id", "message"}
    [outcome] = read(here("sync", "cats", "--json"))
    assert outcome["unchanged"] == 10


ERRORS = [
    (["stop", "dogs"], {}, "dogs: no such project"),
    (["rollback", "cats"], {}, "there is no previous space to go back to"),
    (["sync", "dogs"], {}, "dogs: no such project"),
    (["verify", "dogs"], {}, "dogs: no such project"),
    (["sync", "--all", "--confirm-removals", "3"], {}, "--confirm-removals is for one project"),
    (["sync"], {}, "name the projects to sync, or all of them with --all"),
    (
        ["sync", "--all"],
        {"EMBED_SOURCE": "s3://bucket"},
        "EMBED_SOURCE='s3://bucket': not a source",
    ),
    (["projects"], {"EMBED_SOURCE": "folder:/nowhere"}, "/nowhere: cannot be listed"),
    (["projects"], {"EMBED_BATCH_SIZE": "many"}, "EMBED_BATCH_SIZE='many'"),
    (["projects"], {"EMBED_LOG_LEVEL": "LOUD"}, "EMBED_LOG_LEVEL='LOUD'"),
    (["search", "dogs", "a cat"], {}, "dogs: nothing to search, it was never synced"),
    (["search", "cats"], {}, "nothing to search for"),
    (
        ["search", "cats", "--like", "nowhere.png"],
        {},
        "nowhere.png: neither an image id nor a name",
    ),
    (["search", "cats", "--like", "twin.png"], {}, "twin.png: 2 images have this name"),
    (["search", "half", "--like", "bad.png"], {}, "bad.png: it is in half but not embedded"),
]


@pytest.mark.parametrize(
    ("arguments", "variables", "told"), ERRORS, ids=lambda value: str(value)[:40]
)
def test_errors_are_one_line(
    here: Here, arguments: list[str], variables: dict[str, str], told: str
) -> None:
    """Bad input ends with exit code 1 and one line that names the thing and the remedy."""
    done = here(*arguments, **variables)
    assert (done.returncode, done.stdout) == (1, "")
    one_error(done.stderr, told)


def test_errors_of_a_run_are_one_line(env: Environment, here: Here) -> None:
    """What goes wrong inside Dagster's run is told as shortly, whichever way the model is missing."""
    absent = command("sync", "cats", env={**env, "EMBED_MODEL": "no/such-model"})
    nowhere = here("sync", "cats", EMBED_MODEL="/nowhere")
    assert (absent.returncode, nowhere.returncode) == (1, 1)
    one_error(absent.stderr, "no/such-model: not whole in the local")
    one_error(nowhere.stderr, "EMBED_MODEL=/nowhere: no such directory")


def one_error(stderr: str, told: str) -> None:
    """One line, and this is in it."""
    [line] = stderr.strip().splitlines()
    assert line.startswith("error: ")
    assert told in line


def test_a_broken_dagster_storage_is_one_line(here: Here, tmp_path: Path) -> None:
    """Where Dagster cannot use its files, the error names them and what they hold."""
    (tmp_path / "schedules").mkdir()
    (tmp_path / "schedules" / "schedules.db").write_bytes(b"no database" * 1000)
    done = here("sync", "cats", DAGSTER_HOME=str(tmp_path))
    assert done.returncode == 1
    [line] = done.stderr.strip().splitlines()
    assert line.startswith(f"error: {tmp_path}: Dagster's storage fails (file is not a database)")


def test_a_sync_without_changes_loads_no_model(env: Environment) -> None:
    """Where nothing changed, neither torch nor transformers is imported."""
    arguments = [sys.executable, "-c", WITH_MODULES, "sync", "cats"]
    done = subprocess.run(arguments, env=env, capture_output=True, text=True, check=True)
    modules = set(done.stderr.split())
    assert "dagster" in modules
    assert not modules & {"torch", "transformers", "qdrant_client", "supervisely"}


def test_failed_images_fail_only_a_strict_sync(here: Here) -> None:
    """An image that cannot be embedded leaves exit code 0; --strict makes it 1."""
    assert here("sync", "half").returncode == 0
    assert here("sync", "half", "--strict").returncode == 1


def test_withheld_removals_are_confirmed_on_the_command_line(
    here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the command that confirms, and that command works."""
    root = tmp_path / "root"
    draw_many(root / "few", 3)
    monkeypatch.setenv("EMBED_SOURCE", f"folder:{root}")
    assert here("sync", "few").returncode == 0
    for image in (root / "few").iterdir():
        image.unlink()
    refused = here("sync", "few")
    assert refused.returncode == 1
    assert "embed-pipeline sync few --confirm-removals 3 (" in refused.stderr
    [outcome] = read(here("sync", "few", "--confirm-removals", "3", "--json"))
    assert outcome["remove"] == 3


def test_bars_are_for_terminals_only(env: Environment, here: Here, tmp_path: Path) -> None:
    """A terminal sees a bar with a rate; a pipe sees nothing but the result."""
    source = f"folder:{tmp_path / 'root'}"
    draw_many(tmp_path / "root" / "new", 30, first_seed=500)
    piped = here("sync", "new", EMBED_SOURCE=source, EMBED_HOME=str(tmp_path / "home"))
    assert (piped.returncode, piped.stderr) == (0, "")
    with closing(Terminal()) as terminal:
        arguments = [*PROGRAM, "sync", "new"]
        pipes = {"stdout": subprocess.PIPE, "stderr": terminal.writing}
        with started(arguments, {**env, "EMBED_SOURCE": source}, **pipes) as process:
            # Read all the time: a full terminal would hold the process up.
            wait_until(lambda: terminal.text() and process.poll() is not None, 120, "the sync")
        assert process.returncode == 0
        assert "30/30" in terminal.text()
