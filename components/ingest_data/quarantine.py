"""Rows that cannot be used: kept with their number and reason, never dropped."""

from __future__ import annotations

from typing import Literal, TextIO

from pydantic import BaseModel, ConfigDict

Reason = Literal[
    "malformed_json",
    "malformed_csv",
    "not_utf8",
    "too_long",
    "not_an_object",
    "wrong_field_count",
    "unknown_columns",
    "not_text",
    "unknown_role",
    "turn_order",
    "empty_text",
    "no_answer",
    "tool_turn",
    "over_long",
]

_RAW_CHARACTERS = 500


class RowRefused(Exception):
    """One row cannot be used."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason: Reason = reason
        self.detail = detail


class QuarantinedRow(BaseModel):
    """A line of ``quarantine.jsonl``.

    Attributes:
        origin: Which set of the step's sources it belongs to, for example ``training_data``.
        source: Name of its file.
        line: Number of the line or row there, from 1.
        reason: Why it is not used.
        detail: What exactly was found.
        raw: The first 500 characters of the row; undecodable bytes are written as escapes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    origin: str
    source: str
    line: int
    reason: Reason
    detail: str
    raw: str


def quarantine_row(
    stream: TextIO, refused: RowRefused, *, origin: str, source: str, line: int, raw: str
) -> QuarantinedRow:
    """Write one refused row to an open ``quarantine.jsonl`` and return what was written."""
    row = QuarantinedRow(
        origin=origin,
        source=source,
        line=line,
        reason=refused.reason,
        detail=_escape(refused.detail),
        raw=_escape(raw[:_RAW_CHARACTERS]),
    )
    stream.write(row.model_dump_json() + "\n")
    return row


def _escape(text: str) -> str:
    """Write lone surrogates, which UTF-8 cannot hold, as escapes."""
    return text.encode(errors="backslashreplace").decode()
