"""How a stand-in Supervisely instance answers: replies, refusals, and lists in pages.

A method, key, filter or operator that the contract does not have is refused, and marked as unknown.
"""

import json
import operator
import re
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from typing import Any, NamedTuple

from embed_pipeline_tests.supervisely_records import Project

Body = dict[str, Any]

PAGE = "page per_page filter sort sort_order"  # keys of every list


@dataclass(frozen=True)
class Reply:
    """What goes back."""

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> "Reply":
        """JSON."""
        kind = {"Content-Type": "application/json; charset=utf-8"}
        return cls(status, json.dumps(content).encode(), kind | (headers or {}))


class Refused(Exception):
    """The answer is an error. unknown: the contract does not have what was asked."""

    def __init__(self, status: int, message: str, kind: str = "", *, unknown: bool = False) -> None:
        super().__init__(message)
        self.unknown = unknown
        details = {"message": message} | ({"type": kind} if kind else {})
        self.reply = Reply.of({"error": message, "details": details}, status)


class Method(NamedTuple):
    """A method: what answers it, the keys its body may have, and whether it changes the state."""

    answer: "Answer"
    keys: frozenset[str]
    changes: bool


KNOWN: dict[str, Method] = {}
Answer = Callable[[Any, Body], Any]


def method(name: str, keys: str = "", *, changes: bool = False) -> Callable[[Answer], Answer]:
    """Answer the API's method of this name, whose body may have these keys."""

    def register(answer: Answer) -> Answer:
        KNOWN[name] = Method(answer, frozenset(keys.split()), changes)
        return answer

    return register


def not_found() -> Reply:
    """The answer where there is nothing."""
    return Reply.of({"error": "Not Found", "details": {"message": "not found"}}, 404)


def found(things: dict[int, Any], id_: int, kind: str) -> Any:
    """The thing of this id. Raises Refused where there is none."""
    if not isinstance(id_, int):
        raise TypeError(f"{id_!r} is not the id of any {kind}")
    if id_ not in things:
        raise Refused(404, f"no {kind} {id_}")
    return things[id_]


def page(
    body: Body, things: Iterable[Any], entity: Callable[[Any], Body], filters: str, per_page: int
) -> Body:
    """The page that was asked for, in the page dialect."""
    rows = matching(things, body.get("filter") or (), filters)
    rows = _in_order(rows, body.get("sort") or "id", body.get("sort_order") or "asc")
    per_page = body.get("per_page") or per_page
    start = ((body.get("page") or 1) - 1) * per_page
    return {
        "total": len(rows),
        "perPage": per_page,
        "pagesCount": -(-len(rows) // per_page),
        "entities": [entity(row) for row in rows[start : start + per_page]],
    }


def token_page(
    body: Body, things: Iterable[Any], entity: Callable[[Any], Body], filters: str, per_page: int
) -> Body:
    """The same in the token dialect: rows by id, those after the token's."""
    rows = sorted(matching(things, body.get("filter") or (), filters), key=lambda row: row.id)
    per_page = body.get("per_page") or per_page
    last = _id_in(body["after"]) if body.get("after") is not None else 0
    rest = [row for row in rows if row.id > last]
    shown = rest[:per_page]
    return {
        "total": len(rows),
        "perPage": per_page,
        "pagesCount": -(-len(rows) // per_page),
        "after": _token(shown[-1].id) if len(rest) > per_page else None,
        "entities": [entity(row) for row in shown],
    }


def _token(id_: int) -> str:
    return b64encode(b"after %d" % id_).decode()


def _id_in(token: str) -> int:
    return int(b64decode(token, validate=True).removeprefix(b"after "))


OPERATORS: dict[str, Callable[[Any, Any], bool]] = {}
for _names, _compares in (
    ("= eq", operator.eq),
    ("!= not", lambda have, value: have != value and (value is None or have is not None)),
    ("in", lambda have, value: have in value),
    ("!in", lambda have, value: have is not None and have not in value),
    ("> gt", lambda have, value: None not in (have, value) and have > value),
    (">= gte", lambda have, value: None not in (have, value) and have >= value),
    ("< lt", lambda have, value: None not in (have, value) and have < value),
    ("<= lte", lambda have, value: None not in (have, value) and have <= value),
):
    OPERATORS |= dict.fromkeys(_names.split(), _compares)


def matching(things: Iterable[Any], filters: Iterable[Body], allowed: str) -> list[Any]:
    """The things that all filters let through. Raises Refused."""
    rows = list(things)
    for asked in filters:
        name, compares = asked["field"], OPERATORS.get(asked.get("operator", "="))
        if name not in allowed.split() or compares is None:
            raise Refused(400, f"no filter {asked}", unknown=True)
        have, value = _getter(name), _comparable(name, asked["value"])
        rows = [row for row in rows if compares(_comparable(name, have(row)), value)]
    return rows


def _in_order(rows: list[Any], name: str, order: str) -> list[Any]:
    have = _getter(name)
    return sorted(
        rows,
        key=lambda row: ((value := have(row)) is not None, value or 0),
        reverse=order == "desc",
    )


def _getter(name: str) -> Callable[[Any], Any]:
    if name == "projectId":  # of a project: its own
        return lambda thing: thing.id if isinstance(thing, Project) else thing.project_id
    return lambda thing: getattr(thing, snake(name))


def _comparable(name: str, value: Any) -> Any:
    return datetime.fromisoformat(value) if name.endswith("At") and value else value


@cache
def snake(name: str) -> str:
    """What a field of the platform is called here."""
    if name == "pathOriginal":
        return "path"
    return re.sub("[A-Z]", lambda capital: f"_{capital[0].lower()}", name)


def plain(thing: Any, names: Iterable[str]) -> Body:
    """These fields, by the platform's names."""
    return {name: getattr(thing, snake(name)) for name in names}
