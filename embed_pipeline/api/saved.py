"""Results, saved in the caller's name as an entities collection of the Supervisely instance."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from embed_pipeline.api.security import Caller
from embed_pipeline.errors import SourceRefused
from embed_pipeline.sources.supervisely_collections import Kind, Results

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Saved:
    """Where results are. gone: images that the instance has no more. note: for the answer's message."""

    collection_id: int | None = None
    gone: frozenset[str] = frozenset()
    note: str = ""


def save(
    caller: Caller, project: str, kind: Kind, images: Sequence[tuple[str, float | None]]
) -> Saved:
    """Save images with their scores, where there is an instance, and the caller gave a token of theirs.

    The service's own token is never used for it.
    """
    callers = caller.gate.callers
    if not (callers and images):
        return Saved()
    if caller.token is None or caller.user_id is None:
        return Saved(note=" Not saved as an entities collection: that takes your own API token.")
    numbers = [(int(id_), score) for id_, score in images]
    results = Results(project, kind, caller.user_id, numbers)
    try:
        collection_id, gone = callers.save(results, caller.token)
    except SourceRefused as error:
        logger.warning("%s: results of user %s not saved: %s", project, caller.user_id, error)
        return Saved(note=" Not saved as an entities collection: the instance does not let you.")
    return Saved(collection_id, frozenset(map(str, gone)))
