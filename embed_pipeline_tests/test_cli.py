"""The command line as people and programs meet it: real processes, their output and their exit codes."""

import json
import logging
import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from typer.testing import CliRunner

from embed_pipeline.cli import app, main
from embed_pipeline_tests.conftest import draw, draw_many
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


def test_json_is_one_document_of_the_documented_keys(env: Environment) -> None:
    """Every command that answers prints exactly the keys that the README lists, and nothing else."""
    counts = {"images", "indexed", "failed", "behind"}
    projects = {"project_id", "name", "status", "progress", *counts}
    statuses = answer("projects", env=env)
    assert [status.keys() for status in statuses] == [projects] * 3
    assert {status["project_id"]: status["status"] for status in statuses} == {
        "cats": "in sync",
        "half": "in sync",
        nasty_text(): "in sync",
    }
    assert answer("verify", "cats", "--vectors", env=env) == {
        "project_id": "cats",
        "indexed": 10,
        "missing": 0,
        "stale": 0,
        "extra": 0,
        "failed": 0,
    }
    hits = answer("search", "cats", "a red circle", "--limit", "3", env=env)
    assert [hit.keys() for hit in hits] == [{"image_id", "name", "dataset", "score", "path"}] * 3
    assert [hit["score"] for hit in hits] == sorted((hit["score"] for hit in hits), reverse=True)
    assert all(Path(hit["path"]).is_file() for hit in hits)
    findings = answer("doctor", env=env)
    assert {finding["what"]: finding["ok"] for finding in findings} == dict.fromkeys(
        ["settings", "home", "source", "model", "store", "dagster"], True
    )


def test_any_name_goes_through(env: Environment) -> None:
    """A project and an image whose names are not UTF-8 are searched and verified by those names."""
    [hit] = answer("search", NASTY, "--like", NASTY + b".png", env=env)
    assert hit["image_id"] == "plain.png"
    assert answer("verify", NASTY, env=env)["indexed"] == 2


def test_images_are_found_by_image(env: Environment) -> None:
    """A reference may be an id, a name or a file; it is left out itself, and --unlike turns away."""
    by_id = answer("search", "cats", "--like", "indoors/image-0003.png", env=env)
    by_name = answer("search", "cats", "--like", "image-0003.png", env=env)
    assert by_id == by_name
    assert "indoors/image-0003.png" not in [hit["image_id"] for hit in by_id]
    file = root_of(env) / "cats" / "indoors" / "image-0003.png"
    [first] = answer("search", "cats", "--like", str(file), "--limit", "1", env=env)
    assert first["image_id"] == "indoors/image-0003.png"
    away = answer("search", "cats", "--like", str(file), "--unlike", by_id[0]["image_id"], env=env)
    assert by_id[0]["image_id"] not in [hit["image_id"] for hit in away]


def test_a_paused_project_is_left_alone(env: Environment) -> None:
    """`pause` holds in other processes: `sync` refuses, `sync --all` leaves it out, `resume` ends it."""
    stopped = {
        "project_id": "cats",
        "is_current_task": False,
        "success": True,
        "message": "[Project: cats] Is not the current active task in the auto-updater.",
        "details": {},
    }
    assert answer("stop", "cats", env=env) == stopped
    assert answer("pause", "cats", env=env) == stopped
    statuses = {status["name"]: status["status"] for status in answer("projects", env=env)}
    assert statuses["cats"] == "paused"
    refused = command("sync", "cats", env=env)
    assert refused.returncode == 1
    assert "to let it go on: embed-pipeline resume cats" in refused.stderr
    others = command("sync", "--all", "--json", env=env)
    assert [o["project_id"] for o in json.loads(others.stdout)] == [nasty_text(), "half"]
    assert "cats: paused, left out" in others.stderr
    resumed = answer("resume", "cats", env=env)
    assert resumed.keys() == {"project_id", "message"}
    [outcome] = answer("sync", "cats", env=env)
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
    env: Environment,
    arguments: list[str],
    variables: dict[str, str],
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Bad input ends with exit code 1 and one line that names the thing and the remedy."""
    for name, value in {**env, **variables}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["embed-pipeline", *arguments])
    monkeypatch.setattr(logging.getLogger("embed_pipeline"), "handlers", [])
    with pytest.raises(SystemExit) as ended:
        main()
    printed = capfd.readouterr()
    assert (ended.value.code, printed.out) == (1, "")
    one_error(printed.err, told)


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ("no/such-model", "no/such-model: not whole in the local"),
        ("/nowhere", "EMBED_MODEL=/nowhere: no such directory"),
    ],
)
def test_errors_of_a_run_are_one_line(env: Environment, model: str, told: str) -> None:
    """What goes wrong inside Dagster's run is told as shortly."""
    done = command("sync", "cats", env={**env, "EMBED_MODEL": model})
    assert done.returncode == 1
    one_error(done.stderr, told)


def one_error(stderr: str, told: str) -> None:
    """One line, and this is in it."""
    [line] = stderr.strip().splitlines()
    assert line.startswith("error: ")
    assert told in line


def test_a_broken_dagster_storage_is_one_line(env: Environment, tmp_path: Path) -> None:
    """Where Dagster cannot use its files, the error names them and what they hold."""
    (tmp_path / "schedules").mkdir()
    (tmp_path / "schedules" / "schedules.db").write_bytes(b"no database" * 1000)
    done = command("sync", "cats", env={**env, "DAGSTER_HOME": str(tmp_path)})
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


def test_failed_images_fail_only_a_strict_sync(env: Environment) -> None:
    """An image that cannot be embedded leaves exit code 0; --strict makes it 1."""
    assert command("sync", "half", env=env).returncode == 0
    assert command("sync", "half", "--strict", env=env).returncode == 1


def test_withheld_removals_are_confirmed_on_the_command_line(
    env: Environment, tmp_path: Path
) -> None:
    """The error names the command that confirms, and that command works."""
    root = tmp_path / "root"
    draw_many(root / "few", 3)
    own = {**env, "EMBED_SOURCE": f"folder:{root}"}
    command("sync", "few", env=own)
    for image in (root / "few").iterdir():
        image.unlink()
    refused = command("sync", "few", env=own)
    assert refused.returncode == 1
    assert "embed-pipeline sync few --confirm-removals 3 (" in refused.stderr
    [outcome] = answer("sync", "few", "--confirm-removals", "3", env=own)
    assert outcome["remove"] == 3


def test_bars_are_for_terminals_only(env: Environment, tmp_path: Path) -> None:
    """A terminal sees a bar with a rate; a pipe sees nothing but the result."""
    root = tmp_path / "root"
    draw_many(root / "new", 30, first_seed=500)
    own = {**env, "EMBED_SOURCE": f"folder:{root}"}
    piped = command("sync", "new", env={**own, "EMBED_HOME": str(tmp_path / "home")})
    assert piped.stderr == ""
    with closing(Terminal()) as terminal:
        arguments = [*PROGRAM, "sync", "new"]
        pipes = {"stdout": subprocess.PIPE, "stderr": terminal.writing}
        with started(arguments, own, **pipes) as process:
            # Read all the time: a full terminal would hold the process up.
            wait_until(lambda: terminal.text() and process.poll() is not None, 120, "the sync")
        assert process.returncode == 0
        assert "30/30" in terminal.text()
