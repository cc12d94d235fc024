"""Pausing a project: nobody works on it until somebody resumes it, also after a restart."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime

from embed_pipeline.durable import replace_durably
from embed_pipeline.home import ProjectHome


@dataclass(frozen=True)
class Pause:
    """The last pause or resumption of a project. at: UTC."""

    paused: bool
    at: datetime


def pause(home: ProjectHome) -> None:
    """Let nobody begin to work on the project. Does not stop who works on it now."""
    _write(home, paused=True)


def resume(home: ProjectHome) -> None:
    """Let the project go on, also where it was only stopped."""
    _write(home, paused=False)


def pause_of(home: ProjectHome) -> Pause | None:
    """The last pause or resumption; None where there never was one."""
    try:
        told = json.loads(home.pause.read_text())
    except FileNotFoundError:
        return None
    return Pause(told["paused"], datetime.fromisoformat(told["at"]))


def is_paused(home: ProjectHome) -> bool:
    """Whether nobody may work on the project now."""
    found = pause_of(home)
    return found is not None and found.paused


def _write(home: ProjectHome, *, paused: bool) -> None:
    home.make()
    text = json.dumps({"paused": paused, "at": datetime.now(UTC).isoformat()})
    replace_durably(home.pause, lambda path: path.write_text(text))
