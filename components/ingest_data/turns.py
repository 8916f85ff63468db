"""Turns of a conversation while it is read."""

from __future__ import annotations

from typing import Any, NamedTuple

from secvec.components.ingest_data.quarantine import RowRefused
from secvec.components.shared.records import Role


class Turn(NamedTuple):
    """One turn of a conversation; what a `Message` is in a finished record."""

    role: Role
    content: str


def check_text(value: Any, *, column: str) -> str:
    """Return a value that is text and that UTF-8 can hold.

    Raises:
        RowRefused: ``not_text``, ``not_utf8``.
    """
    if not isinstance(value, str):
        raise RowRefused("not_text", f"{column} is {'missing' if value is None else type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise RowRefused("not_utf8", f"{column}, character {error.start + 1}: {error.reason}") from None
    return value
