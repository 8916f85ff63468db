"""Shards: the parts of files that are read on their own, in any order, by any number of processes."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from secvec.components.ingest_data.config import IngestConfig, SourceName
from secvec.components.ingest_data.figures import Figures
from secvec.components.ingest_data.near import SIGNATURES, sign_text
from secvec.components.ingest_data.ngrams import KnownNgrams, load_ngrams, number_ngrams, write_ngrams
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

    def key(self, job: Job) -> str:
        """Give the name of what reading it makes, by all that this depends on."""
        first = self.span.first_line if self.span else 0
        compared = [[name, path.name] for name, path in job.known]
        parts = [self.source, self.name, self.format, self.digest, first, compared, job.config.content()]
        parts.append(job.tokenizer.name if job.tokenizer else "")
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Job:
    """What the shards of one source have in common.

    Attributes:
        work: Where each shard gets a folder.
        known: What earlier sources hold, by source.
        tokenizer: The model's tokenizer, where tokens are counted; its name is its digest.
        config: How rows are read.
    """

    work: Path
    known: tuple[tuple[SourceName, Path], ...]
    tokenizer: Path | None
    config: IngestConfig


class Account(BaseModel):
    """What became of a shard's rows; written last, so that a shard without it is read anew.

    Attributes:
        count: The rows of this part of the file.
        overlaps: What they share with earlier sources.
        ngram_rows: How many of them share a run of tokens with what an earlier source asks.
        figures: What they look like.
        sizes: Bytes of each file that was written.
        digest: sha256 (hex) of the index of its records.
    """

    count: FileCount
    overlaps: dict[SourceName, Overlap]
    ngram_rows: Counter[SourceName]
    figures: Figures
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


def read_shard(shard: Shard, job: Job) -> tuple[Path, Account]:
    """Read one shard into a folder of its own, unless an earlier run has.

    Returns:
        The folder, with a JSONL file for each split, the quarantine and the index; and the account of it.

    Raises:
        SecvecError: The file cannot be read, or is changed meanwhile.
    """
    folder = job.work / shard.key(job)
    account = _recall(folder)
    if account is None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        account = _ShardReader(folder, shard, job).read()
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


class _ShardReader:
    """Reads a shard's rows into a folder."""

    def __init__(self, folder: Path, shard: Shard, job: Job) -> None:
        self._folder, self._shard, self._job, self._config = folder, shard, job, job.config
        self._share = heldout_share(shard.source, job.config)
        self._known = load_known(job.known)
        self._overlaps = self._known.no_overlaps()
        self._index = IndexWriter()
        self._figures = Figures()
        self._length = job.config.ngram_tokens
        self._ngrams = load_ngrams(job.known) if self._length else None
        self._asked_ngrams: list[Any] = []
        self._ngram_rows: Counter[SourceName] = Counter()
        self._signs = shard.source == "training_data" and job.config.near_duplicates != "off"

    def read(self) -> Account:
        shard, folder, limits = self._shard, self._folder, self._config.limits
        count = FileCount(name=shard.name, format=shard.format)
        _, rows = open_rows(shard.path, shard.format, where=shard.where, limits=limits, span=shard.span)
        with ExitStack() as stack:
            names = split_files(shard.source, self._config)
            files = [stack.enter_context((folder / name).open("wb", buffering=1 << 20)) for name in names]
            signatures = stack.enter_context((folder / SIGNATURES).open("wb", buffering=1 << 20))
            quarantine = stack.enter_context((folder / QUARANTINE).open("w", encoding="utf-8", newline="\n"))
            reader = SourceReader(
                shard.source, config=self._config, quarantine=quarantine, tokenizer=self._job.tokenizer
            )
            for record in reader.read(rows, count):
                files[self._take(record)].write(record.to_bytes())
                if self._signs:
                    signatures.write(sign_text(record.messages))
        _check_unchanged(shard)
        self._index.write(folder)
        write_ngrams(folder, self._asked_ngrams)
        return Account(
            count=count,
            overlaps=self._overlaps,
            ngram_rows=self._ngram_rows,
            figures=self._figures,
            sizes=_sizes(folder),
            digest=digest_of(folder),
        )

    def _take(self, record: ReadRecord) -> int:
        """Take in a record and give the number of the split that it belongs to."""
        place = (record.source, record.line)
        asked = asked_fingerprints(record)
        if record.digest in self._known.rows or not self._known.prompts.isdisjoint(asked):
            self._known.compare(self._overlaps, row=record.digest, asked=asked, place=place)
        if self._ngrams is not None:
            self._compare_ngrams(record, self._ngrams)
        self._figures.look(record.digest, record.messages, place=place, tokens=record.tokens)
        prompt = _fingerprint_prompt(record, asked)
        split = int(is_held_out(prompt, share=self._share))
        self._index.add(record.digest, prompt, line=record.line, split=split)
        return split

    def _compare_ngrams(self, record: ReadRecord, ngrams: KnownNgrams) -> None:
        if ngrams:
            self._ngram_rows.update(ngrams.find(number_ngrams(record.messages, self._length)))
        if self._shard.source != "training_data":
            self._asked_ngrams.append(
                number_ngrams([turn for turn in record.messages if turn.role == "user"], self._length)
            )


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
