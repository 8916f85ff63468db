"""What is tampered with, what must refuse it, and when a change was none."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secvec.components.gate_promotion.policy import load_policy
from secvec.components.shared.errors import SecvecError
from secvec.components.shared.strict_json import parse_strictly


@dataclass(frozen=True)
class Target:
    """One thing to tamper with.

    Attributes:
        files: What may be changed.
        check: What must refuse it; raises `SecvecError`.
        others: Files of another model, to put in their places; without any, none are moved about.
        folder: Where files may be added and replaced by links, if they may.
        same: Whether two contents say the same; then the change was none.
        lines: Whether it is a log.
    """

    files: Sequence[Path]
    check: Callable[[], Any]
    others: Sequence[Path] = ()
    folder: Path | None = None
    same: Callable[[bytes, bytes], bool] = bytes.__eq__
    lines: bool = False


def files_of(folder: Path, *patterns: str) -> list[Path]:
    """Files of a folder, in order."""
    return sorted(path for pattern in patterns or ("*",) for path in folder.rglob(pattern) if path.is_file())


def says_the_same(one: bytes, other: bytes) -> bool:
    """Whether two files hold equal JSON: an envelope's spaces and line breaks are nobody's evidence."""
    try:
        return bool(parse_strictly(one) == parse_strictly(other))
    except (ValueError, RecursionError):
        return False


def says_the_same_by_line(one: bytes, other: bytes) -> bool:
    """The same for a file with a JSON value a line, of which fewer are no forgery of those that are left."""
    kept = one.splitlines()
    return all(any(says_the_same(line, known) for known in kept) for line in other.splitlines())


def is_the_same_policy(one: bytes, other: bytes) -> bool:
    """Whether two files come to one policy, defaults filled in."""
    digests = []
    for content in (one, other):
        with tempfile.NamedTemporaryFile(suffix=".yaml") as file:
            Path(file.name).write_bytes(content)
            try:
                digests.append(load_policy(Path(file.name)).digest())
            except SecvecError:
                return False
    return digests[0] == digests[1]
