"""Which space a project is searched in. It changes in one small write, forwards or back."""

import json
from dataclasses import asdict, dataclass

from embed_pipeline.durable import replace_durably
from embed_pipeline.errors import NothingToRollBack
from embed_pipeline.home import ProjectHome
from embed_pipeline.models.protocol import ModelCard


@dataclass(frozen=True)
class Space:
    """A space and the model (as in EMBED_MODEL) that encodes queries for it."""

    space: str
    model: str


@dataclass(frozen=True)
class Serving:
    """What a project is searched in. previous: what it was searched in before; rollback's aim.

    rejected: the space that a rollback left. It is not brought back by itself.
    """

    now: Space
    previous: Space | None = None
    rejected: str | None = None


def serve_from(home: ProjectHome, card: ModelCard) -> None:
    """Search the project in the card's space from now on: one small write."""
    serving = serving_of(home)
    now = Space(card.space, card.name)
    if serving is None or serving.now.space != now.space:
        _write(home, Serving(now, serving.now if serving else None))
    elif serving.now != now:
        _write(home, Serving(now, serving.previous, serving.rejected))


def roll_back(home: ProjectHome, project: str) -> Serving:
    """Search the project in its previous space again. Rolling back once more undoes that.

    Raises NothingToRollBack.
    """
    serving = serving_of(home)
    if serving is None or serving.previous is None:
        raise NothingToRollBack(
            f"{project}: there is no previous space to go back to: the model was never changed, or "
            "embed-pipeline prune dropped what it had made; set EMBED_MODEL instead"
        )
    swapped = Serving(serving.previous, serving.now, rejected=serving.now.space)
    _write(home, swapped)
    return swapped


def forget_previous(home: ProjectHome) -> None:
    """Note that the previous space was dropped."""
    if (serving := serving_of(home)) and serving.previous:
        _write(home, Serving(serving.now, None, serving.rejected))


def serving_of(home: ProjectHome) -> Serving | None:
    """What the project is searched in; None before its first audit passed."""
    try:
        told = json.loads(home.serving.read_text())
        previous = told["previous"]
        return Serving(
            now=Space(**told["now"]),
            previous=Space(**previous) if previous else None,
            rejected=told["rejected"],
        )
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _write(home: ProjectHome, serving: Serving) -> None:
    text = json.dumps(asdict(serving))
    replace_durably(home.serving, lambda path: path.write_text(text))
