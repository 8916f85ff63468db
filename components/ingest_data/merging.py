"""One source's shards put together: repeated rows found, files of the dataset written."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy
import orjson

from secvec.components.ingest_data.config import IngestConfig, SourceName
from secvec.components.ingest_data.overlap import Overlap
from secvec.components.ingest_data.row_index import Repeats, find_repeats, index_path, read_lines, read_splits
from secvec.components.ingest_data.shards import QUARANTINE, Account
from secvec.components.ingest_data.sources import FileCount
from secvec.components.ingest_data.splits import DUPLICATES_FILE, SplitWriter, check_parts, split_files
from secvec.components.shared.errors import SecvecError


@dataclass
class SourceResult:
    """What a source holds.

    Attributes:
        name: Which source it is.
        counts: What became of the rows of each of its files.
        ignored: Files of its folders that hold no rows.
        overlaps: What it shares with earlier sources.
        shards: Folder and account of each shard, in the order of their rows.
        distinct_rows: Different rows among those that can be used.
        distinct_prompts: Different prompts among them.
        content: sha256 (hex) of all sorted content ids: the same for the same rows in any order.
        dropped: Rows that are not used because an earlier one says the same.
        splits: Rows and digest of each of its files in the dataset.
    """

    name: SourceName
    counts: list[FileCount] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    overlaps: dict[SourceName, Overlap] = field(default_factory=dict)
    shards: list[tuple[Path, Account]] = field(default_factory=list)
    distinct_rows: int = 0
    distinct_prompts: int = 0
    content: str = ""
    dropped: int = 0
    splits: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """How many rows were read."""
        return sum(count.rows for count in self.counts)

    @property
    def quarantined(self) -> int:
        """How many of them were refused."""
        return sum(count.reasons.total() for count in self.counts)

    def add(self, file: int, folder: Path, account: Account) -> None:
        """Take in the next shard, which belongs to the file of this number."""
        if file == len(self.counts):
            self.counts.append(account.count)
        else:
            self.counts[file].add(account.count)
        for name, overlap in account.overlaps.items():
            self.overlaps.setdefault(name, Overlap()).add(overlap)
        self.shards.append((folder, account))


def write_source(result: SourceResult, folder: Path, quarantine: BinaryIO, *, config: IngestConfig) -> None:
    """Write a source's files into the dataset's folder, and its refused rows to the quarantine.

    Raises:
        SecvecError: A part of a source that is split is empty.
    """
    folders = [shard for shard, _ in result.shards]
    for shard in folders:
        quarantine.write((shard / QUARANTINE).read_bytes())
    repeats = find_repeats(folders, "rows")
    result.distinct_rows, result.content = repeats.distinct, repeats.digest
    result.distinct_prompts = find_repeats(folders, "prompts").distinct
    drop = config.duplicates == "drop" and result.name == "training_data"
    if drop:
        result.dropped = len(repeats.record)
        _list_duplicates(folder / DUPLICATES_FILE, result, repeats)
    names = split_files(result.name, config)
    with ExitStack() as stack:
        writers = {name: SplitWriter(folder / name) for name in names}
        for writer in writers.values():
            stack.callback(writer.close)
        for number, shard in enumerate(folders):
            repeated = repeats.in_shard(number) if drop else ()
            _copy_shard(shard, list(writers.values()), names, repeated)
        check_parts(result.name, (writer.rows for writer in writers.values()))
        result.splits = {name: writer.close() for name, writer in writers.items()}


def write_empty(name: SourceName, folder: Path, *, config: IngestConfig) -> dict[str, dict[str, Any]]:
    """Write the files of a source that has none."""
    return {file: SplitWriter(folder / file).close() for file in split_files(name, config)}


def write_known(result: SourceResult, work: Path, *, limit: int, before: int) -> Path:
    """Write what later sources are compared with, and return the file, named by its content.

    Raises:
        SecvecError: There are more rows than may be held in memory.
    """
    rows = before + sum(count.used for count in result.counts)
    if rows > limit:
        raise SecvecError(
            f"makes {rows} rows to compare with",
            where=result.name,
            accepted=f"limits.max_compared_rows = {limit}",
        )
    path = work / f"{result.name}-{result.content}.known"
    with path.open("wb") as stream:
        for shard, _ in result.shards:
            stream.write(index_path(shard).read_bytes())
    return path


def _copy_shard(shard: Path, writers: list[SplitWriter], names: tuple[str, ...], repeated: Any) -> None:
    if not len(repeated):
        for writer, name in zip(writers, names, strict=True):
            writer.copy(shard / name)
        return
    splits = read_splits(shard)
    keep = numpy.ones(len(splits), bool)
    keep[repeated] = False
    for number, (writer, name) in enumerate(zip(writers, names, strict=True)):
        writer.copy(shard / name, keep[splits == number])


def _list_duplicates(path: Path, result: SourceResult, repeats: Repeats) -> None:
    """Write one line for each dropped row: where it was, and which row says the same."""
    order = numpy.lexsort((repeats.record, repeats.shard))
    with path.open("wb") as stream:
        for at in range(0, len(order), 1 << 16):
            block = order[at : at + (1 << 16)]
            rows = _name_rows(result, repeats.shard[block], repeats.record[block])
            first = _name_rows(result, repeats.first_shard[block], repeats.first_record[block])
            stream.writelines(
                orjson.dumps(
                    {"source": source, "line": line, "kind": "exact", "of_source": of, "of_line": of_line},
                    option=orjson.OPT_APPEND_NEWLINE,
                )
                for (source, line), (of, of_line) in zip(rows, first, strict=True)
            )


def _name_rows(result: SourceResult, shards: Any, records: Any) -> list[tuple[str, int]]:
    found: list[tuple[str, int]] = [("", 0)] * len(records)
    for number in numpy.unique(shards):
        shard, account = result.shards[int(number)]
        at = numpy.flatnonzero(shards == number)
        for index, line in zip(at.tolist(), read_lines(shard, records[at]).tolist(), strict=True):
            found[index] = (account.count.name, line)
    return found
