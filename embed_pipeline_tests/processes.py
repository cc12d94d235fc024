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
from typing import Any, TypeVar

from embed_pipeline_tests.conftest import OUR_VARIABLES

Found = TypeVar("Found")
Environment = Mapping[str, str]

PIPES = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
PROGRAM = [sys.executable, "-m", "embed_pipeline.cli"]


def wait_until(look: Callable[[], Found | None], seconds: float, what: str) -> Found:
    """The first true result of `look`; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, f"waited {seconds:g} s for {what}"
        time.sleep(0.05)
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
mutation ($id: String!) {
  terminateRun(runId: $id) { __typename ... on TerminateRunFailure { message } }
}
"""
LOCATION = """
{ workspaceOrError { ... on Workspace { locationEntries {
  loadStatus locationOrLoadError { __typename }
} } } }
"""


class DagsterUI:
    """The GraphQL interface that the Dagster UI works through."""

    def __init__(self, port: int) -> None:
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

    def launch(self, partition: str) -> str:
        """Materialise everything for a partition; returns the run's id."""
        parameters = {
            "selector": {
                "repositoryLocationName": "embed_pipeline",
                "repositoryName": "__repository__",
                "jobName": "sync_project",
            },
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
        wait_until(lambda: self.status(run_id) in statuses, seconds, f"{statuses} of a run")
        return self.status(run_id)

    def events(self, run_id: str) -> list[dict[str, Any]]:
        """The run's event log."""
        events: list[dict[str, Any]] = self.query(EVENTS, id=run_id)["logsForRun"]["events"]
        return events

    def stop(self, run_id: str) -> str:
        """Ask the run to stop; the name of the answer."""
        answer: str = self.query(TERMINATE, id=run_id)["terminateRun"]["__typename"]
        return answer


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
