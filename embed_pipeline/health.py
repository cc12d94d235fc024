"""Whether what keeps projects searchable is well, in the JSON of the services that this replaces."""

import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any, Literal

import dagster as dg
import numpy as np
from dagster._core.scheduler.instigation import InstigatorState, InstigatorTick, TickStatus

from embed_pipeline.deployment import Deployment, open_deployment
from embed_pipeline.errors import EmbedPipelineError, ModelError, ModelNotFound
from embed_pipeline.models.card import load_card
from embed_pipeline.models.hub import cached, is_service, model_directory, model_files
from embed_pipeline.settings import DEMO_MODEL, Settings

CHECK_SECONDS = 10.0
SENSOR = "project_changes"
# Each of these tells Dagster every 30 s that it lives; a long launch may delay that.
DAEMONS = ("SENSOR", "SCHEDULER", "QUEUED_RUN_COORDINATOR", "MONITORING")
SILENT_SECONDS = 180.0
# A look may take a minute, and waits for others.
LATE_INTERVALS = 3
LATE_SECONDS = 120.0
_START_DAEMON = "start it: embed-pipeline dev, or the service `daemon` of docker/compose.yaml"
_LONGEST_REASON = 300

Status = Literal["healthy", "degraded", "unhealthy"]


@dataclass(frozen=True)
class Row:
    """A check, as a line for people."""

    check: str
    state: str


@dataclass(frozen=True)
class Health:
    """`checks`: `healthy`, or `unhealthy: ` and a line that says why. `timestamp`: UTC.

    status: degraded where a check is not healthy; unhealthy where none is, or settings are wrong. The
    check `general` says so then.
    """

    status: Status
    checks: dict[str, str]
    timestamp: str

    @property
    def rows(self) -> list[Row]:
        """For a table."""
        return [Row(check, state) for check, state in self.checks.items()]


class Unwell(Exception):
    """What a check found."""


def health(deployment: Deployment, instance: dg.DagsterInstance) -> Health:
    """Ask Qdrant, the encoder, the source, Dagster's daemon and its sensor; takes ten seconds at most.

    Loads no model, fetches none, and changes nothing; raises nothing.
    """
    checks = _side_by_side(
        {
            "qdrant": partial(_check_store, deployment),
            "clip": partial(_check_encoder, deployment),
            "source": partial(_check_source, deployment),
            "scheduler": partial(_check_daemons, instance),
            "sensor": partial(_check_sensor, instance, deployment.settings.interval),
        },
        deployment.settings,
    )
    well = [state == "healthy" for state in checks.values()]
    if not any(well):
        return _unhealthy("every check fails", checks)
    return Health("healthy" if all(well) else "degraded", checks, _now())


def health_here() -> Health:
    """The health of what the environment's settings name, for a process that ends after it.

    Closes no connection: one that hangs would hold up the exit.
    """
    try:
        from embed_pipeline.runs import dagster_instance  # reads settings already

        deployment = open_deployment()
        with dagster_instance(deployment.settings) as instance:
            return health(deployment, instance)
    except Exception as error:  # noqa: BLE001  # whatever it is, it is the answer
        return _unhealthy(_one_line(error), {})


def _unhealthy(reason: str, checks: dict[str, str]) -> Health:
    return Health("unhealthy", {**checks, "general": f"error: {reason}"}, _now())


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _side_by_side(checks: Mapping[str, Callable[[], None]], settings: Settings) -> dict[str, str]:
    """What each check tells. One that hangs is left behind, in a thread that holds up no exit."""
    told: dict[str, str] = {}

    def look(name: str, check: Callable[[], None]) -> None:
        try:
            check()
        except Exception as error:  # noqa: BLE001  # whatever it is, it is the answer
            told[name] = f"unhealthy: {_one_line(error, settings)}"
        else:
            told[name] = "healthy"

    threads = [Thread(target=look, args=each, daemon=True) for each in checks.items()]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + CHECK_SECONDS
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    silent = f"unhealthy: does not answer within {CHECK_SECONDS:g} s"
    return {name: told.get(name, silent) for name in checks}


def _one_line(error: Exception, settings: Settings | None = None) -> str:
    ours = isinstance(error, EmbedPipelineError | OSError | Unwell)
    text = str(error) if ours and str(error) else f"{type(error).__name__}: {error}"
    for secret in _secrets(settings):
        text = text.replace(secret, "***")
    text = re.sub(r"//[^/\s]+@", "//***@", text)
    return " ".join(text.split())[:_LONGEST_REASON]


def _secrets(settings: Settings | None) -> Iterator[str]:
    if settings:
        yield from filter(None, (settings.api_token, settings.api_access_token))
        yield from filter(None, (settings.qdrant_api_key, settings.model_api_key))


def _check_store(deployment: Deployment) -> None:
    deployment.store.check()


def _check_source(deployment: Deployment) -> None:
    deployment.source.projects()


def _check_encoder(deployment: Deployment) -> None:
    """Raise unless EMBED_MODEL is to be had; what this process has loaded must work, too."""
    if is_service(deployment.settings.model):
        _check_service(deployment.settings)
    else:
        _check_model(deployment)
    for encoder in list(deployment._encoders.values()):  # noqa: SLF001  # `encoder` would load it
        if not np.isfinite(encoder.encode_texts(["a photo"]).vectors).all():
            raise ModelError(f"{encoder.card.name}: gives no finite vector; fetch it again")


def _check_service(settings: Settings) -> None:
    """Raise unless the service that EMBED_MODEL names answers."""
    from embed_pipeline.models.remote import ask_model
    from embed_pipeline.models.remote_service import Service

    with closing(Service(settings.model, settings.model_api_key)) as service:
        ask_model(service, service.looks)


def _check_model(deployment: Deployment) -> None:
    """Raise unless EMBED_MODEL is on this machine, and whole."""
    model = deployment.settings.model
    if not (model == DEMO_MODEL or Path(model).expanduser().is_dir() or cached(model)):
        raise ModelNotFound(
            f"EMBED_MODEL={model}: no such directory, nor whole in the local Hugging Face cache; this "
            "fetches it, or says why it cannot: embed-pipeline doctor"
        )
    directory = model_directory(model)
    if gone := [path.name for path in model_files(directory) if not path.is_file()]:
        raise ModelError(f"{directory}: lacks {', '.join(gone)}; fetch the model again")
    load_card(model, deployment.home.models)


def _check_daemons(instance: dg.DagsterInstance) -> None:
    """Raise where one of the daemon's threads is silent, or tells of an error."""
    statuses = instance.get_daemon_statuses(DAEMONS)
    beats = {name: each.last_heartbeat for name, each in statuses.items() if each.required}
    last = {name: beat.timestamp if beat else None for name, beat in beats.items()}
    oldest = time.time() - SILENT_SECONDS
    if silent := {name: at for name, at in last.items() if at is None or at < oldest}:
        told = ", ".join(f"{name} ({_when(at)})" for name, at in silent.items())
        raise Unwell(f"Dagster's daemon is not running: {told}; {_START_DAEMON}")
    for name, beat in beats.items():
        if beat and beat.errors:
            raise Unwell(f"{name} of Dagster's daemon fails: {_cause(beat.errors[0])}")


def _check_sensor(instance: dg.DagsterInstance, interval_minutes: float) -> None:
    """Raise unless the sensor is on, and its last look was a short while ago and went well."""
    state = _sensor_state(instance)
    if state is None:
        raise Unwell(f"never looked: Dagster's daemon has not run here yet; {_START_DAEMON}")
    ended = _last_tick(instance, state, TickStatus.SUCCESS, TickStatus.SKIPPED, TickStatus.FAILURE)
    looked = _when(ended.timestamp if ended else None)
    if not state.is_running:
        raise Unwell(f"stopped, last look: {looked}; switch {SENSOR} on in the Dagster UI")
    if ended is None:
        raise Unwell("no look has ended yet; ask again in a minute, or see the daemon's log")
    if ended.status is TickStatus.FAILURE:
        well = _last_tick(instance, state, TickStatus.SUCCESS, TickStatus.SKIPPED)
        last_well = _when(well.timestamp if well else None)
        raise Unwell(f"look failed, last that did not: {last_well}; {_cause(ended.error)}")
    if time.time() - ended.timestamp > 60 * LATE_INTERVALS * interval_minutes + LATE_SECONDS:
        told = f"looks every {interval_minutes:g} min, but last {looked}"
        raise Unwell(f"{told}; {_START_DAEMON}, or see its log")


def _sensor_state(instance: dg.DagsterInstance) -> InstigatorState | None:
    """The sensor's state, made at its first tick; of a location of another name, if that ticked last."""
    states = [state for state in instance.all_instigator_state() if state.name == SENSOR]

    def ticked_at(state: InstigatorState) -> float:
        data = state.sensor_instigator_data
        return (data and data.last_tick_start_timestamp) or 0.0

    return max(states, key=ticked_at, default=None)


def _last_tick(
    instance: dg.DagsterInstance, state: InstigatorState, *statuses: TickStatus
) -> InstigatorTick | None:
    origin, selector = state.instigator_origin_id, state.selector_id
    return next(iter(instance.get_ticks(origin, selector, limit=1, statuses=list(statuses))), None)


def _when(timestamp: float | None) -> str:
    if not timestamp:
        return "never"
    return datetime.fromtimestamp(timestamp, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _cause(error: Any) -> str:
    """The message of the error that began it: Dagster wraps those of our code."""
    while error and error.cause:
        error = error.cause
    return str(error.message) if error else "Dagster does not tell why"
