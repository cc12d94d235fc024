"""What `health` says of a deployment that is well, and of each part that is not."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import numpy as np
import pytest
from dagster._core.remote_origin import (
    GrpcServerCodeLocationOrigin,
    RemoteInstigatorOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.scheduler.instigation import (
    InstigatorState,
    InstigatorStatus,
    InstigatorType,
    SensorInstigatorData,
    TickData,
    TickStatus,
)
from dagster._daemon.types import DaemonHeartbeat
from dagster._utils.error import SerializableErrorInfo
from typer.testing import CliRunner

from embed_pipeline import health as health_module
from embed_pipeline.cli import app
from embed_pipeline.deployment import Deployment
from embed_pipeline.health import DAEMONS, SENSOR, Health, health, health_here
from embed_pipeline.models.protocol import ModelCard, TextVectors
from embed_pipeline.runs import dagster_instance
from embed_pipeline.settings import load_settings
from embed_pipeline.sources.folder import FolderSource

CHECKS = ["qdrant", "clip", "source", "scheduler", "sensor"]
WELL = dict.fromkeys(CHECKS, "healthy")
# As Dagster stores an error: what it wraps is its cause.
FAILED = SerializableErrorInfo(
    "SensorExecutionError: of a sensor\n",
    [],
    "SensorExecutionError",
    SerializableErrorInfo("OSError: the disk\nis gone\n", [], "OSError"),
)
HANGING = """
import sys, time
from embed_pipeline import cli, health
from embed_pipeline.sources.folder import FolderSource

health.CHECK_SECONDS = 2
FolderSource.projects = lambda self: time.sleep(100)
sys.argv[1:] = ["health", "--json"]
try:
    cli.main()
finally:
    print(*sys.modules, file=sys.stderr)
"""


@pytest.fixture
def instance(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dg.DagsterInstance]:
    """A Dagster of its own, which no daemon ever ran on; the store is the embedded one."""
    monkeypatch.delenv("QDRANT_URL", raising=False)
    monkeypatch.setenv("DAGSTER_HOME", str(root.parent / "home" / "dagster"))
    with dagster_instance(load_settings()) as instance:
        yield instance


@pytest.fixture
def ask(instance: dg.DagsterInstance) -> Iterator[Callable[[], Health]]:
    """The health of what the environment names now."""
    deployments = []

    def ask() -> Health:
        deployments.append(Deployment(load_settings()))
        return health(deployments[-1], instance)

    yield ask
    for deployment in deployments:
        deployment.close()


def sensor_of(location: str, status: InstigatorStatus, looked: float) -> InstigatorState:
    """The sensor's state as Dagster stores it at a tick."""
    server = GrpcServerCodeLocationOrigin("127.0.0.1", 4000, location_name=location)
    origin = RemoteInstigatorOrigin(RemoteRepositoryOrigin(server, "__repository__"), SENSOR)
    data = SensorInstigatorData(last_tick_start_timestamp=looked)
    return InstigatorState(origin, InstigatorType.SENSOR, status, data)


def tick(
    instance: dg.DagsterInstance,
    *,
    seconds_ago: float = 5,
    ended: TickStatus = TickStatus.SKIPPED,
    status: InstigatorStatus = InstigatorStatus.DECLARED_IN_CODE,
    location: str = "embed_pipeline",
) -> None:
    """Store what the daemon stores of a look."""
    looked = time.time() - seconds_ago
    state = sensor_of(location, status, looked)
    if instance.get_instigator_state(state.instigator_origin_id, state.selector_id):
        instance.update_instigator_state(state)
    else:
        instance.add_instigator_state(state)
    failed = ended is TickStatus.FAILURE
    instance.create_tick(
        TickData(
            state.instigator_origin_id,
            SENSOR,
            InstigatorType.SENSOR,
            ended,
            looked,
            run_ids=[],
            error=FAILED if failed else None,
            selector_id=state.selector_id,
        )
    )


def beat(instance: dg.DagsterInstance, *, seconds_ago: float = 5) -> None:
    """Store what the daemon's threads say while they live."""
    for name in DAEMONS:
        instance.add_daemon_heartbeat(DaemonHeartbeat(time.time() - seconds_ago, name, "id"))


def test_all_is_well(instance: dg.DagsterInstance, ask: Callable[[], Health]) -> None:
    """Where every part answers, the document has the services' keys, values and form of time."""
    beat(instance)
    tick(instance)
    found = ask()
    assert (found.status, found.checks) == ("healthy", WELL)
    assert list(found.checks) == CHECKS
    at = datetime.strptime(found.timestamp, "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC)
    assert abs(datetime.now(UTC) - at) < timedelta(minutes=1)


def test_no_daemon_ever_ran(ask: Callable[[], Health]) -> None:
    """Without a daemon the health is degraded, and the checks of daemon and sensor say how to start it."""
    found = ask()
    assert found.status == "degraded"
    assert [name for name, state in found.checks.items() if state != "healthy"] == CHECKS[3:]
    assert all(f"{name} (never)" in found.checks["scheduler"] for name in DAEMONS)
    assert "never looked" in found.checks["sensor"]
    assert all("embed-pipeline dev" in found.checks[name] for name in CHECKS[3:])


def test_a_daemon_that_died(instance: dg.DagsterInstance, ask: Callable[[], Health]) -> None:
    """Heartbeats of an hour ago are none, and the sensor's last look is told to be late."""
    beat(instance, seconds_ago=3600)
    tick(instance, seconds_ago=3600)
    found = ask()
    day = datetime.fromtimestamp(time.time() - 3600, UTC).strftime("%Y-%m-%d")
    assert f"SENSOR ({day}" in found.checks["scheduler"]
    assert f"looks every 1 min, but last {day}" in found.checks["sensor"]


def test_a_daemon_that_fails(instance: dg.DagsterInstance, ask: Callable[[], Health]) -> None:
    """A daemon's thread that lives but tells of an error is not healthy."""
    beat(instance)
    instance.add_daemon_heartbeat(DaemonHeartbeat(time.time(), "MONITORING", "id", [FAILED]))
    told = ask().checks["scheduler"]
    assert told == "unhealthy: MONITORING of Dagster's daemon fails: OSError: the disk is gone"


def test_the_last_look_failed(instance: dg.DagsterInstance, ask: Callable[[], Health]) -> None:
    """A failed look is told in one line, with what began it; the next that goes well is healthy again."""
    tick(instance, seconds_ago=30)
    tick(instance, seconds_ago=20, ended=TickStatus.FAILURE)
    tick(instance, seconds_ago=1, ended=TickStatus.STARTED)
    told = ask().checks["sensor"]
    assert told.startswith("unhealthy: look failed, last that did not: 2")
    assert told.endswith("OSError: the disk is gone")
    tick(instance, seconds_ago=0, ended=TickStatus.SUCCESS)
    assert ask().checks["sensor"] == "healthy"


def test_a_stopped_sensor(instance: dg.DagsterInstance, ask: Callable[[], Health]) -> None:
    """A sensor that somebody stopped is not healthy, however short ago it looked."""
    tick(instance, status=InstigatorStatus.STOPPED)
    assert "stopped, last look: 2" in ask().checks["sensor"]


def test_the_sensor_of_another_location(
    instance: dg.DagsterInstance, ask: Callable[[], Health]
) -> None:
    """Where the code location was loaded under several names, the sensor that looked last is meant."""
    tick(instance, seconds_ago=3600, status=InstigatorStatus.STOPPED)
    tick(instance, location="embed_pipeline.definitions")
    assert ask().checks["sensor"] == "healthy"


def test_a_source_that_is_gone(root: Path, ask: Callable[[], Health]) -> None:
    """A root that is not there any more is told by its path, and by no other check."""
    root.rmdir()
    checks = ask().checks
    assert str(root) in checks["source"]
    assert checks["qdrant"] == checks["clip"] == "healthy"


def test_a_store_that_is_nowhere(
    ask: Callable[[], Health], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Qdrant server that does not answer is waited for no longer than a check may take."""
    monkeypatch.setattr(health_module, "CHECK_SECONDS", 2)
    monkeypatch.setenv("QDRANT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("QDRANT_GRPC_PORT", "1")
    began = time.monotonic()
    checks = ask().checks
    assert checks["qdrant"] == "unhealthy: does not answer within 2 s"
    assert checks["source"] == "healthy"
    assert time.monotonic() - began < 4


@pytest.mark.parametrize("model", ["/nowhere/model", "nobody/has-this"])
def test_a_model_that_is_not_here(
    model: str, ask: Callable[[], Health], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that is missing is told, and is not fetched."""
    monkeypatch.setenv("EMBED_MODEL", model)
    monkeypatch.setattr("embed_pipeline.models.hub._download", pytest.fail)
    told = ask().checks["clip"]
    assert told.startswith(f"unhealthy: EMBED_MODEL={model}: ")
    assert "embed-pipeline doctor" in told


def test_a_model_with_a_file_less(
    root: Path, ask: Callable[[], Health], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A link to weights that are gone is a file that is missing."""
    demo = Path(health_module.__file__).parent / "models" / "demo" / "model"
    copy = root.parent / "model"
    copy.mkdir()
    for path in demo.iterdir():
        (copy / path.name).symlink_to(path)
    (copy / "model.safetensors").unlink()
    (copy / "model.safetensors").symlink_to(root / "gone")
    monkeypatch.setenv("EMBED_MODEL", str(copy))
    assert "lacks model.safetensors" in ask().checks["clip"]


def test_a_loaded_encoder_is_tried(instance: dg.DagsterInstance) -> None:
    """An encoder that this process has loaded must give a finite vector."""

    class Broken:
        card: ModelCard

        def encode_images(self, pixels: object) -> np.ndarray:
            raise NotImplementedError

        def encode_texts(self, texts: list[str]) -> TextVectors:
            return TextVectors(np.full((len(texts), 4), np.nan, np.float32), [False])

    with closing(Deployment(load_settings())) as deployment:
        encoder = deployment._encoders[deployment.card] = Broken()
        encoder.card = deployment.card
        assert "demo: gives no finite vector" in health(deployment, instance).checks["clip"]


def test_reasons_hold_no_secrets(
    ask: Callable[[], Health], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys and passwords that an error repeats are left out, and a reason is one short line."""
    monkeypatch.setenv("QDRANT_API_KEY", "s3cret")

    def leak(self: FolderSource) -> list[str]:
        raise ValueError("key s3cret\nat postgres://me:pass@word@host/db" + 1000 * " more")

    monkeypatch.setattr(FolderSource, "projects", leak)
    told = ask().checks["source"]
    assert told.startswith("unhealthy: ValueError: key *** at postgres://***@host/db more")
    assert "\n" not in told
    assert len(told) < 350


def test_nothing_works(
    root: Path, ask: Callable[[], Health], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where every check fails, the health is unhealthy, and `general` says so beside them."""
    root.rmdir()
    monkeypatch.setenv("EMBED_MODEL", "/nowhere/model")
    monkeypatch.setenv("QDRANT_URL", "nowhere")
    found = ask()
    assert found.status == "unhealthy"
    assert list(found.checks) == [*CHECKS, "general"]
    assert found.checks["general"] == "error: every check fails"


def test_wrong_settings(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a setting is wrong, `general` names it, in place of the checks."""
    monkeypatch.setenv("EMBED_BATCH_SIZE", "0")
    found = health_here()
    assert found.status == "unhealthy"
    assert list(found.checks) == ["general"]
    assert found.checks["general"].startswith("error: EMBED_BATCH_SIZE='0': ")


def test_the_command(instance: dg.DagsterInstance) -> None:
    """It prints a table of checks and states, or the document; it succeeds only where all is well."""
    table = CliRunner().invoke(app, ["health"])
    assert table.exit_code == 1
    assert [line.split()[0] for line in table.stdout.splitlines()] == ["check", *CHECKS]
    beat(instance)
    tick(instance)
    document = CliRunner().invoke(app, ["health", "--json"])
    assert document.exit_code == 0
    assert list(found := json.loads(document.stdout)) == ["status", "checks", "timestamp"]
    assert (found["status"], found["checks"]) == ("healthy", WELL)


def test_a_check_that_hangs(instance: dg.DagsterInstance) -> None:
    """It is told as such, holds up neither the others nor the exit, and no model is loaded for any."""
    done = subprocess.run(
        [sys.executable, "-c", HANGING],
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    checks = json.loads(done.stdout)["checks"]
    assert checks["source"] == "unhealthy: does not answer within 2 s"
    assert checks["qdrant"] == checks["clip"] == "healthy"
    assert not {"torch", "transformers"} & set(done.stderr.split())
