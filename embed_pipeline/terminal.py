"""What a person sees: bars on a terminal, tables, one-line errors. Machines get JSON."""

import json
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from typing import TYPE_CHECKING, Any

from embed_pipeline.progress import Progress, silent

PIPE_COLUMNS = 10_000

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def print_json(
    document: "DataclassInstance | Sequence[DataclassInstance] | Mapping[str, Any]",
) -> None:
    """One JSON document on stdout, UTF-8.

    A path that is not UTF-8 has lone surrogates for its odd bytes. As JSON escapes they are valid,
    and Python's os.fsencode gives the path back.
    """
    text = json.dumps(document, default=_as_json, ensure_ascii=False, indent=2) + "\n"
    sys.stdout.buffer.write(text.encode(errors="backslashreplace"))
    sys.stdout.flush()


def print_table(rows: "Sequence[DataclassInstance]", columns: Sequence[str]) -> None:
    """A table on stdout; fields that are None stay empty."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold")
    for column in columns:
        table.add_column(column.replace("_", " "), overflow="fold")
    for row in rows:
        table.add_row(*(Text(_cell(getattr(row, column))) for column in columns))
    # A pipe has no width: nothing is folded there.
    Console(width=None if sys.stdout.isatty() else PIPE_COLUMNS).print(table)


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return "" if value is None else str(value).encode(errors="replace").decode()


def print_line(text: str) -> None:
    """One line on stdout."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def show_warnings() -> None:
    """Log lines of ours on stderr, of the level that EMBED_LOG_LEVEL says."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    logging.getLogger("embed_pipeline").handlers = [handler]


def say(message: str) -> None:
    """One line on stderr."""
    sys.stderr.write(message + "\n")


@contextmanager
def progress_bar(title: str) -> Iterator[Progress]:
    """A bar with rate and time left on stderr, where that is a terminal; nothing in a pipe."""
    if not sys.stderr.isatty():
        yield silent
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.progress import (
        Progress as Bar,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        tasks = {}

        def told(step: str, done: int, total: int | None) -> None:
            if step not in tasks:
                tasks[step] = bar.add_task(f"{title} {step}", total=total, rate="")
            speed = bar.tasks[tasks[step]].speed
            bar.update(
                tasks[step], completed=done, total=total, rate=f"{speed:,.0f}/s" if speed else ""
            )

        yield told


def _as_json(value: object) -> object:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    raise TypeError(f"{type(value).__name__} has no form in JSON")
