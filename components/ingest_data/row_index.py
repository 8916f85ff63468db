"""The index of a shard's records, and the search for equal ones over all shards in bounded memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy

from secvec.components.ingest_data.overlap import KNOWN_ROW
from secvec.components.shared.manifest import digest_file

_ROWS, _SPLITS = "index.bin", "splits.bin"
_SORTED = {"rows": "rows.sorted", "prompts": "prompts.sorted"}
_OFFSETS = {"rows": "rows.offsets", "prompts": "prompts.offsets"}
_ENTRY = 36  # bytes: a digest, and the record's number in its shard
_AT_ONCE = 1 << 20  # records that are sorted together


class IndexWriter:
    """Collects the index of one shard; some 10 MB, as a shard is about 64 MiB of rows."""

    def __init__(self) -> None:
        self._rows = bytearray()
        self._splits = bytearray()

    def add(self, row: bytes, prompt: bytes, *, line: int, split: int) -> None:
        """Add a record: its content id, the fingerprint of its prompt, its line and its split's number."""
        self._rows += row
        self._rows += prompt
        self._rows += line.to_bytes(8, "little")
        self._splits.append(split)

    def write(self, folder: Path) -> None:
        """Write the index into a shard's folder."""
        table = numpy.frombuffer(bytes(self._rows), numpy.uint8).reshape(-1, KNOWN_ROW)
        (folder / _SPLITS).write_bytes(self._splits)
        _write_sorted(folder, "rows", table[:, :32])
        _write_sorted(folder, "prompts", table[:, 32:64])
        (folder / _ROWS).write_bytes(self._rows)


def digest_of(folder: Path) -> str:
    """Give the sha256 (hex) of the index in a shard's folder; empty if there is none."""
    path = folder / _ROWS
    return digest_file(path).removeprefix("sha256:") if path.is_file() else ""


@dataclass(frozen=True)
class Repeats:
    """Records that equal an earlier one.

    Attributes:
        distinct: How many different ones there are.
        digest: sha256 (hex) of all content ids, sorted: what the rows are, whatever their order.
        shard: Number of each repeated record's shard.
        record: Its number in that shard.
        first_shard: The same of the first record that it equals.
        first_record: Its number there.
    """

    distinct: int
    digest: str
    shard: Any
    record: Any
    first_shard: Any
    first_record: Any

    def in_shard(self, shard: int) -> Any:
        """Give the numbers of the repeated records in one shard, sorted."""
        return numpy.sort(self.record[self.shard == shard])


def _write_sorted(folder: Path, what: str, digests: Any) -> None:
    """Write digests with their record's number, those with the same first byte together."""
    order = numpy.argsort(digests[:, 0], kind="stable")
    entries = numpy.empty((len(order), _ENTRY), numpy.uint8)
    entries[:, :32] = digests[order]
    entries[:, 32:] = order.astype("<u4").view(numpy.uint8).reshape(-1, 4)
    (folder / _SORTED[what]).write_bytes(entries.tobytes())
    counts = numpy.bincount(digests[:, 0], minlength=256)
    (folder / _OFFSETS[what]).write_bytes(
        numpy.concatenate(([0], numpy.cumsum(counts))).astype("<u8").tobytes()
    )


def find_repeats(folders: Sequence[Path], what: str) -> Repeats:
    """Find equal rows, or equal prompts, over all shards.

    Args:
        folders: The shards' folders, in the order of their rows.
        what: ``rows`` or ``prompts``.
    """
    digest = hashlib.sha256()
    distinct = 0
    found: list[Any] = []
    for entries, places in _read_groups(folders, what):
        keys = numpy.ascontiguousarray(entries[:, :32]).view(">u8").astype(numpy.uint64)
        order = _sort(keys)
        keys = keys[order]
        again = numpy.zeros(len(keys), bool)
        again[1:] = (keys[1:] == keys[:-1]).all(axis=1)
        distinct += int((~again).sum())
        digest.update(keys.astype(">u8").tobytes())
        numbers = numpy.ascontiguousarray(entries[:, 32:]).view("<u4").ravel()[order]
        shards = places[order]
        first = numpy.maximum.accumulate(numpy.where(again, 0, numpy.arange(len(keys))))
        found.append(
            numpy.stack([shards[again], numbers[again], shards[first[again]], numbers[first[again]]])
        )
    columns = numpy.concatenate(found, axis=1) if found else numpy.zeros((4, 0), numpy.uint32)
    return Repeats(distinct, digest.hexdigest(), *columns)


def _sort(keys: Any) -> Any:
    """Give the order of 32-byte keys; equal ones stay in the order of their records."""
    order = numpy.argsort(keys[:, 0], kind="stable")
    first = keys[order, 0]
    tied = numpy.flatnonzero(first[1:] == first[:-1])
    if (keys[order[tied]] == keys[order[tied + 1]]).all():
        return order
    return numpy.lexsort((keys[:, 3], keys[:, 2], keys[:, 1], keys[:, 0]))


def _read_groups(folders: Sequence[Path], what: str) -> Iterator[tuple[Any, Any]]:
    """Yield all entries whose digests begin with the same bytes, with the numbers of their shards."""
    offsets = numpy.stack([numpy.fromfile(folder / _OFFSETS[what], "<u8") for folder in folders]).astype(int)
    totals = (offsets[:, 1:] - offsets[:, :-1]).sum(axis=0)
    start = 0
    while start < 256:
        end = start + 1
        while end < 256 and totals[start : end + 1].sum() <= _AT_ONCE:
            end += 1
        parts = []
        for folder, bounds in zip(folders, offsets, strict=True):
            size = int(bounds[end] - bounds[start]) * _ENTRY
            part = numpy.fromfile(
                folder / _SORTED[what], numpy.uint8, size, offset=int(bounds[start]) * _ENTRY
            )
            parts.append(part.reshape(-1, _ENTRY))
        shards = numpy.repeat(numpy.arange(len(folders), dtype=numpy.uint32), [len(part) for part in parts])
        yield numpy.concatenate(parts), shards
        start = end


def read_lines(folder: Path, records: Any) -> Any:
    """Give the line numbers of records, at least one, of a shard."""
    table = numpy.memmap(folder / _ROWS, numpy.uint8, "r").reshape(-1, KNOWN_ROW)
    return numpy.ascontiguousarray(table[records][:, 64:]).view("<u8").ravel()


def read_splits(folder: Path) -> Any:
    """Give the split's number of each record of a shard."""
    return numpy.fromfile(folder / _SPLITS, numpy.uint8)


def index_path(folder: Path) -> Path:
    """Give the file with each record's digests and line, in the order of the rows."""
    return folder / _ROWS
