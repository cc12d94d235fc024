"""How far a step is, for whoever looks."""

from typing import Protocol


class Progress(Protocol):
    """Told a step's name, how much of it is done, and of how much (None: not known)."""

    def __call__(self, step: str, done: int, total: int | None) -> None:
        """Take note."""
        ...


def silent(step: str, done: int, total: int | None) -> None:
    """Progress that nobody looks at."""


def told_to(*listeners: Progress) -> Progress:
    """Progress that several look at."""

    def tell(step: str, done: int, total: int | None) -> None:
        for listener in listeners:
            listener(step, done, total)

    return tell
