"""What was found, as JSON over HTTP can hold it."""

import os
from dataclasses import replace
from typing import TypeVar

from embed_pipeline.search.query import Hit
from embed_pipeline.search.selection import Chosen

Image = TypeVar("Image", Hit, Chosen)


def sendable(found: Image) -> Image:
    """The image with its path as UTF-8: a path is bytes and need not be that."""
    path = os.fsencode(found.path).decode(errors="replace")
    return found if path == found.path else replace(found, path=path)
