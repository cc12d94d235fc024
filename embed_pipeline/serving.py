"""Which space a project is served from: search keeps to it until another one's audit has passed."""

import json
from dataclasses import dataclass

from embed_pipeline.durable import replace_durably
from embed_pipeline.home import ProjectHome
from embed_pipeline.models.protocol import ModelCard


@dataclass(frozen=True)
class Serving:
    """A space and the model (as in EMBED_MODEL) that encodes queries for it."""

    space: str
    model: str


def serve_from(home: ProjectHome, card: ModelCard) -> None:
    """Serve the project from the card's space from now on: one small write."""
    if serving_of(home) != Serving(card.space, card.name):
        text = json.dumps({"space": card.space, "model": card.name})
        replace_durably(home.serving, lambda path: path.write_text(text))


def serving_of(home: ProjectHome) -> Serving | None:
    """What the project is served from; None before its first audit passed."""
    try:
        told = json.loads(home.serving.read_text())
        return Serving(told["space"], told["model"])
    except (FileNotFoundError, ValueError, KeyError):
        return None
