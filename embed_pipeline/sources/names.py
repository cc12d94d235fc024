"""File names as text, and project names as partition keys.

A file name is bytes and need not be UTF-8; tables, payloads and JSON hold text. Names that are
UTF-8 stay as they are. Others become `//` and the percent-encoded bytes: no relative path begins
with two slashes, so no two names meet and each can be turned back.
"""

import os
from pathlib import PurePosixPath
from urllib.parse import quote_from_bytes, unquote_to_bytes

NOT_UTF8 = "//"


def to_text(path: bytes) -> str:
    """Text for a relative path. Undone by `from_text`."""
    try:
        return path.decode()
    except UnicodeDecodeError:
        return NOT_UTF8 + quote_from_bytes(path)


def from_text(text: str) -> bytes:
    """The relative path that `to_text` was given."""
    if text.startswith(NOT_UTF8):
        return unquote_to_bytes(text.removeprefix(NOT_UTF8))
    return text.encode()


def readable(path: bytes) -> str:
    """The last component for people to read: bytes that are not UTF-8 show as U+FFFD."""
    return PurePosixPath(path.decode(errors="replace")).name


def typed(argument: str) -> str:
    """The text form of a name as the operating system hands it to a program."""
    return to_text(os.fsencode(argument))


def partition_key(project: str) -> str:
    """A project's name as a Dagster partition key: ASCII, no control characters, no `...`."""
    return quote_from_bytes(from_text(project), safe=" ()+,=@").replace("..", "%2E%2E")


def project_of(partition_key: str) -> str:
    """The project's name behind a partition key."""
    return to_text(unquote_to_bytes(partition_key))
