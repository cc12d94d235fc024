"""What users of a Supervisely instance may read there, asked with their own tokens."""

import hashlib
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any, Generic, TypeVar

from embed_pipeline.errors import (
    ProjectNotFound,
    QueryError,
    SourceError,
    SourceRefused,
    SourceUnavailable,
)
from embed_pipeline.patience import Patience
from embed_pipeline.sources.supervisely_collections import Collections, Results
from embed_pipeline.sources.supervisely_http import Connection, Missing
from embed_pipeline.sources.supervisely_listing import ImageList
from embed_pipeline.sources.supervisely_projects import PLAN_WITHOUT_SEARCH, Projects

T = TypeVar("T")

# A caller waits for the answer.
ASKED = Patience(tries=2, try_seconds=5, total_seconds=11)
REMEMBERED_SECONDS = 60.0
MOST_REMEMBERED = 10_000
# Images without a project are looked up one by one, until one tells where its neighbours are.
MOST_LOOKED_UP = 100
_TOKEN = re.compile(r"[\x21-\x7e]{1,512}")


@dataclass(frozen=True)
class Standing:
    """What the instance says of a project. enabled: AI search; None: never switched on or off."""

    team_id: int
    plan: str | None
    enabled: bool | None

    @property
    def has_search(self) -> bool:
        """Whether the team's plan is one with AI search."""
        return self.plan != PLAN_WITHOUT_SEARCH


class Callers:
    """Asks for users, each with their own token; with the service's own where none is given.

    What it was told counts for a minute. To be shared between threads. Every call raises
    SourceUnavailable where the instance does not answer.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._users: _Remembered[int] = _Remembered()
        self._standings: _Remembered[Standing] = _Remembered()
        self._listings: _Remembered[frozenset[str]] = _Remembered()
        self._collections = Collections()

    def user_id(self, token: str) -> int:
        """Whose token this is. Raises SourceRefused for one that is not valid."""
        if not _TOKEN.fullmatch(token):
            raise SourceRefused(f"Supervisely at {self._connection.where}: not a token")

        def ask() -> int:
            return int(self._post("users.me", {}, token)["id"])

        return self._users.of(_digest(token), ask)

    def standing(self, project: str, token: str | None) -> Standing:
        """What the caller is shown of a project. Raises ProjectNotFound, SourceRefused."""
        if not re.fullmatch(r"[0-9]{1,15}", project):
            raise ProjectNotFound(f"{project}: no such project; Supervisely's have numbers")
        return self._standings.of(
            f"{_digest(token)} {project}", lambda: self._standing(project, token)
        )

    def projects(self, token: str) -> frozenset[str]:
        """The numbers of the projects with AI search that the caller sees. Raises SourceRefused."""

        def ask() -> frozenset[str]:
            return frozenset(Projects(self._of(token)).look().projects)

        return self._listings.of(_digest(token), ask)

    def projects_of(self, image_ids: Sequence[int], token: str | None) -> dict[str, list[int]]:
        """The projects that hold these images, those in the trash left out, and which each holds.

        Raises SourceRefused where the caller may not see one, QueryError where too many are nowhere.
        """
        images = ImageList(self._of(token))
        found: dict[str, list[int]] = {}
        left, looked_up = list(dict.fromkeys(image_ids)), 0
        while left:
            if looked_up == MOST_LOOKED_UP:
                raise QueryError(
                    f"image_ids: {MOST_LOOKED_UP} were looked up one by one, and {len(left):,} are left; "
                    "say which project they are in, or leave out those that are gone"
                )
            looked_up += 1
            first, *left = left
            if project := self._project_of(first, token):
                there = {image["id"] for image in images.of_ids(project, [first, *left])}
                found.setdefault(project, []).extend(sorted(there))
                left = [id_ for id_ in left if id_ not in there]
        return found

    def save(self, results: Results, token: str) -> tuple[int, set[int]]:
        """Save results for the caller, as a collection in the project.

        Returns its number, and which images the instance has no more. Raises SourceRefused.
        """
        return self._collections.save(self._of(token), results)

    def close(self) -> None:
        """Close the connections."""
        self._connection.close()

    def _standing(self, project: str, token: str | None) -> Standing:
        asked = {"id": int(project), "extraFields": ["embeddingsEnabled"]}
        try:
            info = self._post("projects.info", asked, token)
        except Missing as error:
            where = self._connection.where
            raise ProjectNotFound(f"{project}: no such project at {where}") from error
        team = int(info["teamId"])
        return Standing(team, self._plan(team, token), info.get("embeddingsEnabled"))

    def _plan(self, team: int, token: str | None) -> str | None:
        try:
            usage = self._post("teams.info", {"id": team}, token).get("usage")
        except SourceUnavailable:
            raise
        except SourceError:  # who may not see the team's plan is not told of one
            return None
        return usage["plan"] if usage else None

    def _project_of(self, image_id: int, token: str | None) -> str | None:
        try:
            info = self._post("images.info", {"id": image_id}, token)
        except Missing:
            return None
        return str(info["projectId"]) if "projectId" in info else self._of_dataset(info, token)

    def _of_dataset(self, info: dict[str, Any], token: str | None) -> str:
        return str(self._post("datasets.info", {"id": info["datasetId"]}, token)["projectId"])

    def _post(self, method: str, data: object, token: str | None) -> dict[str, Any]:
        answer: dict[str, Any] = self._of(token).post(method, data, ASKED).json()
        return answer

    def _of(self, token: str | None) -> Connection:
        return self._connection if token is None else self._connection.of_caller(token)


class _Remembered(Generic[T]):
    """Answers, each for a minute; the oldest go first where there are too many."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[float, T]] = {}
        self._lock = Lock()

    def of(self, key: str, ask: Callable[[], T]) -> T:
        """What `ask` answered for this key a short while ago, or answers now."""
        with self._lock:
            until, answer = self._known.get(key, (0.0, None))
        if answer is None or until < time.monotonic():
            answer = ask()
            with self._lock:
                self._known.pop(key, None)
                self._known[key] = (time.monotonic() + REMEMBERED_SECONDS, answer)
                while len(self._known) > MOST_REMEMBERED:
                    self._known.pop(next(iter(self._known)))
        return answer


def _digest(token: str | None) -> str:
    """What stands for a token in memory."""
    return hashlib.sha256(token.encode()).hexdigest() if token else ""
