"""Rows of a file, one by one, each with its number: JSONL, JSON array, CSV, TSV, Parquet or Arrow."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import orjson

from secvec.components.ingest_data.config import Limits
from secvec.components.ingest_data.quarantine import RowRefused
from secvec.components.shared.errors import SecvecError

FORMATS = {
    ".jsonl": "JSONL",
    ".ndjson": "JSONL",
    ".json": "JSON",
    ".csv": "CSV",
    ".tsv": "TSV",
    ".parquet": "Parquet",
    ".arrow": "Arrow",
    ".feather": "Arrow",
}
PACKINGS = {".gz": "gzip", ".zst": "zstd"}
BOM = b"\xef\xbb\xbf"
_BLOCK = 1 << 22
_STRUCTURE = re.compile(rb'"(?:[^"\\]|\\.)*+"|[\[\]{}]', re.DOTALL)
_KEPT = 4096  # bytes of a row that is too long, for the quarantine


class Row(NamedTuple):
    """One row as the file has it.

    Attributes:
        line: Line on which it starts (JSONL, CSV) or number of the row (JSON array, Parquet), from 1.
        values: Values by column; empty where the row could not be read.
        raw: Its text in the file, where the file is read as text.
        refused: Why it could not be read.
    """

    line: int
    values: Mapping[str, Any]
    raw: str | bytes = ""
    refused: RowRefused | None = None

    def show(self) -> str:
        """Return the row as text, for a person to look at."""
        if isinstance(self.raw, bytes):
            return self.raw.decode(errors="backslashreplace")
        return self.raw or json.dumps(self.values, ensure_ascii=False, default=repr)


class Span(NamedTuple):
    """A part of a JSONL file that starts and ends between two lines.

    Attributes:
        start: Offset of its first byte.
        end: Offset behind its last byte.
        first_line: Number of its first line, from 1.
    """

    start: int = 0
    end: int = 1 << 62
    first_line: int = 1


def check_format(name: str, *, where: str) -> str:
    """Return the format that a file's name announces, whether or not it is packed.

    Raises:
        SecvecError: Its extension is none of `FORMATS`.
    """
    suffix = Path(bare_name(name)).suffix.lower()
    if suffix not in FORMATS:
        raise SecvecError(
            f"unknown format {suffix!r}" if suffix else "no extension that tells its format",
            where=where,
            accepted=f"a name ending in {', '.join(FORMATS)}, or in one of these and {', '.join(PACKINGS)}",
        )
    return FORMATS[suffix]


def bare_name(name: str) -> str:
    """Return a name without the ending that says how the file is packed."""
    return name[: -len(Path(name).suffix)] if Path(name).suffix.lower() in PACKINGS else name


def is_json_lines(path: Path, file_format: str) -> bool:
    """Tell whether a file holds one JSON object a line: JSONL, or JSON that is no array."""
    if file_format == "JSON":
        with path.open("rb") as stream:
            return not stream.read(4096).removeprefix(BOM).lstrip().startswith(b"[")
    return file_format == "JSONL"


def open_rows(
    path: Path, file_format: str, *, where: str, limits: Limits | None = None, span: Span | None = None
) -> tuple[int, Iterator[Row]]:
    """Open a file, or a span of a JSONL file, for reading row by row.

    Blank lines are no rows. Undecodable bytes spoil the row that holds them, not the file.

    Returns:
        The highest row number to expect, for progress, and the rows.

    Raises:
        SecvecError: The file as a whole cannot be read as its format; some of it only while iterating.
    """
    from secvec.components.ingest_data import columnar, delimited, json_array

    limits = limits or Limits()
    if file_format in ("Parquet", "Arrow"):
        return columnar.open_table(path, file_format, where=where, limits=limits)
    with path.open("rb") as stream:
        start = stream.read(4)
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise SecvecError("is UTF-16", where=where, accepted="UTF-8, or an encoding named in encodings")
    if is_json_lines(path, file_format):
        lines = 0 if span else count_lines(path)
        return lines, _read_json_lines(path, span or Span(), limits)
    if file_format == "JSON":
        return json_array.open_array(path, where=where, limits=limits)
    separator = "\t" if file_format == "TSV" else ","
    return count_lines(path), delimited.read_delimited(path, separator, where=where, limits=limits)


def count_lines(path: Path) -> int:
    """Count a file's lines; the last need not end."""
    count, last = 0, b"\n"
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            count, last = count + chunk.count(b"\n"), chunk[-1:]
    return count + (last != b"\n")


def _read_json_lines(path: Path, span: Span, limits: Limits) -> Iterator[Row]:
    number = span.first_line - 1
    longest = limits.max_row_bytes
    with path.open("rb") as stream:
        stream.seek(span.start)
        for line, length in _split_lines(stream, span.end - span.start, longest):
            number += 1
            if number == 1:
                line = line.removeprefix(BOM)  # noqa: PLW2901
            if length > longest:
                yield Row(number, {}, line, too_long(length, limits))
            elif line and not line.isspace():
                yield parse_json_row(number, line, limits)


def _split_lines(stream: BinaryIO, size: int, longest: int) -> Iterator[tuple[bytes, int]]:
    """Yield each line with its length; of one that is longer than `longest`, only the beginning."""
    rest, skipped = b"", 0
    while size > 0 and (block := stream.read(min(_BLOCK, size))):
        size -= len(block)
        lines = (rest + block).split(b"\n")
        rest = lines.pop()
        if lines and skipped:
            yield lines[0], skipped + len(lines[0])
            lines, skipped = lines[1:], 0
        for line in lines:
            yield line, len(line)
        if len(rest) > longest or skipped:
            skipped += max(0, len(rest) - _KEPT)
            rest = rest[:_KEPT]
    if rest or skipped:
        yield rest, skipped + len(rest)


def too_long(length: int, limits: Limits) -> RowRefused:
    """Make the refusal of a row of so many bytes."""
    return RowRefused("too_long", f"{length} bytes, at most limits.max_row_bytes = {limits.max_row_bytes}")


def parse_json_row(number: int, content: bytes, limits: Limits) -> Row:
    """Read one JSON object, by the fast parser where that is enough and else by the exact one."""
    try:
        values = orjson.loads(content)
    except orjson.JSONDecodeError:
        return _parse_exactly(number, content.rstrip(b"\r"), limits)
    if type(values) is not dict:
        return row_of_object(number, values, content)
    # Two quotes around each key and each value: no key is there twice, and nothing is nested.
    if content.count(b'"') == 4 * len(values) <= limits.max_columns and _all_text(values):
        return Row(number, values, content)
    return _check_object(number, values, content, limits)


def _all_text(values: dict[str, Any]) -> bool:
    for value in values.values():  # noqa: SIM110 - a generator would cost more than all that it runs
        if type(value) is not str:
            return False
    return True


def _check_object(number: int, values: dict[str, Any], content: bytes, limits: Limits) -> Row:
    if (too_deep := _check_depth(content, limits)) is not None:
        return Row(number, {}, content, too_deep)
    if len(values) > limits.max_columns:
        detail = f"{len(values)} keys, at most limits.max_columns = {limits.max_columns}"
        return Row(number, {}, content, RowRefused("malformed_json", detail))
    for key in values:
        # A key may also be said in its text: only the exact parser can tell.
        if content.count(b'"%b"' % key.encode()) > 1:
            return _parse_exactly(number, content, limits)
    return Row(number, values, content)


def _check_depth(content: bytes, limits: Limits) -> RowRefused | None:
    brackets = content.count(b"[") + content.count(b"{")
    if brackets <= limits.max_json_depth or not _exceeds_depth(content, limits.max_json_depth):
        return None
    return RowRefused("malformed_json", f"nested deeper than limits.max_json_depth = {limits.max_json_depth}")


def _parse_exactly(number: int, content: bytes, limits: Limits) -> Row:
    if (too_deep := _check_depth(content, limits)) is not None:
        return Row(number, {}, content, too_deep)
    try:
        values = json.loads(content.decode(), object_pairs_hook=_refuse_repeated)
    except UnicodeDecodeError as error:
        return Row(number, {}, content, RowRefused("not_utf8", f"byte {error.start + 1}: {error.reason}"))
    # Deep nesting and numbers of thousands of digits are no JSONDecodeError.
    except (ValueError, RecursionError) as error:
        return Row(number, {}, content, RowRefused("malformed_json", str(error)))
    return row_of_object(number, values, content)


def _refuse_repeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        again = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"key {again!r} is there twice")
    return found


def row_of_object(number: int, values: Any, raw: str | bytes = "") -> Row:
    """Make a row of what a JSON text held, which must be an object."""
    if isinstance(values, dict):
        return Row(number, values, raw)
    kind = type(values).__name__
    return Row(number, {}, raw or repr(values), RowRefused("not_an_object", f"JSON {kind}, not an object"))


def _exceeds_depth(content: bytes, deepest: int) -> bool:
    depth = 0
    for sign in _STRUCTURE.finditer(content):
        if sign[0] in (b"[", b"{"):
            depth += 1
            if depth > deepest:
                return True
        elif sign[0] in (b"]", b"}"):
            depth -= 1
    return False


def check_header(names: list[str], *, where: str, limits: Limits) -> list[str]:
    """Return column names if each is there once.

    Raises:
        SecvecError: Two columns have one name, or there are too many.
    """
    if len(names) > limits.max_columns:
        raise SecvecError(
            f"has {len(names)} columns",
            where=where,
            accepted=f"at most limits.max_columns = {limits.max_columns}",
        )
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise SecvecError(f"column {name!r} is there twice", where=where, accepted="each name once")
        seen.add(name)
    return names
