"""Results as an entities collection of a Supervisely project, where the instance shows them to people."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any, Literal

from embed_pipeline.patience import Patience
from embed_pipeline.sources.supervisely_http import Connection, Missing

SAVING = Patience(tries=2, try_seconds=10, total_seconds=25)
ITEMS_PER_REQUEST = 500

Kind = Literal["search", "diverse"]

_TITLES: Mapping[Kind, str] = {"search": "AI Search Collection", "diverse": "Diverse Collection"}
# Names are unique in a project. The new collection has the name that the one before it has not.
_TURNS = ("A", "B")


@dataclass(frozen=True)
class Results:
    """What a request found for a user. images: their numbers and scores (1 at most; None: none)."""

    project: str
    kind: Kind
    user_id: int
    images: Sequence[tuple[int, float | None]]

    @property
    def key(self) -> str:
        """The same for each request of this kind, by this user, in this project."""
        told = f"{self.project}/{self.kind}/{self.user_id}"
        return hashlib.sha256(told.encode()).hexdigest()[:32]

    @property
    def names(self) -> list[str]:
        """The collection's, in turns."""
        return [f"{_TITLES[self.kind]}: {self.key} {turn}" for turn in _TURNS]


class Collections:
    """Keeps one collection for each kind of request, user and project. To be shared between threads."""

    def __init__(self) -> None:
        self._locks = [Lock() for _ in range(64)]

    def save(self, connection: Connection, results: Results) -> tuple[int, set[int]]:
        """Replace what was saved before by a collection that is whole.

        Returns its number, and the images that are no longer there: they are not in it.
        """
        with self._locks[hash(results.key) % len(self._locks)]:
            known = _saved(connection, results)
            before, unfinished = next(iter(known), None), known[1:]
            for collection in unfinished:
                _remove(connection, collection["id"])
            name = next(n for n in results.names if before is None or before["name"] != n)
            saved = _create(connection, results, name)
            gone = _fill(connection, saved, results.images)
            if before is not None:
                _remove(connection, before["id"])
            return saved, gone


def _saved(connection: Connection, results: Results) -> list[dict[str, Any]]:
    """The oldest first: a newer one beside it was never finished."""
    named = {"field": "name", "operator": "in", "value": results.names}
    asked = {
        "projectId": int(results.project),
        "type": "aiSearch",
        "filter": [named],
        "sort": "id",
        "sort_order": "asc",
    }
    page = connection.post("entities-collections.list", asked, SAVING).json()
    return [found for found in page["entities"] if found["name"] in results.names]


def _create(connection: Connection, results: Results, name: str) -> int:
    asked = {
        "projectId": int(results.project),
        "name": name,
        "type": "aiSearch",
        "meta": {"aiSearchKey": results.key},
    }
    return int(connection.post("entities-collections.add", asked, SAVING).json()["id"])


def _fill(
    connection: Connection, collection: int, images: Sequence[tuple[int, float | None]]
) -> set[int]:
    gone: set[int] = set()
    for start in range(0, len(images), ITEMS_PER_REQUEST):
        some = images[start : start + ITEMS_PER_REQUEST]
        asked = {"collectionId": collection, "entityItems": [_item(*image) for image in some]}
        answer = connection.post("entities-collections.items.bulk.add", asked, SAVING).json()
        gone |= {int(each["entityId"]) for each in answer["missing"]}
    return gone


def _item(image_id: int, score: float | None) -> dict[str, Any]:
    item: dict[str, Any] = {"entityId": image_id}
    return item if score is None else item | {"meta": {"score": min(1.0, score)}}


def _remove(connection: Connection, collection: int) -> None:
    try:
        asked = {"id": collection, "hardDelete": True}
        connection.post("entities-collections.remove", asked, SAVING)
    except Missing:
        pass  # somebody was faster
