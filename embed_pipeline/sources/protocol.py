"""What a source of images is to the rest of the project."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from threading import Event
from typing import Protocol

import polars as pl

from embed_pipeline.models.protocol import ORIGINAL

CHANGED = "the image was changed after it was listed; the next sync lists it again"


@dataclass(frozen=True)
class Listing:
    """One page of a project's listing. images: MANIFEST columns. ignored: files that are no images."""

    images: pl.DataFrame
    ignored: int = 0


@dataclass(frozen=True)
class Wanted:
    """A picture to fetch: whose locator and content_hash are the manifest's.

    rendition: which form of it, as in `ModelCard.rendition`. max_bytes: larger ones are an error.
    """

    locator: str
    content_hash: bytes
    max_bytes: int
    rendition: str = ORIGINAL


@dataclass(frozen=True)
class Proof:
    """What an audit found to be true of a project.

    images: image_id and content_hash of all. failed: ids of those that cannot be embedded; the collection
    holds all others, and nothing else. written: ids of those whose points this run wrote.
    """

    images: pl.DataFrame
    failed: pl.Series
    written: pl.Series


class ImageSource(Protocol):
    """Projects of images. Every call raises SourceUnavailable when the source does not answer."""

    source_id: str

    def projects(self) -> list[str]:
        """The projects' names, sorted. A half listing is an error, never a short answer."""
        ...

    def left_out(self) -> dict[str, list[str]]:
        """Projects that are there and not offered, by the reason, as of the last `projects`."""
        ...

    def title(self, project: str) -> str:
        """The project's name for people."""
        ...

    def revision(self, project: str, *, as_listed: bool = False) -> tuple[int, str]:
        """How many images the project has, and a token that changes when any of them does; cheap.

        as_listed: as the last `projects` told it will do. Raises ProjectNotFound.
        """
        ...

    def scan(self, project: str) -> Iterator[Listing]:
        """Every image once, in pages. Ending without an error means that the listing is whole.

        Images that vanish meanwhile are left out; unreadable ones have no content hash.
        Raises ProjectNotFound.
        """
        ...

    def rendition(self, side: int) -> str:
        """The form in which images are embedded by a model whose input is `side` pixels."""
        ...

    def fetch(self, project: str, wanted: Wanted, stop: Event) -> bytes:
        """A picture's bytes, from any thread. stop: when set, nothing is waited for any more.

        Raises ImageError with stage `fetch`; also, as transient, where the content is not the listed one.
        """
        ...

    def changed(self, project: str, wanted: Sequence[Wanted]) -> set[bytes]:
        """Contents of what was fetched that may not be the listed ones, as the source tells by now."""
        ...

    def where(self, project: str, locator: str) -> str:
        """A path or address at which a person finds the image."""
        ...

    def working(self) -> set[str]:
        """Projects that the source shows as worked on, as of the last `projects`."""
        ...

    def begin(self, project: str) -> None:
        """Show that a run works on the project."""
        ...

    def prove(self, project: str, proof: Proof) -> None:
        """Show which images the collection was proved to hold."""
        ...

    def end(self, project: str, error: str | None = None) -> bool:
        """Show that no run works on the project any more; error: why the last one failed, for people.

        Returns whether anything was told, which may have changed the project's token.
        """
        ...

    def close(self) -> None:
        """Let go of connections; the source is not used any more."""
        ...


class ShowsNothing:
    """For sources that cannot show how their projects are, and offer all of them."""

    def left_out(self) -> dict[str, list[str]]:
        """None."""
        return {}

    def title(self, project: str) -> str:
        """The project's name."""
        return project

    def working(self) -> set[str]:
        """None."""
        return set()

    def begin(self, project: str) -> None:
        """Show nothing."""

    def prove(self, project: str, proof: Proof) -> None:
        """Show nothing."""

    def end(self, project: str, error: str | None = None) -> bool:
        """Show nothing."""
        return False

    def close(self) -> None:
        """Nothing is held."""
