"""`docker/` without docker: what its files say, and that their commands and health checks work here."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml

from embed_pipeline.settings import Settings
from embed_pipeline_tests.processes import (
    DagsterUI,
    Environment,
    environment,
    free_port,
    started,
    wait_until,
)
from embed_pipeline_tests.test_docs import variable

TOP = Path(__file__).parents[1]
DOCKER = TOP / "docker"
COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if "build" in service}
PROJECT = tomllib.loads((TOP / "pyproject.toml").read_text())
PINS = dict(
    line.split("==")
    for line in (TOP / "constraints.txt").read_text().splitlines()
    if "==" in line and not line.startswith("#")
)

SETTINGS = {variable(field) for field in Settings.model_fields}
# Names that are not ours, and why they are there.
THEIRS = {
    "HF_HOME": "Hugging Face's: where models from the hub are kept",
    "HF_HUB_OFFLINE": "Hugging Face's: set where a model was put into the image",
    "TINI_KILL_PROCESS_GROUP": "that of docker's init: runs hear of a stop, too",
}
# What people give to `docker compose` itself.
FOR_COMPOSE = {"IMAGES", "MODEL", "TORCH_INDEX"}


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions, each with what follows it, on one line."""
    lines = (DOCKER / "Dockerfile").read_text().splitlines()
    text = "\n".join(line for line in lines if not line.lstrip().startswith("#"))
    joined = re.sub(r"\\\n\s*", " ", text).splitlines()
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in joined) if word]


def given(word: str) -> list[str]:
    """What follows an instruction, at each place where it stands."""
    return [rest for instruction, rest in instructions() if instruction == word]


def image_variables() -> dict[str, str]:
    """The Dockerfile's ENV, all stages together."""
    return dict(pair.split("=", 1) for rest in given("ENV") for pair in rest.split())


def supervisely_lines() -> list[str]:
    """What docker/.env is for Supervisely, as the README has it."""
    section = (TOP / "README.md").read_text().split("\n## Run it with docker\n")[1]
    block = next(text for text in section.split("```sh\n")[1:] if text.startswith("IMAGES="))
    return block.split("```")[0].splitlines()


class TestFiles:
    def test_every_variable_is_known(self) -> None:
        """No name in the environment of an image or a service is one that nobody reads."""
        names = image_variables().keys() | {
            name for service in SERVICES.values() for name in service.get("environment", ())
        }
        assert names - SETTINGS == THEIRS.keys()

    @pytest.mark.parametrize("name", OURS)
    def test_every_setting_reaches_the_containers(self, name: str) -> None:
        """Whatever stands in docker/.env, all three see it alike; git and images do not."""
        assert OURS[name]["env_file"] == [{"path": ".env", "required": False}]
        assert OURS["code"]["environment"].items() >= OURS[name]["environment"].items()
        assert ".env" in (DOCKER / ".gitignore").read_text().splitlines()

    def test_compose_asks_for_nothing_else(self) -> None:
        """What compose.yaml itself takes from outside are three names."""
        text = (DOCKER / "compose.yaml").read_text()
        assert set(re.findall(r"(?<!\$)\$\{(\w+)", text)) == FOR_COMPOSE
        arguments = {rest.partition("=")[0] for rest in given("ARG")}
        for service in OURS.values():
            assert service["build"]["args"].keys() == arguments

    def test_the_default_of_an_argument_is_the_same_in_both_files(self) -> None:
        """`docker build` and `docker compose build` make the same image."""
        defaults = dict(rest.split("=", 1) for rest in given("ARG") if "=" in rest)
        for name, value in OURS["code"]["build"]["args"].items():
            assert value == f"${{{name}:-{defaults[name]}}}"

    def test_images_are_pinned(self) -> None:
        """Whoever builds or starts this next year gets the same software."""
        stages = set(re.findall(r" AS (\S+)", "\n".join(given("FROM"))))
        bases = {rest.split()[0] for rest in given("FROM")} - stages
        bases -= {"runtime${MODEL:+-with-model}"}  # one of two stages
        foreign = {service["image"] for service in SERVICES.values() if "build" not in service}
        for image in bases | foreign:
            assert re.search(r":v?\d+\.\d+\.\d+", image), image

    def test_both_last_stages_are_there(self) -> None:
        """With MODEL and without, the last FROM names a stage."""
        last = given("FROM")[-1]
        for value in ("", "owner/name"):
            stage = re.sub(r"\$\{MODEL:\+(.*)\}", r"\1" if value else "", last)
            assert any(rest.endswith(f" AS {stage}") for rest in given("FROM")), stage

    def test_python_is_one_that_we_support(self) -> None:
        """The image's Python is inside pyproject's range."""
        [(major, minor)] = re.findall(r"python:(\d+)\.(\d+)", given("FROM")[0])
        assert PROJECT["project"]["requires-python"] == ">=3.11,<3.14"
        assert (3, 11) <= (int(major), int(minor)) < (3, 14)

    def test_the_server_fits_its_client(self) -> None:
        """Qdrant promises that a client and a server of the same minor version understand each other."""
        server = re.search(r":v(\d+\.\d+)\.", SERVICES["qdrant"]["image"])
        assert server
        assert PINS["qdrant-client"].startswith(f"{server[1]}.")

    def test_packages_are_pinned(self) -> None:
        """Every `pip install` is held to constraints.txt."""
        installs = [
            part for rest in given("RUN") for part in rest.split("&&") if "pip inst" in part
        ]
        assert len(installs) == 4
        assert all("constraint constraints.txt" in install for install in installs)
        # What comes as source is built with pinned tools, too.
        for install in installs[2:]:
            assert "--build-constraint constraints.txt" in install

    def test_every_extra_is_inside(self) -> None:
        """The image reads HEIC and Supervisely: each of pyproject's extras is installed, and pinned."""
        extras = PROJECT["project"]["optional-dependencies"]
        [install] = [rest for rest in given("RUN") if "optional-dependencies" in rest]
        assert set(re.findall(r"\*extras\['(\w+)'\]", install)) == extras.keys()
        names = {re.split(r"[^\w-]", need)[0] for needs in extras.values() for need in needs}
        assert names <= {pin.replace("_", "-") for pin in PINS}

    def test_system_libraries_are_one_layer(self) -> None:
        """One apt-get, as root, before what changes often; it keeps no lists, and CI installs the same."""
        [at] = [at for at, (_, rest) in enumerate(instructions()) if "apt-get" in rest]
        layer = instructions()[at][1]
        update, install, clean = layer.split(" && ")
        assert update.split() == ["apt-get", "update"]
        words = install.split()
        assert words[:4] == ["apt-get", "install", "--yes", "--no-install-recommends"]
        assert clean.strip() == "rm -rf /var/lib/apt/lists/*"
        assert not {word for word, _ in instructions()[:at]} & {"USER", "COPY"}
        libraries = " ".join(words[4:])
        assert f"install {libraries} " in (TOP / ".ci" / "run").read_text()

    def test_the_service_is_not_root(self) -> None:
        """Every stage ends as the same numbered user, who owns the volume."""
        ends = [
            [rest for word, rest in stage if word == "USER"][-1:]
            for stage in _stages()
            if any(word == "USER" for word, _ in stage)
        ]
        assert ends == [["10001"]] * 2
        assert "--uid 10001" in given("RUN")[0]

    def test_no_secret_is_in_a_layer(self) -> None:
        """No argument or variable of the image is a key: what compose gives is not kept in it."""
        names = image_variables().keys() | {rest.partition("=")[0] for rest in given("ARG")}
        assert not [name for name in names if re.search("KEY|TOKEN|SECRET|PASSWORD", name)]

    def test_the_build_sees_what_it_needs(self) -> None:
        """.dockerignore lets through what is copied and what the package is built from; that is there."""
        lines = (TOP / ".dockerignore").read_text().splitlines()
        rules = [line for line in lines if not line.startswith("#")]
        assert rules[0] == "*"
        let_in = {line[1:] for line in rules if line.startswith("!")}
        copied = {source for rest in given("COPY") for source in _sources(rest)}
        hatch = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
        built = {*hatch["packages"], *hatch["force-include"], PROJECT["project"]["readme"]}
        assert let_in == copied | built | {"LICENSE"}
        assert all((TOP / name).exists() for name in let_in)

    @pytest.mark.parametrize("name", SERVICES)
    def test_a_service_is_watched_and_comes_back(self, name: str) -> None:
        """Each service has a health check in exec form, restarts, and waits for healthy ones only."""
        service = SERVICES[name]
        assert service["healthcheck"]["test"][0] == "CMD"
        assert service["restart"] == "unless-stopped"
        for needed in service.get("depends_on", {}).values():
            assert needed == {"condition": "service_healthy"}

    @pytest.mark.parametrize("name", SERVICES)
    def test_nothing_is_published_beyond_this_machine(self, name: str) -> None:
        """Neither the UI nor the code server nor Qdrant asks for a login: ports are on 127.0.0.1 only."""
        for port in SERVICES[name].get("ports", ()):
            assert port.startswith("127.0.0.1:")

    @pytest.mark.parametrize("name", SERVICES)
    def test_no_service_takes_anothers_name(self, name: str) -> None:
        """The run launcher signals a process id where the lock's host is its own: containers share none."""
        assert not {"hostname", "network_mode", "pid"} & SERVICES[name].keys()

    @pytest.mark.parametrize("name", OURS)
    def test_our_services_share_the_volume(self, name: str) -> None:
        """Locks, tables and Dagster's storage are the same for all; images cannot be written."""
        home, images = OURS[name]["volumes"]
        given_here = OURS[name]["environment"]
        assert home == f"home:{given_here['EMBED_HOME']}"
        for variable_ in ("EMBED_HOME", "DAGSTER_HOME"):
            assert image_variables()[variable_] == given_here[variable_]
        assert image_variables()["EMBED_SOURCE"] == f"folder:{images['target']}"
        assert images["read_only"]
        assert OURS[name]["init"]

    @pytest.mark.parametrize("name", OURS)
    def test_the_source_can_be_an_instance(self, name: str) -> None:
        """Nothing here hides what .env says of Supervisely, and one on the same machine is reached."""
        decided = SETTINGS & OURS[name]["environment"].keys()
        assert decided == {
            *("EMBED_HOME", "DAGSTER_HOME"),  # the volume
            *("QDRANT_URL", "QDRANT_API_KEY", "EMBED_DAGSTER_URL"),  # the services
        }
        assert OURS[name]["extra_hosts"] == ["host.docker.internal:host-gateway"]
        asked = {line.partition("=")[0] for line in supervisely_lines()}
        assert asked == {"IMAGES", "EMBED_SOURCE", "SERVER_ADDRESS", "API_TOKEN"}
        comments = {
            line.removeprefix("#   ") for line in (DOCKER / "compose.yaml").read_text().splitlines()
        }
        assert comments >= set(supervisely_lines())

    def test_a_stop_waits_as_long_as_dagster_does(self) -> None:
        """Runs have no less time to keep what they embedded than after Terminate in the UI."""
        monitoring = yaml.safe_load((TOP / "dagster.yaml").read_text())["run_monitoring"]
        minutes = SERVICES["code"]["stop_grace_period"].removesuffix("m")
        assert int(minutes) * 60 >= monitoring["cancel_timeout_seconds"]

    def test_the_workspace_names_the_code_server(self) -> None:
        """Host, port, module and location name are those of the service, workspace.yaml and pyproject."""
        [server] = yaml.safe_load((DOCKER / "workspace.yaml").read_text())["load_from"]
        [local] = yaml.safe_load((TOP / "workspace.yaml").read_text())["load_from"]
        location = PROJECT["tool"]["dg"]["project"]["code_location_name"]
        assert server == {"grpc_server": {"host": "code", "port": 4000, "location_name": location}}
        assert local["python_module"]["location_name"] == location
        command = SERVICES["code"]["command"]
        assert _option(command, "--port") == _option(_check("code"), "--port") == "4000"
        assert _option(command, "-m") == local["python_module"]["module_name"]
        assert _option(command, "--location-name") == location

    def test_compose_understands_its_file(self, tmp_path: Path) -> None:
        """`docker compose config` passes with docker/.env, and says what is missing without."""
        file = shutil.copy(DOCKER / "compose.yaml", tmp_path)
        client = ["docker", "compose", "--file", file]
        if (
            not shutil.which("docker")
            or subprocess.run([*client, "version"], check=False).returncode
        ):
            pytest.skip("no docker compose here")
        env = {name: value for name, value in os.environ.items() if name not in FOR_COMPOSE}
        run = [*client, "config", "--format", "json"]
        refused = subprocess.run(run, capture_output=True, text=True, env=env, check=False)
        assert refused.returncode
        assert "sub-folders are projects" in refused.stderr
        (tmp_path / ".env").write_text("IMAGES=/data/images\nEMBED_DEVICE=cpu\nEMBED_HOME=/mine\n")
        done = subprocess.run(run, capture_output=True, text=True, env=env, check=True)
        services = json.loads(done.stdout)["services"]
        assert services.keys() == SERVICES.keys()
        assert services["daemon"]["environment"]["EMBED_DEVICE"] == "cpu"
        assert services["daemon"]["environment"]["EMBED_HOME"] == "/data"
        assert services["code"]["volumes"][1]["source"] == "/data/images"
        # For Supervisely, as the README says it; the shell's source is another matter.
        lines = supervisely_lines()
        (tmp_path / ".env").write_text("\n".join(lines))
        env["EMBED_SOURCE"] = "folder:/elsewhere"
        done = subprocess.run(run, capture_output=True, text=True, env=env, check=True)
        for name in OURS:
            service = json.loads(done.stdout)["services"][name]
            assert service["environment"].items() >= dict(line.split("=") for line in lines).items()
            assert service["environment"]["EMBED_SOURCE"] == "supervisely"
            assert service["volumes"][1]["source"] == str(tmp_path)


def _stages() -> Iterator[list[tuple[str, str]]]:
    stage: list[tuple[str, str]] = []
    for instruction in instructions():
        if instruction[0] == "FROM":
            yield stage
            stage = []
        stage.append(instruction)
    yield stage


def _sources(copy: str) -> list[str]:
    return [word for word in copy.split()[:-1] if not word.startswith("--")]


def _option(command: list[str], name: str) -> str:
    return command[command.index(name) + 1]


def _check(service: str) -> list[str]:
    """A service's health check as the container runs it."""
    return [word.replace("$$", "$") for word in SERVICES[service]["healthcheck"]["test"][1:]]


# ------------------------------------------------------------------------------------------------
# The same commands, run here


class _Answer(BaseHTTPRequestHandler):
    """Answers /readyz and /server_info with the status that the test set, all else with 404."""

    status: ClassVar[int] = 200

    def do_GET(self) -> None:
        known = self.path in {"/readyz", "/server_info"}
        self.send_response(self.status if known else 404)
        self.end_headers()
        self.wfile.write(b"as it is\n")

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  the base class's name
        """Say nothing."""


@contextmanager
def server(status: int) -> Iterator[int]:
    """A server whose health is `status`; its port."""
    handler = type("Answer", (_Answer,), {"status": status})
    with HTTPServer(("127.0.0.1", 0), handler) as listening:
        threading.Thread(target=listening.serve_forever, args=(0.02,), daemon=True).start()
        yield listening.server_port
        listening.shutdown()


def outcome(command: list[str], env: Environment) -> int:
    """The exit code of a health check."""
    return subprocess.run(command, env=env, capture_output=True, timeout=60, check=False).returncode


def _on_port(command: list[str], old: int, new: int) -> list[str]:
    assert any(str(old) in word for word in command)
    return [re.sub(rf"\b{old}\b", str(new), word) for word in command]


@pytest.fixture
def env(tmp_path: Path) -> Environment:
    """The variables of a container, with our interpreter's programs first on PATH."""
    home = tmp_path / "data"
    home.mkdir()
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return environment(
        EMBED_SOURCE=f"folder:{tmp_path / 'images'}",
        EMBED_HOME=home,
        DAGSTER_HOME=home / "dagster",
        EMBED_MODEL="demo",
        PATH=path,
    )


@pytest.mark.parametrize(("service", "port"), [("qdrant", 6333), ("webserver", 3000)])
def test_a_health_check_tells_health(service: str, port: int, env: Environment) -> None:
    """It passes for 200 only: neither for another status, nor where nobody listens."""
    with server(200) as healthy:
        assert outcome(_on_port(_check(service), port, healthy), env) == 0
    assert outcome(_on_port(_check(service), port, healthy), env) != 0
    with server(503) as ill:
        assert outcome(_on_port(_check(service), port, ill), env) != 0


def test_the_entrypoint_prepares_and_becomes_the_command(env: Environment) -> None:
    """DAGSTER_HOME has our dagster.yaml, and the process is the command's: its arguments, its exit code."""
    entrypoint = str(DOCKER / "entrypoint.sh")
    assert os.access(entrypoint, os.X_OK)
    done = subprocess.run(
        [entrypoint, "sh", "-c", 'echo "$1"; exit 7', "sh", "two words"],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.returncode) == ("two words\n", 7), done.stderr
    written = Path(env["DAGSTER_HOME"]) / "dagster.yaml"
    assert written.read_text() == (TOP / "dagster.yaml").read_text()


def test_the_services_work_together(tmp_path: Path, env: Environment) -> None:
    """Started as compose.yaml starts them, on free ports, each gets healthy and the UI has the assets."""
    code, web = free_port(), free_port()
    workspace = tmp_path / "workspace.yaml"
    text = (DOCKER / "workspace.yaml").read_text()
    workspace.write_text(text.replace("host: code", "host: localhost").replace("4000", str(code)))

    def here(words: list[str]) -> list[str]:
        differ = {"4000": str(code), "3000": str(web), "/app/workspace.yaml": str(workspace)}
        words = [differ.get(word, word).replace(":3000/", f":{web}/") for word in words]
        return ["127.0.0.1" if word == "0.0.0.0" else word for word in words]

    with ExitStack() as stack, (tmp_path / "log").open("wb") as log:
        for name in ("code", "webserver", "daemon"):  # each waits for the one before
            words = [str(DOCKER / "entrypoint.sh"), *here(SERVICES[name]["command"])]
            process = stack.enter_context(started(words, env, stdout=log, stderr=log))

            def healthy(name: str = name, process: subprocess.Popen[str] = process) -> bool:
                assert process.poll() is None, (tmp_path / "log").read_text()
                return outcome(here(_check(name)), env) == 0

            # A check is a process of Dagster's, which takes time from the service that it waits for.
            wait_until(healthy, 60, f"{name} to be healthy", every=1)
        wait_until(DagsterUI(web).is_ready, 30, "the code location")
