"""Real processes for tests: the command line, and the Dagster UI with its daemon."""

import fcntl
import json
import os
import pty
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, TypeVar

from embed_pipeline_tests.conftest import OUR_VARIABLES

Found = TypeVar("Found")
Environment = Mapping[str, str]

PIPES = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
PROGRAM = [sys.executable, "-m", "embed_pipeline.cli"]


def wait_until(
    look: Callable[[], Found | None], seconds: float, what: str, every: float = 0.05
) -> Found:
    """The first true result of `look`, asked for `every` so many seconds; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, f"waited {seconds:g} s for {what}"
        time.sleep(every)
    return found


def environment(**ours: object) -> dict[str, str]:
    """What a process of ours is given: this process's environment, our variables replaced."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(OUR_VARIABLES)}
    kept.pop("PYTHONDONTWRITEBYTECODE", None)
    general = {"HF_HUB_OFFLINE": "1", "TERM": "xterm-256color"}
    return kept | general | {name: str(value) for name, value in ours.items()}


def command(*arguments: str | bytes, env: Environment) -> subprocess.CompletedProcess[str]:
    """Run `embed-pipeline` to its end."""
    return subprocess.run(
        [*PROGRAM, *arguments], env=env, capture_output=True, text=True, timeout=120, check=False
    )


def answer(*arguments: str | bytes, env: Environment) -> Any:
    """What `embed-pipeline … --json` prints, where it succeeds."""
    done = command(*arguments, "--json", env=env)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@contextmanager
def started(
    arguments: Sequence[str], env: Environment, **popen: Any
) -> Iterator[subprocess.Popen[str]]:
    """A process in a session of its own, all of which is gone on leaving."""
    process = subprocess.Popen(arguments, env=env, text=True, start_new_session=True, **popen)
    try:
        yield process
    finally:
        for number in (signal.SIGINT, signal.SIGKILL):
            if alive(process):
                os.killpg(process.pid, number)
                _wait_for_group(process, 10)
        process.communicate()


class Terminal:
    """A terminal for a process to write to, wide enough that nothing is cut."""

    def __init__(self) -> None:
        self._reading, self.writing = pty.openpty()
        fcntl.ioctl(self.writing, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 250, 0, 0))
        self._seen = b""

    def text(self) -> str:
        """All that was written to it so far, without colours and movements of the cursor."""
        while select.select([self._reading], [], [], 0)[0]:
            self._seen += os.read(self._reading, 1 << 16)
        return re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", self._seen.decode(errors="replace"))

    def close(self) -> None:
        """Close both ends."""
        os.close(self._reading)
        os.close(self.writing)


def alive(process: subprocess.Popen[str]) -> bool:
    """Whether a process of the group is still running."""
    process.poll()
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    return True


def _wait_for_group(process: subprocess.Popen[str], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while alive(process) and time.monotonic() < deadline:
        time.sleep(0.05)


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


ADD_PARTITION = """
mutation ($repository: RepositorySelector!, $key: String!) {
  addDynamicPartition(
    repositorySelector: $repository, partitionsDefName: "image_project", partitionKey: $key
  ) { __typename }
}
"""
LAUNCH = """
mutation ($parameters: ExecutionParams!) {
  launchRun(executionParams: $parameters) {
    __typename
    ... on LaunchRunSuccess { run { runId } }
    ... on PythonError { message }
    ... on RunConfigValidationInvalid { errors { message } }
  }
}
"""
STATUS = "query ($id: ID!) { runOrError(runId: $id) { ... on Run { status } } }"
EVENTS = """
query ($id: ID!) {
  logsForRun(runId: $id) {
    ... on EventConnection { events {
      __typename
      ... on MessageEvent { message stepKey }
      ... on MaterializationEvent { metadataEntries {
        label ... on IntMetadataEntry { intValue }
      } }
      ... on ExecutionStepFailureEvent { error { message errorChain { error { message } } } }
    } }
  }
}
"""
TERMINATE = """
mutation ($id: String!, $policy: TerminateRunPolicy!) {
  terminateRun(runId: $id, terminatePolicy: $policy) {
    __typename ... on TerminateRunFailure { message }
  }
}
"""
TICKS = """
query ($selector: SensorSelector!) {
  sensorOrError(sensorSelector: $selector) { ... on Sensor { sensorState { ticks(limit: 1000) {
    status skipReason runIds error { message }
  } } } }
}
"""
REPOSITORY = {"repositoryLocationName": "embed_pipeline", "repositoryName": "__repository__"}
RELOAD = """
mutation { reloadRepositoryLocation(repositoryLocationName: "embed_pipeline") {
  ... on WorkspaceLocationEntry { loadStatus locationOrLoadError { __typename } }
} }
"""
LOCATION = """
{ workspaceOrError { ... on Workspace { locationEntries {
  loadStatus locationOrLoadError { __typename }
} } } }
"""


class DagsterUI:
    """The GraphQL interface that the Dagster UI works through."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._url = f"http://127.0.0.1:{port}/graphql"

    def query(self, document: str, **variables: Any) -> Any:
        """The answer's data."""
        body = json.dumps({"query": document, "variables": variables}).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self._url, body, headers)
        with urllib.request.urlopen(request, timeout=30) as response:
            reply = json.load(response)
        assert "errors" not in reply, reply["errors"]
        return reply["data"]

    def is_ready(self) -> bool:
        """Whether the code location is loaded."""
        try:
            entries = self.query(LOCATION)["workspaceOrError"]["locationEntries"]
        except OSError:
            return False
        return [entry["locationOrLoadError"]["__typename"] for entry in entries] == [
            "RepositoryLocation"
        ]

    def reload(self) -> bool:
        """The Reload button: whether the code location is there."""
        try:
            entry = self.query(RELOAD)["reloadRepositoryLocation"]
        except OSError:
            return False
        return bool(entry["locationOrLoadError"]["__typename"] == "RepositoryLocation")

    def partitions(self) -> list[str]:
        """The projects that have a partition."""
        nodes = self.query("{ assetNodes { assetKey { path } partitionKeys } }")["assetNodes"]
        [keys] = [n["partitionKeys"] for n in nodes if n["assetKey"]["path"] == ["image_manifest"]]
        return list(keys)

    def unfinished(self) -> bool:
        """Whether a run is queued or working."""
        statuses = self.query("{ runsOrError { ... on Runs { results { status } } } }")
        ended = {"SUCCESS", "FAILURE", "CANCELED"}
        return any(run["status"] not in ended for run in statuses["runsOrError"]["results"])

    def run_count(self) -> int:
        """How many runs there have been."""
        count: int = self.query("{ runsOrError { ... on Runs { count } } }")["runsOrError"]["count"]
        return count

    def add_partition(self, key: str) -> None:
        """Make a partition, unless there is one."""
        self.query(ADD_PARTITION, repository=REPOSITORY, key=key)

    def launch(self, partition: str) -> str:
        """Materialise everything for a partition; returns the run's id."""
        parameters = {
            "selector": {**REPOSITORY, "jobName": "sync_project"},
            "mode": "default",
            "runConfigData": {},
            "executionMetadata": {"tags": [{"key": "dagster/partition", "value": partition}]},
        }
        launched = self.query(LAUNCH, parameters=parameters)["launchRun"]
        assert launched["__typename"] == "LaunchRunSuccess", launched
        run_id: str = launched["run"]["runId"]
        return run_id

    def status(self, run_id: str) -> str:
        """The run's status, as the UI shows it."""
        status: str = self.query(STATUS, id=run_id)["runOrError"]["status"]
        return status

    def wait_for(self, run_id: str, *statuses: str, seconds: float = 90) -> str:
        """Wait for one of these statuses."""
        # Each question takes the webserver some time that the run could use.
        wait_until(lambda: self.status(run_id) in statuses, seconds, f"{statuses} of a run", 0.2)
        return self.status(run_id)

    def events(self, run_id: str) -> list[dict[str, Any]]:
        """The run's event log."""
        events: list[dict[str, Any]] = self.query(EVENTS, id=run_id)["logsForRun"]["events"]
        return events

    def stop(self, run_id: str) -> str:
        """The Terminate button: safe where the UI offers that, at once where it does not."""
        safe = self.status(run_id) in ("QUEUED", "STARTED")
        policy = "SAFE_TERMINATE" if safe else "MARK_AS_CANCELED_IMMEDIATELY"
        asked = self.query(TERMINATE, id=run_id, policy=policy)["terminateRun"]
        answer: str = asked["__typename"]
        return answer

    def ticks(self) -> list[dict[str, Any]]:
        """What the sensor has decided so far, the newest first."""
        selector = {**REPOSITORY, "sensorName": "project_changes"}
        found = self.query(TICKS, selector=selector)["sensorOrError"]
        ticks: list[dict[str, Any]] = found["sensorState"]["ticks"]
        return [tick for tick in ticks if tick["status"] != "STARTED"]


@contextmanager
def dagster_ui(env: Environment, log: Path) -> Iterator[DagsterUI]:
    """`embed-pipeline dev`, up and with the code location loaded."""
    port = free_port()
    with log.open("wb") as sink:
        arguments = [*PROGRAM, "dev", "--port", str(port)]
        with started(arguments, env, stdout=sink, stderr=sink) as process:
            ui = DagsterUI(port)

            def up() -> bool:
                assert process.poll() is None, log.read_text()
                return ui.is_ready()

            wait_until(up, 90, "the Dagster UI")
            yield ui


class Services:
    """The code server, the daemon and the webserver, each a process of its own, as in production."""

    def __init__(self, env: Environment, folder: Path) -> None:
        self.ui = DagsterUI(free_port())
        self._env = env
        self._folder = folder
        self._code_port = free_port()
        self._processes: dict[str, subprocess.Popen[str]] = {}
        server = {"host": "127.0.0.1", "port": self._code_port, "location_name": "embed_pipeline"}
        self._workspace = folder / "workspace.yaml"
        self._workspace.write_text(json.dumps({"load_from": [{"grpc_server": server}]}))

    def __enter__(self) -> Self:
        self.start("code")
        wait_until(self._answers, 60, "the code server")
        self.start("daemon")
        self.start("web")
        wait_until(self.ui.is_ready, 90, "the Dagster UI")
        # The only look that the sensor takes, at an empty root: tests ask for runs themselves.
        wait_until(self.ui.ticks, 60, "the sensor's first tick")
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes.values():
            process.send_signal(signal.SIGINT)
        for process in self._processes.values():
            _wait_or_kill(process)

    def start(self, name: str) -> None:
        """Start one of `code`, `daemon` and `web`, or start it again."""
        workspace = ["--workspace", str(self._workspace)]
        local = ["--host", "127.0.0.1", "--port"]
        module = ["--module-name", "embed_pipeline.definitions"]
        arguments = {
            "code": ["dagster", "api", "grpc", *local, str(self._code_port), *module],
            "daemon": ["dagster._daemon", "run", *workspace],
            "web": ["dagster_webserver", *local, str(self.ui.port), *workspace],
        }
        with (self._folder / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [sys.executable, "-m", *arguments[name]],
                env=self._env,
                text=True,
                start_new_session=True,
                stdout=log,
                stderr=log,
            )

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        """End a service, and no other process: what it started is on its own."""
        process = self._processes.pop(name)
        process.send_signal(number)
        _wait_or_kill(process)

    def _answers(self) -> bool:
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", self._code_port)) == 0


def _wait_or_kill(process: subprocess.Popen[str]) -> None:
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
