"""What a source of images is to the rest of the project."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import polars as pl


@dataclass(frozen=True)
class Listing:
    """One page of a project's listing. images: MANIFEST columns. ignored: files that are no images."""

    images: pl.DataFrame
    ignored: int = 0


class ImageSource(Protocol):
    """Projects of images. Every call raises SourceUnavailable when the source does not answer."""

    source_id: str

    def projects(self) -> list[str]:
        """The projects' names, sorted. A half listing is an error, never a short answer."""
        ...

    def revision(self, project: str) -> tuple[int, str]:
        """How many images the project has, and a token that changes when any of them does; cheap.

        Raises ProjectNotFound.
        """
        ...

    def scan(self, project: str) -> Iterator[Listing]:
        """Every image once, in pages. Ending without an error means that the listing is whole.

        Images that vanish meanwhile are left out; unreadable ones have no content hash.
        Raises ProjectNotFound.
        """
        ...

    def fetch(self, project: str, locator: str, content_hash: bytes, max_bytes: int) -> bytes:
        """An image's bytes, from any thread.

        Raises ImageError with stage `fetch`; also, as transient, where the content is not the listed one.
        """
        ...

    def where(self, project: str, locator: str) -> str:
        """A path or address at which a person finds the image."""
        ...
