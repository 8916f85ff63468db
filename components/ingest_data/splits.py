"""The files of a dataset, and which record goes into which."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from secvec.components.ingest_data.config import IngestConfig, SourceName
from secvec.components.ingest_data.quarantine import QuarantinedRow
from secvec.components.shared.errors import SecvecError

QUARANTINE_FILE = "quarantine.jsonl"
DUPLICATES_FILE = "duplicates.jsonl"
PROFILE_FILE = "profile.json"
PAGE_FILE = "profile.html"
_SPLIT_FILES: dict[SourceName, tuple[str, ...]] = {
    "training_data": ("training.jsonl",),
    "harmful_seeds": ("seeds.jsonl", "seeds_heldout.jsonl"),
    "benign_anchors": ("anchors.jsonl", "anchors_heldout.jsonl"),
    "harm_prompts": ("harm_prompts.jsonl",),
    "skill_prompts": ("skill_prompts.jsonl",),
    "kept_prompts": ("kept_prompts.jsonl",),
}
_BLOCK = 4 << 20
_LINES = 8192


def split_files(name: SourceName, config: IngestConfig) -> tuple[str, ...]:
    """Name the files of a source: what is learned from, and what is held out if anything is."""
    held_out = (
        ("training_heldout.jsonl",) if name == "training_data" and config.training_heldout_share else ()
    )
    return _SPLIT_FILES[name] + held_out


def heldout_share(name: SourceName, config: IngestConfig) -> float:
    """Give the share of a source that is held out."""
    return {
        "harmful_seeds": config.seeds_heldout_share,
        "benign_anchors": config.anchors_heldout_share,
        "training_data": config.training_heldout_share,
    }.get(name, 0.0)


def is_held_out(prompt: bytes, *, share: float) -> bool:
    """Tell whether a record belongs to the held-out part of its source.

    The hash of what is asked decides: a row stays where it is when others are added, and two answers to one
    prompt never end on both sides.

    Args:
        prompt: `prompt_fingerprint` of the record.
        share: Share of all prompts that is held out.
    """
    return int.from_bytes(prompt[:8]) < share * 2**64


class SplitWriter:
    """Writes one file of a dataset and counts and digests what it writes.

    Attributes:
        rows: Lines written so far.
    """

    def __init__(self, path: Path) -> None:
        self.rows = 0
        self._hash = hashlib.sha256()
        self._file = path.open("wb")

    def copy(self, path: Path, keep: Any = None) -> None:
        """Copy a finished file, or those of its lines for which an array of booleans says so."""
        with path.open("rb") as stream:
            if keep is None or keep.all():
                while block := stream.read(_BLOCK):
                    self._write(block)
                return
            at = 0
            while lines := list(itertools.islice(stream, _LINES)):
                self._write(b"".join(itertools.compress(lines, keep[at : at + len(lines)])))
                at += len(lines)

    def write_line(self, line: bytes) -> None:
        """Write one line, which ends."""
        self._write(line)

    def close(self) -> dict[str, Any]:
        """Close the file and say how many rows it has and what its digest is."""
        self._file.close()
        return {"rows": self.rows, "digest": f"sha256:{self._hash.hexdigest()}"}

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._hash.update(data)
        self.rows += data.count(b"\n")


def check_parts(name: SourceName, rows: Iterable[int]) -> None:
    """Check that there is something to learn from and something held out.

    Raises:
        SecvecError: A part of the seeds or anchors, or of training rows that are to be split, is empty.
    """
    counts = list(rows)
    for count, what in zip(counts, ("to learn from", "held out"), strict=False):
        if not count and len(counts) > 1:
            raise SecvecError(
                f"none of {sum(counts)} rows is left {what}",
                where=name,
                accepted="more rows of different prompts, about 100",
            )


def check_accounts(
    folder: Path, read: Mapping[SourceName, int], *, dropped: int, config: IngestConfig
) -> None:
    """Check that every row that was read is in a file of the dataset, in its quarantine or a known duplicate.

    Args:
        folder: The dataset with all its records.
        read: Rows read by source.
        dropped: Training rows that were dropped because an earlier one says the same, or nearly so.
        config: How the sources were split.

    Raises:
        RuntimeError: A row is missing or there twice: a defect, not a user's error.
    """
    with (folder / QUARANTINE_FILE).open(encoding="utf-8") as stream:
        quarantined = Counter(QuarantinedRow.model_validate_json(line).origin for line in stream)
    dropping = "drop" in (config.duplicates, config.near_duplicates)
    listed = count_lines(folder / DUPLICATES_FILE) if dropping else 0
    if listed != dropped:
        raise RuntimeError(f"training_data: {dropped} rows are duplicates, {listed} are listed")
    for name, rows in read.items():
        used = sum(count_lines(folder / file) for file in split_files(name, config))
        twice = dropped if name == "training_data" else 0
        if used + quarantined[name] + twice != rows:
            also = f" and {twice} duplicates" if twice else ""
            raise RuntimeError(
                f"{name}: {rows} rows read, {used} used and {quarantined[name]} quarantined{also}"
            )


def count_lines(path: Path) -> int:
    """Count the lines of a finished file."""
    count = 0
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            count += block.count(b"\n")
    return count
