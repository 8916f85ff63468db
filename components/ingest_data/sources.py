"""Rows of one of the step's sources turned into chat records; what cannot be used goes to quarantine."""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import orjson

from secvec.components.ingest_data.config import Column, IngestConfig, SourceName
from secvec.components.ingest_data.quarantine import RowRefused, quarantine_row
from secvec.components.ingest_data.rows import Row
from secvec.components.ingest_data.shapes import (
    Shape,
    describe_shapes,
    detect_shape,
    read_messages,
    read_note,
)
from secvec.components.ingest_data.tokens import count_tokens
from secvec.components.ingest_data.turns import Turn
from secvec.components.shared.errors import SecvecError

SHOWN_REFUSALS = 3
_SHOWN_COLUMNS = 20
_MOST_COLUMNS = 1000
_NOTES: tuple[Column, ...] = ("category", "language", "label")


class ReadRecord(NamedTuple):
    """A chat record on its way to the disk; one for each row, so that it is lighter than a `ChatRecord`."""

    digest: bytes
    messages: tuple[Turn, ...]
    notes: tuple[str, str, str]
    source: str
    line: int
    tokens: int = 0

    def to_bytes(self) -> bytes:
        """Give the line of the JSONL file: what a `ChatRecord` writes."""
        category, language, label = self.notes
        return orjson.dumps(
            {
                "id": f"sha256:{self.digest.hex()}",
                "messages": [{"role": role, "content": content} for role, content in self.messages],
                "category": category,
                "language": language,
                "label": label,
                "source": self.source,
                "line": self.line,
            },
            option=orjson.OPT_APPEND_NEWLINE,
        )


@dataclass
class FileCount:
    """What became of one file's rows.

    Attributes:
        name: Its name without folder or bucket; a second file of the same name has ``#2`` behind it.
        format: JSONL, JSON, CSV, TSV, Parquet or Arrow, and how it is packed.
        digest: ``sha256:<hex>`` of its bytes.
        rows: How many rows it holds.
        used: How many of them became records.
        normalised: How many of these were changed by the Unicode normal form.
        over_long: How many rows have more tokens than ``max_tokens``, used or not.
        columns: Column names, in the order in which they were met.
        shapes: Used rows by the columns they were read from.
        reasons: Quarantined rows by reason.
        first_refusals: The first of them, with place and reason, for an error.
    """

    name: str
    format: str
    digest: str = ""
    rows: int = 0
    used: int = 0
    normalised: int = 0
    over_long: int = 0
    columns: dict[str, None] = field(default_factory=dict)
    shapes: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    first_refusals: list[str] = field(default_factory=list)

    def add(self, later: FileCount) -> None:
        """Take in what was counted in a later part of the same file."""
        self.rows += later.rows
        self.used += later.used
        self.normalised += later.normalised
        self.over_long += later.over_long
        self.columns |= later.columns
        self.shapes.update(later.shapes)
        self.reasons.update(later.reasons)
        self.first_refusals = [*self.first_refusals, *later.first_refusals][:SHOWN_REFUSALS]


class SourceReader:
    """Reads rows of one source and counts what became of every one.

    Args:
        name: Which of the step's sources it is.
        config: How rows are read.
        quarantine: Open ``quarantine.jsonl``.
        tokenizer: The model's tokenizer, where tokens are to be counted.
    """

    def __init__(
        self, name: SourceName, *, config: IngestConfig, quarantine: TextIO, tokenizer: Path | None = None
    ) -> None:
        self._tokenizer = tokenizer
        self.name = name
        self._config = config
        self._mapping: Mapping[Column, str] = config.columns.get(name, {})
        self._notes = [self._mapping.get(note, note) for note in _NOTES]
        self._quarantine = quarantine
        self._needs_answer = needs_answer(name)
        self._keys: tuple[Any, ...] = ()
        self._shape, self._shape_name = Shape(), ""

    def read(self, rows: Iterable[Row], count: FileCount) -> Iterator[ReadRecord]:
        """Yield the records of a file's rows, in order."""
        self._keys = ()
        for row in rows:
            record = self._read_row(row, count)
            if record is not None:
                yield record

    def _read_row(self, row: Row, count: FileCount) -> ReadRecord | None:
        count.rows += 1
        try:
            record = self._make_record(row, count)
        except RowRefused as refused:
            self._refuse(row, refused, count)
            return None
        count.used += 1
        count.shapes[self._shape_name] += 1
        return record

    def _make_record(self, row: Row, count: FileCount) -> ReadRecord:
        if row.refused is not None:
            raise row.refused
        values = row.values
        keys = tuple(values)
        if keys != self._keys:
            self._meet(keys, values, count)
        messages = read_messages(
            values,
            self._shape,
            needs_answer=self._needs_answer,
            tool_turns=self._config.tool_turns == "text",
        )
        if self._config.normalise != "none":
            messages = self._normalise(messages, count)
        category, language, label = [
            read_note(values, column) if values.get(column) is not None else "" for column in self._notes
        ]
        digest = hashlib.sha256(orjson.dumps([[role, content] for role, content in messages])).digest()
        tokens = self._count_tokens(messages, count) if self._tokenizer else 0
        return ReadRecord(digest, messages, (category, language, label), count.name, row.line, tokens)

    def _count_tokens(self, messages: tuple[Turn, ...], count: FileCount) -> int:
        assert self._tokenizer is not None
        tokens = count_tokens(messages, self._tokenizer)
        most = self._config.max_tokens
        if most and tokens > most:
            count.over_long += 1
            if self._config.over_long == "quarantine":
                raise RowRefused("over_long", f"{tokens} tokens, at most max_tokens = {most}")
        return tokens

    def _meet(self, keys: tuple[Any, ...], values: Mapping[str, Any], count: FileCount) -> None:
        """Find out the shape of rows with these columns: mostly all rows of a file have the same."""
        if len(count.columns) < _MOST_COLUMNS:
            count.columns.update(dict.fromkeys(map(str, keys)))
        self._keys = ()
        self._shape = detect_shape(values, mapping=self._mapping, needs_answer=self._needs_answer)
        self._keys, self._shape_name = keys, self._shape.name

    def _normalise(self, messages: tuple[Turn, ...], count: FileCount) -> tuple[Turn, ...]:
        form: Any = self._config.normalise
        found = tuple(
            turn if turn.content.isascii() else Turn(turn.role, unicodedata.normalize(form, turn.content))
            for turn in messages
        )
        count.normalised += found != messages
        return found

    def _refuse(self, row: Row, refused: RowRefused, count: FileCount) -> None:
        kept = quarantine_row(
            self._quarantine, refused, origin=self.name, source=count.name, line=row.line, raw=row.show()
        )
        count.reasons[kept.reason] += 1
        if len(count.first_refusals) < SHOWN_REFUSALS:
            count.first_refusals.append(f"{kept.source} line {kept.line} {kept.reason} ({kept.detail})")


def needs_answer(name: SourceName) -> bool:
    """Tell whether a source's rows need answers: what is only asked is judged by what the model says."""
    return name != "harm_prompts"


def check_file_count(name: SourceName, count: FileCount, *, where: str, config: IngestConfig) -> None:
    """Check that some row of a file could be used.

    Raises:
        SecvecError: None could.
    """
    if count.used or not count.rows:
        return
    accepted = _describe_columns(name, config)
    if set(count.reasons) == {"unknown_columns"}:
        raise SecvecError(f"unknown columns: {_show_columns(count.columns)}", where=where, accepted=accepted)
    raise SecvecError(
        f"none of {count.rows} rows can be used, first: {'; '.join(count.first_refusals)}",
        where=where,
        accepted=accepted,
    )


def check_source_counts(
    name: SourceName, counts: Sequence[FileCount], *, where: str, config: IngestConfig
) -> None:
    """Check a source as a whole.

    Raises:
        SecvecError: It holds no row, a mapped column is nowhere, or too many rows were refused.
    """
    rows = sum(count.rows for count in counts)
    if not rows:
        raise SecvecError("holds no rows", where=where, accepted="at least one row")
    columns = {column: None for count in counts for column in count.columns}
    for key, column in config.columns.get(name, {}).items():
        if column not in columns:
            raise SecvecError(
                f"no row has column {column!r}, named by columns.{name}.{key}",
                where=where,
                accepted=f"one of {_show_columns(columns)}",
            )
    refused = sum(count.reasons.total() for count in counts)
    if refused / rows > config.max_bad_share:
        first = [refusal for count in counts for refusal in count.first_refusals][:SHOWN_REFUSALS]
        raise SecvecError(
            f"{refused} of {rows} rows ({refused / rows:.1%}) cannot be used, first: " + "; ".join(first),
            where=where,
            accepted=f"at most max_bad_share = {config.max_bad_share:.1%}",
        )


def _describe_columns(name: SourceName, config: IngestConfig) -> str:
    mapping = config.columns.get(name, {})
    if "messages" in mapping or "prompt" in mapping:
        return f"columns.{name}: " + ", ".join(f"{key} = {column}" for key, column in mapping.items())
    return f"{describe_shapes(needs_answer=needs_answer(name))}, or a mapping in columns.{name}"


def _show_columns(columns: Iterable[str]) -> str:
    names = list(columns)
    return (", ".join(names[:_SHOWN_COLUMNS]) or "none") + (", ..." if len(names) > _SHOWN_COLUMNS else "")
