"""One source's shards put together: repeated rows found, files of the dataset written."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy
import orjson

from secvec.components.ingest_data.config import IngestConfig, SourceName
from secvec.components.ingest_data.figures import Figures
from secvec.components.ingest_data.near import find_near
from secvec.components.ingest_data.ngrams import merge_ngrams
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
        dropped: Rows that are not used because an earlier one says the same, or nearly so.
        near: Rows that are nearly like an earlier one, used or not; None where they were not looked for.
        ngram_rows: Rows that share a run of tokens with what an earlier source asks.
        figures: What the rows look like.
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
    near: int | None = None
    ngram_rows: Counter[SourceName] = field(default_factory=Counter)
    figures: Figures = field(default_factory=Figures)
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
        self.ngram_rows.update(account.ngram_rows)
        self.figures.add(account.figures)
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
    drop = _find_dropped(folder, result, repeats, config) if result.name == "training_data" else {}
    names = split_files(result.name, config)
    with ExitStack() as stack:
        writers = {name: SplitWriter(folder / name) for name in names}
        for writer in writers.values():
            stack.callback(writer.close)
        for number, shard in enumerate(folders):
            _copy_shard(shard, list(writers.values()), names, drop.get(number, ()))
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
    merge_ngrams([shard for shard, _ in result.shards], path.with_suffix(".ngrams"))
    return path


def _find_dropped(
    folder: Path, result: SourceResult, repeats: Repeats, config: IngestConfig
) -> dict[int, Any]:
    """Find which records of each shard are dropped, and list them in the dataset's folder."""
    shards = [shard for shard, _ in result.shards]
    starts = numpy.cumsum([0, *(len(read_splits(shard)) for shard in shards)])
    again = starts[repeats.shard] + repeats.record
    first = starts[repeats.first_shard] + repeats.first_record
    listed = [("exact", again, first, numpy.ones(len(again)))] if config.duplicates == "drop" else []
    if config.near_duplicates != "off":
        repeated = numpy.zeros(int(starts[-1]), bool)
        repeated[again] = True
        near = find_near(shards, again=repeated, threshold=config.near_threshold)
        result.near = len(near.later)
        if config.near_duplicates == "drop":
            listed.append(("near", *near))
    if not listed:
        return {}
    _list_duplicates(folder / DUPLICATES_FILE, result, starts, listed)
    rows = numpy.sort(numpy.concatenate([later for _, later, _, _ in listed]).astype(numpy.int64))
    result.dropped = len(rows)
    bounds = numpy.searchsorted(rows, starts)
    return {
        number: rows[bounds[number] : bounds[number + 1]] - starts[number] for number in range(len(shards))
    }


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


def _list_duplicates(
    path: Path, result: SourceResult, starts: Any, listed: list[tuple[str, Any, Any, Any]]
) -> None:
    """Write one line for each dropped row: where it was, and which row says the same."""
    with path.open("wb") as stream:
        for kind, later, earlier, similarity in listed:
            order = numpy.argsort(later, kind="stable")
            for at in range(0, len(order), 1 << 16):
                block = order[at : at + (1 << 16)]
                rows = _name_rows(result, starts, later[block])
                first = _name_rows(result, starts, earlier[block])
                for (source, line), (of, of_line), like in zip(rows, first, similarity[block], strict=True):
                    found = {
                        "source": source,
                        "line": line,
                        "kind": kind,
                        "of_source": of,
                        "of_line": of_line,
                    }
                    if kind == "near":
                        found["similarity"] = float(like)
                    stream.write(orjson.dumps(found, option=orjson.OPT_APPEND_NEWLINE))


def _name_rows(result: SourceResult, starts: Any, rows: Any) -> list[tuple[str, int]]:
    found: list[tuple[str, int]] = [("", 0)] * len(rows)
    shards = numpy.searchsorted(starts, rows, side="right") - 1
    for number in numpy.unique(shards).tolist():
        shard, account = result.shards[number]
        at = numpy.flatnonzero(shards == number)
        for index, line in zip(
            at.tolist(), read_lines(shard, rows[at] - starts[number]).tolist(), strict=True
        ):
            found[index] = (account.count.name, line)
    return found
