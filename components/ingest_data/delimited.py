"""Rows of CSV and TSV files."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from secvec.components.ingest_data.config import Limits
from secvec.components.ingest_data.quarantine import RowRefused
from secvec.components.ingest_data.rows import Row, check_header, too_long
from secvec.components.shared.errors import SecvecError


class _TooLong(Exception):
    """One row holds more characters than a row may have bytes."""


def read_delimited(path: Path, separator: str, *, where: str, limits: Limits) -> Iterator[Row]:
    """Read a file with a header and quoted fields, which may hold line ends.

    Raises:
        SecvecError: While iterating: a quote that does not close, or a header that cannot be used.
    """
    # The limit, 128 KiB a field, is less than a long document; it can only be set for the whole process.
    csv.field_size_limit(2**31 - 1)
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
        header: list[str] = []
        for line, fields, raw in _parse(stream, separator, where=where, limits=limits):
            if isinstance(fields, RowRefused):
                yield Row(line, {}, raw, fields)
            elif not header:
                header = check_header(fields, where=where, limits=limits)
            elif len(fields) != len(header):
                detail = f"{len(fields)} fields, the header has {len(header)}"
                yield Row(line, {}, raw, RowRefused("wrong_field_count", detail))
            else:
                yield Row(line, dict(zip(header, fields, strict=True)), raw)


def _parse(
    stream: TextIO, separator: str, *, where: str, limits: Limits
) -> Iterator[tuple[int, list[str] | RowRefused, str]]:
    """Yield each row that is not blank: the line it starts on, its fields, its text."""
    consumed: list[str] = []
    reader = csv.reader(_keep_lines(stream, consumed, limits.max_row_bytes), delimiter=separator, strict=True)
    while True:
        line = reader.line_num + 1
        consumed.clear()
        try:
            fields: list[str] | RowRefused = next(reader)
        except StopIteration:
            return
        except _TooLong as error:
            # Where the next row begins is anyone's guess: the quote may have swallowed it.
            raise SecvecError(
                f"a row of more than {error.args[0]} bytes from line {line}",
                where=where,
                accepted=f"rows of at most limits.max_row_bytes = {limits.max_row_bytes}, quotes that close",
            ) from None
        except csv.Error as error:
            if line == 1 or len(consumed) > 1:
                # The quote may have swallowed rows, and where they begin is anyone's guess.
                raise SecvecError(
                    f"malformed {'TSV' if separator == chr(9) else 'CSV'} from line {line} to line "
                    f"{reader.line_num}: {error}",
                    where=where,
                    accepted="fields in double quotes that close, with the quotes in them doubled",
                ) from None
            fields = RowRefused("malformed_csv", str(error))
        if fields:
            length = sum(map(len, consumed))
            if length > limits.max_row_bytes:
                fields = too_long(length, limits)
            yield line, fields, _show(consumed)


def _keep_lines(stream: TextIO, consumed: list[str], longest: int) -> Iterator[str]:
    """Yield lines, never holding much more than the longest row that is allowed.

    A single line that is too long is cut and handed on alone, so that its row is refused and the next is
    read; a row that grows over many lines ends the file.
    """
    held = 0
    while line := stream.readline(longest + 2):
        if not consumed:
            held = 0
        held += len(line)
        if held > longest:
            if consumed or line.count('"'):
                raise _TooLong(held)
            while not line.endswith("\n") and (more := stream.readline(1 << 20)):
                line = line if not more.endswith("\n") else line + "\n"
        consumed.append(line)
        yield line


def _show(lines: list[str]) -> str:
    text = "".join(lines)[:4096]
    return text.rstrip("\r\n").encode(errors="surrogateescape").decode(errors="backslashreplace")
