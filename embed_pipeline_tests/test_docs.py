"""The documents do not drift: what they name is there, and what is there they name."""

import re
from pathlib import Path

import pytest
import yaml
from pydantic import AliasChoices
from typer.testing import CliRunner

from embed_pipeline.cli import app
from embed_pipeline.deployment import Deployment
from embed_pipeline.project_run import ProjectRun
from embed_pipeline.settings import Settings, load_settings
from embed_pipeline.sync import sync
from embed_pipeline_tests.conftest import draw_many

TOP = Path(__file__).parents[1]
README = (TOP / "README.md").read_text()
COMMANDS = sorted(
    command.callback.__name__ for command in app.registered_commands if command.callback
)


def variable(field: str) -> str:
    """The environment variable of a settings field."""
    alias = Settings.model_fields[field].validation_alias
    if isinstance(alias, AliasChoices):
        return str(alias.choices[0])
    return alias if isinstance(alias, str) else f"EMBED_{field.upper()}"


@pytest.mark.parametrize("field", Settings.model_fields)
def test_every_setting_is_a_line_of_the_readme(field: str) -> None:
    """The README's table names each variable with the same words as the code."""
    description = Settings.model_fields[field].description
    assert f"| `{variable(field)}` | {description} |" in README


def test_the_readme_names_no_other_variable() -> None:
    """Every EMBED_ name in the documents is a setting."""
    known = {variable(field) for field in Settings.model_fields}
    documents = README + (TOP / "ARCHITECTURE.md").read_text() + (TOP / "BENCHMARKS.md").read_text()
    assert set(re.findall(r"\bEMBED_[A-Z_]+\b", documents)) <= known


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_in_the_readme(command: str) -> None:
    """A person finds each command in the README, as a line to copy."""
    assert re.search(rf"^embed-pipeline {command}\b|^make {command}\b", README, re.MULTILINE)


def test_every_command_line_in_the_readme_is_understood() -> None:
    """Each `embed-pipeline` line of the README parses: its command and options exist."""
    lines = re.findall(r"^embed-pipeline (\w+)(.*?)(?:#.*)?$", README, re.MULTILINE)
    assert len(lines) > 8
    for command, rest in lines:
        options = set(re.findall(r"--[a-z-]+", rest))
        help_text = _help(command)
        assert all(option in help_text for option in options), f"{command} {rest}"


def _help(command: str) -> str:
    shown = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200", "TERM": "dumb"})
    assert shown.exit_code == 0
    return shown.output


def test_both_workspaces_name_the_same_code_location() -> None:
    """A location under another name would lose the state of sensors and schedules."""
    import tomllib

    workspace = yaml.safe_load((TOP / "workspace.yaml").read_text())
    (location,) = workspace["load_from"]
    project = tomllib.loads((TOP / "pyproject.toml").read_text())["tool"]["dg"]["project"]
    assert location["python_module"]["location_name"] == project["code_location_name"]


def test_links_between_documents_lead_somewhere() -> None:
    """Every relative link in the documents names a file that is there."""
    for document in TOP.glob("*.md"):
        for target in re.findall(r"\]\((?!http|#)([^)#]+)", document.read_text()):
            assert (TOP / target).exists(), f"{document.name}: {target}"


def test_the_python_of_the_readme_runs(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What it shows is what there is to import, and what it prints."""
    monkeypatch.setenv("DAGSTER_HOME", str(root.parent / "home" / "dagster"))
    draw_many(root / "cats", 3)
    sync(ProjectRun(Deployment(load_settings()), "cats", "run"))
    for example in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        exec(example, {})
    printed = capsys.readouterr().out.splitlines()
    assert [line.rpartition("/")[2] for line in printed[:3]].count("image-0001.png") == 1
    assert printed[3].startswith("Coverage(mean_distance=0.0, ")
    assert printed[4:] == ["None", "nothing to stop"]
