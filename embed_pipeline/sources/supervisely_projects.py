"""The projects of a Supervisely instance: which are offered, and what it shows of each."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cached_property
from typing import Any

from embed_pipeline.errors import ProjectNotFound, SourceError, SourceUnavailable
from embed_pipeline.sources.supervisely_http import Connection, Missing
from embed_pipeline.sources.supervisely_sdk import open_sdk

EXTRA_FIELDS = ("embeddingsEnabled", "embeddingsInProgress", "embeddingsUpdatedAt")
ENABLED = {"field": "embeddingsEnabled", "operator": "=", "value": True}
PASSES = 3
TEAMS_AT_ONCE = 4
PLAN_WITHOUT_SEARCH = "free"
TIME_FORMAT = "%Y-%m-%dT%H:%M:%S.%fZ"


@dataclass(frozen=True)
class Listed:
    """The last listing. projects: the SDK's ProjectInfo of each that is offered, by its number as text."""

    projects: dict[str, Any] = field(default_factory=dict)
    left_out: dict[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Project:
    """One project as it was told. info: the SDK's ProjectInfo. asked_at: when, by the instance's clock."""

    info: Any
    asked_at: str


class Projects:
    """Lists projects with AI search, of type images, in all teams that the token sees."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.listed = Listed()

    def look(self) -> Listed:
        """List them: one request per 20,000 projects, and one for each team."""
        found = [project for project in self._all() if project.type == "images"]
        plans = self._plans({project.team_id for project in found})
        listed = Listed()
        for project in sorted(found, key=lambda project: int(project.id)):
            if plans[project.team_id] == PLAN_WITHOUT_SEARCH:
                listed.left_out.setdefault(_free(project), []).append(str(project.id))
            else:
                listed.projects[str(project.id)] = project
        self.listed = listed
        return listed

    def why_left_out(self, info: Any) -> str | None:
        """Why a project is not offered, by its ProjectInfo and its team's plan."""
        if info.embeddings_enabled is False:
            return "AI search is off; switch it on in Supervisely"
        return _free(info) if self._plan(info.team_id) == PLAN_WITHOUT_SEARCH else None

    def now(self, project: str) -> Project:
        """The project, asked for anew. Raises ProjectNotFound."""
        asked = {"id": _number(project), "extraFields": list(EXTRA_FIELDS)}
        try:
            answer = self._connection.post("projects.info", asked, self._connection.calls)
        except Missing as error:
            where = self._connection.where
            raise ProjectNotFound(f"{project}: no such project at {where}, or removed") from error
        info = self._sdk.project._convert_json_info(answer.json())  # noqa: SLF001  # the SDK's parser
        return Project(info, _instance_time(answer.headers.get("date", ""), info.updated_at))

    def _all(self) -> list[Any]:
        for _ in range(PASSES):
            try:
                # The SDK changes what it is given.
                listed = self._sdk.project.get_list_all(
                    [dict(ENABLED)], extra_fields=list(EXTRA_FIELDS)
                )
            except RuntimeError:  # a project came or went between two pages
                continue
            projects: list[Any] = listed["entities"]
            return projects
        raise SourceUnavailable(
            f"Supervisely at {self._connection.where}: the list of projects changes while it is read; "
            "nothing was changed, the next look tries again"
        )

    def _plans(self, teams: Iterable[int]) -> dict[int, str | None]:
        teams = list(teams)
        with ThreadPoolExecutor(TEAMS_AT_ONCE) as pool:
            return dict(zip(teams, pool.map(self._plan, teams), strict=True))

    def _plan(self, team: int) -> str | None:
        try:
            usage = self._sdk.team.get_info_by_id(team).usage
        except SourceUnavailable:
            raise
        except SourceError:  # who may not see the team's plan is not told of one
            return None
        return usage.plan if usage else None

    @cached_property
    def _sdk(self) -> Any:
        return open_sdk(self._connection, self._connection.looks)


def _free(info: Any) -> str:
    return f"team {info.team_id} has the free plan, without AI search"


def _number(project: str) -> int:
    if not project.isdecimal():
        raise ProjectNotFound(f"{project}: no such project; Supervisely's have numbers")
    return int(project)


def _instance_time(date: str, changed: str) -> str:
    """An HTTP date, of whole seconds, as the instance writes times; not before its last change."""
    at = datetime.fromisoformat(changed)
    with suppress(ValueError):  # no date, or none that anybody can read
        at = max(at, parsedate_to_datetime(date))
    return at.astimezone(UTC).strftime(TIME_FORMAT)
