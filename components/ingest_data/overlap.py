"""Which rows and prompts the sources share, and the refusal of evaluation prompts that are learned from."""

from __future__ import annotations

import functools
import hashlib
import json
import unicodedata
from collections.abc import Iterable, Sequence
from json.encoder import encode_basestring_ascii as quote
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel

from secvec.components.ingest_data.config import EVALUATION, SourceName
from secvec.components.shared.errors import SecvecError
from secvec.components.shared.records import ChatRecord

KNOWN_ROW = 72  # bytes: content id, fingerprint of the prompt, number of its line


class Spoken(Protocol):
    """A turn: who says what."""

    @property
    def role(self) -> str: ...  # noqa: D102
    @property
    def content(self) -> str: ...  # noqa: D102


class Overlap(BaseModel):
    """How many rows of one source are also in an earlier one.

    Attributes:
        same_rows: Rows whose messages equal a row's of the earlier source.
        same_prompts: Rows that ask a prompt of the earlier source.
        first: File and line of the first row that asks one, and the line of that prompt.
    """

    same_rows: int = 0
    same_prompts: int = 0
    first: tuple[str, int, int] | None = None

    def add(self, later: Overlap) -> None:
        """Take in what was found in rows that come later."""
        self.same_rows += later.same_rows
        self.same_prompts += later.same_prompts
        self.first = self.first or later.first


class Known:
    """What the earlier sources hold, for rows to be compared with.

    Attributes:
        prompts: Fingerprints of all that they ask.
        rows: Content ids of all their rows.
    """

    def __init__(self, sources: Sequence[tuple[SourceName, Path]]) -> None:
        self._sources = [(name, *_load_known(path)) for name, path in sources]
        self.rows = frozenset[bytes]().union(*(rows for _, rows, _ in self._sources))
        self.prompts = frozenset[bytes]().union(*(prompts for _, _, prompts in self._sources))

    def compare(
        self,
        overlaps: dict[SourceName, Overlap],
        *,
        row: bytes,
        asked: Iterable[bytes],
        place: tuple[str, int],
    ) -> None:
        """Count one row, known to share something, for each source that it shares it with."""
        for name, rows, prompts in self._sources:
            overlap = overlaps[name]
            overlap.same_rows += row in rows
            lines = [prompts[prompt] for prompt in asked if prompt in prompts]
            if lines:
                overlap.same_prompts += 1
                overlap.first = overlap.first or (*place, lines[0])

    def no_overlaps(self) -> dict[SourceName, Overlap]:
        """Give a count of nothing for each earlier source."""
        return {name: Overlap() for name, _, _ in self._sources}


@functools.lru_cache(maxsize=2)
def load_known(sources: tuple[tuple[SourceName, Path], ...]) -> Known:
    """Load what the earlier sources hold, once in each process."""
    return Known(sources)


def _load_known(path: Path) -> tuple[set[bytes], dict[bytes, int]]:
    data = path.read_bytes()
    rows: set[bytes] = set()
    prompts: dict[bytes, int] = {}
    for at in range(0, len(data), KNOWN_ROW):
        rows.add(data[at : at + 32])
        prompts.setdefault(data[at + 32 : at + 64], int.from_bytes(data[at + 64 : at + KNOWN_ROW], "little"))
    return rows, prompts


def prompt_fingerprint(record: ChatRecord) -> bytes:
    """Return 32 bytes that two records share if they ask the same, whatever the system turn says.

    Compared are the words of NFC, case-folded text, without the spaces between them; the record's own text
    stays as it is.
    """
    return fingerprint(record.prompt)


def asked_fingerprints(record: Any) -> list[bytes]:
    """Return fingerprints of all that a record asks: each user's turn, with and without the turns before."""
    turns = record.messages
    if len(turns) == 2 and turns[0].role == "user":
        return [fingerprint(turns[:1])]
    asked = [index for index, turn in enumerate(turns) if turn.role == "user"]
    found = [fingerprint(turns[: index + 1]) for index in asked]
    return found + [fingerprint(turns[index : index + 1]) for index in asked[1:]]


def refuse_evaluation(name: SourceName, overlaps: dict[SourceName, Overlap]) -> None:
    """Refuse a source that is learned from and asks prompts of an evaluation source.

    Raises:
        SecvecError: It does; the first place is named.
    """
    for earlier, overlap in overlaps.items():
        if name not in EVALUATION and earlier in EVALUATION and overlap.first:
            source, line, prompt_line = overlap.first
            raise SecvecError(
                f"asks what {earlier} asks in line {prompt_line}, {overlap.same_prompts} such rows in all",
                where=f"{name} {source} line {line}",
                accepted=f"rows that share no prompt with {', '.join(EVALUATION)}",
            )


def fingerprint(turns: Sequence[Spoken]) -> bytes:
    """Return the fingerprint of turns, as in `prompt_fingerprint`."""
    if len(turns) == 1 and turns[0].role == "user":
        return hashlib.sha256(f'[["user", {quote(fold_text(turns[0].content))}]]'.encode()).digest()
    plain = [[turn.role, fold_text(turn.content)] for turn in turns if turn.role != "system"]
    return hashlib.sha256(json.dumps(plain).encode()).digest()


def fold_text(text: str) -> str:
    """Return a text as it is compared: case-folded, composed, with single spaces."""
    if text.isascii():
        return " ".join(text.lower().split())
    # Folding can undo a composition, so that it comes first.
    return " ".join(unicodedata.normalize("NFC", text.casefold()).split())
