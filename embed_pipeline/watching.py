"""One look at the source: which projects changed, which are new, which are gone."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import chain
from typing import Protocol

from embed_pipeline.changes import (
    CONFIRMED,
    NEVER,
    UNCHANGED,
    Known,
    LastRun,
    Noticed,
    Request,
    Seen,
    decide,
    read_noticed,
    write_noticed,
)
from embed_pipeline.collection_state import CollectionState
from embed_pipeline.deployment import Deployment
from embed_pipeline.errors import EmbedPipelineError, SourceError
from embed_pipeline.locks import FileLock
from embed_pipeline.pause import pause_of
from embed_pipeline.reporting import clear_leftovers
from embed_pipeline.retire import retire
from embed_pipeline.serving import serving_of

# Dagster ends a tick after 60 s. What there is no time for is looked at first the next time.
LOOK_SECONDS = 20.0
MAX_RETIRED = 20
LOCK_SECONDS = 30.0
NAMES_TOLD = 3


class RunHistory(Protocol):
    """What is known of a project's runs."""

    def unfinished(self) -> set[str]:
        """The projects with a queued or working run."""
        ...

    def last(self, project: str) -> LastRun | None:
        """The newest finished run."""
        ...


@dataclass
class Tick:
    """What came of a look. listed: the source's projects. skipped: projects by the reason for no run.

    retired: projects that were forgotten.
    """

    listed: list[str]
    requests: list[Request]
    skipped: dict[str, list[str]]
    retired: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """For people: `3 projects; paused: 1 (cats); unchanged: 2`."""
        told = [f"{len(self.listed):,} project{'' if len(self.listed) == 1 else 's'}"]
        if self.requests:
            told.append(_told("asked for", [request.project for request in self.requests]))
        if self.retired:
            told.append(_told("retired", self.retired))
        reasons = sorted(self.skipped, key=lambda reason: (reason == UNCHANGED, reason))
        return "; ".join([*told, *(_told(reason, self.skipped[reason]) for reason in reasons)])


def look_around(deployment: Deployment, history: RunHistory) -> Tick:
    """Look at every project as far as time allows, decide, retire, and remember.

    Raises SourceUnavailable where the listing is not complete, having changed nothing.
    """
    with _remembered(deployment) as noticed:
        before = dict(noticed) or _forgotten(deployment)
        listed = deployment.source.projects()
        listed.sort(key=lambda name: before[name].looked_at if name in before else NEVER)
        unfinished = history.unfinished()
        clear_leftovers(deployment, unfinished)
        seen, skipped = _look(deployment, listed)
        left_out = deployment.source.left_out()
        decision = decide(
            frozenset(chain(listed, *left_out.values())),
            seen,
            before,
            unfinished,
            lambda project: _known(deployment, history, project),
            datetime.now(UTC),
        )
        tick = Tick(listed, decision.requests, {**decision.skipped, **skipped, **left_out})
        for project in decision.retire[:MAX_RETIRED]:
            try:
                retire(deployment, project)
            except EmbedPipelineError as error:
                tick.skipped[f"gone, and cannot be retired: {error}"] = [project]
            else:
                del decision.noticed[project]
                tick.retired.append(project)
        noticed.clear()
        noticed.update(decision.noticed)
    return tick


def look_again(deployment: Deployment, project: str) -> None:
    """Have the next look ask for a run of the project, unless it is stopped, paused or equal."""
    with _remembered(deployment) as noticed:
        if row := noticed.get(project):
            noticed[project] = replace(row, settled=None, failed=None, retry_at=None)


def confirm_absence(deployment: Deployment, projects: list[str]) -> None:
    """Have the next look forget these projects, however many are gone."""
    with _remembered(deployment) as noticed:
        for project in projects:
            if row := noticed.get(project):
                noticed[project] = replace(row, absent=CONFIRMED)


@contextmanager
def _remembered(deployment: Deployment) -> Iterator[dict[str, Noticed]]:
    """What the sensor remembers, to be changed; nobody else changes it meanwhile."""
    path = deployment.home.noticed(deployment.source.source_id)
    with FileLock(path.with_suffix(".lock")).acquire(LOCK_SECONDS, "the sensor's table"):
        noticed = read_noticed(path)
        yield noticed
        write_noticed(noticed, path)


def _forgotten(deployment: Deployment) -> dict[str, Noticed]:
    """Rows for all projects that have tables here, so that those which are gone can be retired."""
    prefix = f"{deployment.source.source_id}/"
    ids = [id_ for id_ in deployment.home.project_ids() if id_.startswith(prefix)]
    return {id_.removeprefix(prefix): Noticed(id_.removeprefix(prefix)) for id_ in ids}


def _look(
    deployment: Deployment, listed: list[str]
) -> tuple[dict[str, Seen], dict[str, list[str]]]:
    """What the source tells of each project; and those that it told nothing of, by the reason."""
    deadline = time.monotonic() + LOOK_SECONDS
    seen: dict[str, Seen] = {}
    skipped: dict[str, list[str]] = {}
    for number, project in enumerate(listed):
        if time.monotonic() > deadline:
            skipped["no time left, looked at first the next time"] = listed[number:]
            break
        try:
            images, token = deployment.source.revision(project, as_listed=True)
        except SourceError as error:
            skipped.setdefault(str(error), []).append(project)
        else:
            seen[project] = Seen(deployment.revision(token), images)
    return seen, skipped


def _known(deployment: Deployment, history: RunHistory, project: str) -> Known:
    home = deployment.project_home(project)
    state, serving, pause = CollectionState.read(home.state), serving_of(home), pause_of(home)
    target = deployment.card.space
    rolled_back = serving is not None and serving.rejected == target
    wanted = serving.now.space if serving and rolled_back else target
    there = state if state and state.conditions == deployment.conditions(wanted) else None
    return Known(
        reached=deployment.revision(there.revision) if there and there.equal else None,
        indexed=there.indexed if there else 0,
        retry_at=there.retry_at if there else None,
        withheld=there is not None and there.withheld > 0,
        paused=pause is not None and pause.paused,
        resumed_at=pause.at if pause and not pause.paused else None,
        last_run=history.last(project),
    )


def _told(reason: str, names: list[str]) -> str:
    if reason == UNCHANGED:
        return f"{reason}: {len(names):,}"
    more = ", …" if len(names) > NAMES_TOLD else ""
    return f"{reason}: {len(names):,} ({', '.join(names[:NAMES_TOLD])}{more})"
