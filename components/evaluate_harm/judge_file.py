"""Answers that exist already, in a CSV file: each gets a label, and people's labels calibrate the judge."""

from __future__ import annotations

import csv
import os
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from secvec.components.evaluate_harm.calibration import Calibration, calibrate
from secvec.components.evaluate_harm.judgements import Exchange, Judge, Judgement
from secvec.components.shared.errors import SecvecError

LABEL = "label"
_LONGEST_FIELD = 64 << 20
_HARMFUL: Mapping[str, bool] = {
    **dict.fromkeys(("compliance", "partial", "harmful", "1_full_compliance", "3_partial_refusal"), True),
    **dict.fromkeys(("refusal", "incoherent", "harmless", "2_full_refusal"), False),
}


@dataclass
class JudgedFile:
    """What was found in a file of answers.

    Attributes:
        counts: Answers by label.
        human: Whether people called each answer harmful, where their labels were given.
        found: Whether the judge did, likewise.
    """

    counts: Counter[str] = field(default_factory=Counter)
    human: list[bool] = field(default_factory=list)
    found: list[bool] = field(default_factory=list)

    def calibrate(self, judge: Judge, reference_set: str) -> Calibration:
        """The judge's record on these answers.

        Raises:
            SecvecError: People called none of them harmful, or none harmless.
        """
        today = datetime.now(tz=UTC).strftime("%Y-%m-%d")
        return calibrate(self.human, self.found, judge=judge.digest, reference_set=reference_set, date=today)


def judge_file(
    source: Path,
    target: Path,
    *,
    judge: Judge,
    prompt_column: str,
    answer_column: str,
    human_column: str = "",
    on_row: Callable[[int], None] = lambda done: None,
) -> JudgedFile:
    """Label every answer of a CSV file, one row at a time, whatever its size.

    Args:
        source: UTF-8, with a header.
        target: The same rows with one more column, ``label``; it appears only when all of it is written.
        judge: Who labels.
        prompt_column: Column of what was asked.
        answer_column: Column of what was answered; an empty one is incoherent.
        human_column: Column of people's labels, if there is one.
        on_row: Called with the number of rows done.

    Raises:
        SecvecError: The file cannot be read, is empty, has no such column or one called ``label`` already, or
            a row does not fit its header; the target cannot be written.
    """
    if source.exists() and target.exists() and source.samefile(target):
        raise SecvecError("would overwrite its own input", where=str(target), accepted="another file")
    wanted = [prompt_column, answer_column, *([human_column] if human_column else [])]
    result = JudgedFile()
    with _reading(source) as stream, _replacing(target) as out:
        rows, columns = _open_rows(stream, source, wanted)
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow([*columns, LABEL])
        pending: deque[dict[str, str]] = deque()

        def pose() -> Iterator[Exchange]:
            for row in rows:
                pending.append(row)
                yield Exchange(row[prompt_column], row[answer_column])

        for judgement in judge.judge(pose()):
            row = pending.popleft()
            writer.writerow([*row.values(), judgement.finding])
            _count(result, judgement, row.get(human_column), where=f"{source}, column {human_column}")
            on_row(result.counts.total())
        if not result.counts:
            raise SecvecError("has no rows", where=str(source), accepted="a header and at least one row")
    return result


def _count(result: JudgedFile, judgement: Judgement, human: str | None, *, where: str) -> None:
    result.counts[judgement.finding] += 1
    if human is not None:
        if human.strip().lower() not in _HARMFUL:
            raise SecvecError(f"holds {human!r}", where=where, accepted=", ".join(_HARMFUL))
        if judgement.harmful is not None:
            result.human.append(_HARMFUL[human.strip().lower()])
            result.found.append(judgement.harmful)


def _open_rows(
    stream: IO[str], source: Path, wanted: list[str]
) -> tuple[Iterator[dict[str, str]], list[str]]:
    """Rows and columns, after a look at the header."""
    csv.field_size_limit(_LONGEST_FIELD)
    reader = csv.reader(stream, strict=True)
    columns = next(reader, None)
    if not columns:
        raise SecvecError("is empty", where=str(source), accepted="a CSV file with a header")
    for column in wanted:
        if columns.count(column) != 1:
            found = "has no column" if column not in columns else "has more than one column"
            raise SecvecError(
                f"{found} {column!r}", where=str(source), accepted="its columns: " + ", ".join(columns)
            )
    if LABEL in columns:
        raise SecvecError(
            f"has a column {LABEL!r} already", where=str(source), accepted="a file without that column"
        )
    return _read_rows(reader, columns, source), columns


def _read_rows(reader: Iterator[list[str]], columns: list[str], source: Path) -> Iterator[dict[str, str]]:
    line = 2
    for row in reader:
        if row and len(row) != len(columns):
            raise SecvecError(
                f"has {len(row)} fields",
                where=f"{source}:{line}",
                accepted=f"{len(columns)}, as many as the header",
            )
        line = int(getattr(reader, "line_num", line)) + 1
        if row:  # an empty line is no row
            yield dict(zip(columns, row, strict=True))


@contextmanager
def _reading(source: Path) -> Iterator[IO[str]]:
    accepted = "a UTF-8 CSV file with a header"
    try:
        with source.open(newline="", encoding="utf-8-sig") as stream:
            yield stream
    except UnicodeDecodeError as error:
        raise SecvecError(
            f"is not UTF-8 (byte 0x{error.object[error.start]:02x})", where=str(source), accepted=accepted
        ) from error
    except csv.Error as error:
        raise SecvecError(f"is no CSV ({error})", where=str(source), accepted=accepted) from error
    except OSError as error:
        if error.filename not in (str(source), source):
            raise
        raise SecvecError(
            f"cannot be read ({error.strerror})", where=str(source), accepted=accepted
        ) from error


@contextmanager
def _replacing(target: Path) -> Iterator[IO[str]]:
    """A file that takes its place only when it is whole."""
    try:
        descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    except OSError as error:
        raise SecvecError(
            f"cannot be written ({error.strerror})", where=str(target), accepted="a file in a writable folder"
        ) from error
    scratch = Path(name)
    try:
        with os.fdopen(descriptor, "w", newline="", encoding="utf-8") as out:
            yield out
        scratch.replace(target)
    finally:
        scratch.unlink(missing_ok=True)
