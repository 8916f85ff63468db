"""Rows of a JSON array, split into its items as they stream by."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from secvec.components.ingest_data.config import Limits
from secvec.components.ingest_data.rows import BOM, Row, parse_json_row
from secvec.components.shared.errors import SecvecError

_BLOCK = 1 << 20
_SPACE = b" \t\r\n"
# A whole string, or one sign that gives the text its structure; a quote alone opens a string that goes on.
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*+"|["\[\]{},]', re.DOTALL)


def open_array(path: Path, *, where: str, limits: Limits) -> tuple[int, Iterator[Row]]:
    """Open an array of objects for reading item by item.

    Returns:
        A bound on the number of items, for progress, and the rows, numbered from 1.

    Raises:
        SecvecError: While iterating: the array is malformed, or an item is longer than a row may be.
    """
    return path.stat().st_size // 2 + 1, _read_items(path, where=where, limits=limits)


def _read_items(path: Path, *, where: str, limits: Limits) -> Iterator[Row]:
    lines_before = 0
    for number, (content, before) in enumerate(_split_items(path, where=where, limits=limits), start=1):
        row = parse_json_row(number, content.strip(_SPACE), limits)
        if row.refused is not None and row.refused.reason == "malformed_json":
            raise _malformed(_explain(content, before, lines_before) or row.refused.detail, where=where)
        lines_before += (before + content).count(b"\n")
        yield row


def _split_items(path: Path, *, where: str, limits: Limits) -> Iterator[tuple[bytes, bytes]]:
    """Yield the bytes of each item, and those that stand between it and the item before."""
    with path.open("rb") as stream:
        buffer = stream.read(_BLOCK).removeprefix(BOM)
        opening = buffer.index(b"[") + 1
        before, buffer = buffer[:opening], buffer[opening:]
        depth, at, count = 0, 0, 0
        while True:
            start = 0
            while (token := _TOKEN.search(buffer, at)) and token[0] != b'"':
                at = token.end()
                sign = token[0]
                if sign in (b"[", b"{"):
                    depth += 1
                elif depth and sign in (b"]", b"}"):
                    depth -= 1
                elif not depth and sign in (b",", b"]"):
                    content = buffer[start : token.start()]
                    if content.strip(_SPACE) or sign == b"," or count:
                        yield content, before
                    count, start, before = count + 1, at, sign
                    if sign == b"]":
                        _check_end(buffer[at:], stream.read(_BLOCK), where=where)
                        return
            at = token.start() if token else len(buffer)
            buffer, at = buffer[start:], at - start
            if len(buffer) > limits.max_row_bytes:
                raise SecvecError(
                    f"item {count + 1} has more than {len(buffer)} bytes",
                    where=where,
                    accepted=f"items of at most limits.max_row_bytes = {limits.max_row_bytes}",
                )
            # A long string is looked through anew with each block: growing ones keep that linear.
            if not (block := stream.read(max(_BLOCK, len(buffer)))):
                raise _malformed(f"it ends within item {count + 1}", where=where)
            buffer += block


def _check_end(rest: bytes, more: bytes, *, where: str) -> None:
    if (rest + more).strip(_SPACE):
        raise _malformed("there is more behind the array", where=where)


def _explain(content: bytes, before: bytes, lines_before: int) -> str:
    """Tell what is wrong with an item and where in the file it is."""
    text = (before + content).decode(errors="surrogateescape")
    try:
        json.loads(content.decode(errors="surrogateescape"))
    except json.JSONDecodeError as error:
        at = len(before.decode(errors="surrogateescape")) + error.pos
        line = lines_before + text.count("\n", 0, at) + 1
        return f"{error.msg}: line {line} column {at - text.rfind(chr(10), 0, at)}"
    except (ValueError, RecursionError) as error:
        return str(error)
    return ""


def _malformed(problem: str, *, where: str) -> SecvecError:
    return SecvecError(
        f"malformed JSON: {problem}", where=where, accepted="a JSON array of objects, or JSONL"
    )
