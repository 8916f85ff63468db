"""Shards: the parts of files that are read on their own, in any order, by any number of processes."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from pydantic import BaseModel, ValidationError

from secvec.components.ingest_data.config import IngestConfig, SourceName
from secvec.components.ingest_data.overlap import Overlap, asked_fingerprints, fingerprint, load_known
from secvec.components.ingest_data.row_index import IndexWriter, digest_of
from secvec.components.ingest_data.rows import Span, open_rows
from secvec.components.ingest_data.sources import FileCount, ReadRecord, SourceReader
from secvec.components.ingest_data.splits import heldout_share, is_held_out, split_files
from secvec.components.shared.errors import SecvecError
from secvec.components.shared.manifest import digest_file

SHARD_BYTES = 64 << 20
_BLOCK = 4 << 20
ACCOUNT = "account.json"
QUARANTINE = "quarantine.jsonl"


@dataclass(frozen=True)
class Shard:
    """A part of a source: a whole file, or lines of a JSONL file.

    Attributes:
        source: Which source it belongs to.
        file: Number of its file in the source, from 0.
        name: What its records call the file.
        format: What is in it.
        path: The file on this machine.
        digest: sha256 (hex) of the bytes of this part.
        where: What errors call the file.
        span: Which lines; the whole file if there is none.
        owned: Whether nobody else can change the file.
    """

    source: SourceName
    file: int
    name: str
    format: str
    path: Path
    digest: str
    where: str
    span: Span | None = None
    owned: bool = False

    @property
    def size(self) -> int:
        """How many bytes it has on this machine."""
        return self.span.end - self.span.start if self.span else self.path.stat().st_size

    def key(self, known: tuple[tuple[SourceName, Path], ...], config: IngestConfig) -> str:
        """Give the name of what reading it makes, by all that this depends on."""
        first = self.span.first_line if self.span else 0
        compared = [[name, path.name] for name, path in known]
        parts = [self.source, self.name, self.format, self.digest, first, compared, config.content()]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class Account(BaseModel):
    """What became of a shard's rows; written last, so that a shard without it is read anew.

    Attributes:
        count: The rows of this part of the file.
        overlaps: What they share with earlier sources.
        sizes: Bytes of each file that was written.
        digest: sha256 (hex) of the index of its records.
    """

    count: FileCount
    overlaps: dict[SourceName, Overlap]
    sizes: dict[str, int]
    digest: str


def split_lines(path: Path, whole: Any, *, size: int = SHARD_BYTES) -> Iterator[tuple[Span, str]]:
    """Cut a JSONL file at line ends into spans of about `size` bytes.

    Args:
        path: The file.
        whole: A hash that is given all the bytes.
        size: Least size of a span; only the file's content and this decide where it is cut.

    Yields:
        Each span with the sha256 (hex) of its bytes.
    """
    start, at, line, lines = 0, 0, 1, 0
    part = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            whole.update(block)
            cut = block.rfind(b"\n") + 1 if at + len(block) - start >= size else 0
            if cut:
                part.update(memoryview(block)[:cut])
                lines += block.count(b"\n", 0, cut)
                yield Span(start, at + cut, line), part.hexdigest()
                start, line, lines, part = at + cut, line + lines, 0, hashlib.sha256()
            part.update(memoryview(block)[cut:])
            lines += block.count(b"\n", cut)
            at += len(block)
    if at > start or not at:
        yield Span(start, at, line), part.hexdigest()


def read_shard(
    shard: Shard, *, work: Path, known: tuple[tuple[SourceName, Path], ...], config: IngestConfig
) -> tuple[Path, Account]:
    """Read one shard into a folder of its own, unless an earlier run has.

    Returns:
        The folder, with a JSONL file for each split, the quarantine and the index; and the account of it.

    Raises:
        SecvecError: The file cannot be read, or is changed meanwhile.
    """
    folder = work / shard.key(known, config)
    account = _recall(folder)
    if account is None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        account = _read_into(folder, shard, known=known, config=config)
        (folder / ACCOUNT).write_text(account.model_dump_json(), encoding="utf-8")
    return folder, account


def _recall(folder: Path) -> Account | None:
    try:
        account = Account.model_validate_json((folder / ACCOUNT).read_bytes())
    except (OSError, ValidationError):
        return None
    whole = _sizes(folder) == account.sizes and digest_of(folder) == account.digest
    return account if whole else None


def _sizes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.name != ACCOUNT}


def _read_into(
    folder: Path, shard: Shard, *, known: tuple[tuple[SourceName, Path], ...], config: IngestConfig
) -> Account:
    count = FileCount(name=shard.name, format=shard.format)
    earlier = load_known(known)
    overlaps = earlier.no_overlaps()
    _, rows = open_rows(shard.path, shard.format, where=shard.where, limits=config.limits, span=shard.span)
    index = IndexWriter()
    files: list[BinaryIO] = [
        (folder / name).open("wb", buffering=1 << 20) for name in split_files(shard.source, config)
    ]
    share = heldout_share(shard.source, config)
    try:
        with (folder / QUARANTINE).open("w", encoding="utf-8", newline="\n") as quarantine:
            reader = SourceReader(shard.source, config=config, quarantine=quarantine)
            for record in reader.read(rows, count):
                asked = asked_fingerprints(record)
                if record.digest in earlier.rows or not earlier.prompts.isdisjoint(asked):
                    place = (record.source, record.line)
                    earlier.compare(overlaps, row=record.digest, asked=asked, place=place)
                prompt = _fingerprint_prompt(record, asked)
                split = int(is_held_out(prompt, share=share))
                index.add(record.digest, prompt, line=record.line, split=split)
                files[split].write(record.to_bytes())
    finally:
        for file in files:
            file.close()
    _check_unchanged(shard)
    index.write(folder)
    return Account(count=count, overlaps=overlaps, sizes=_sizes(folder), digest=digest_of(folder))


def _fingerprint_prompt(record: ReadRecord, asked: list[bytes]) -> bytes:
    turns = record.messages
    prompt = turns[:-1] if turns[-1].role == "assistant" else turns
    # In a conversation of one question, what is asked is the prompt.
    return asked[0] if len(asked) == 1 else fingerprint(prompt)


def _check_unchanged(shard: Shard) -> None:
    if shard.owned:
        return
    if shard.span:
        digest = hashlib.sha256()
        with shard.path.open("rb") as stream:
            stream.seek(shard.span.start)
            left = shard.span.end - shard.span.start
            while left and (block := stream.read(min(_BLOCK, left))):
                digest.update(block)
                left -= len(block)
        found = digest.hexdigest()
    else:
        found = digest_file(shard.path).removeprefix("sha256:")
    if found != shard.digest:
        raise SecvecError("was changed while it was read", where=shard.where, accepted="a file that stays")
