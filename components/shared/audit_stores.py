"""Where the audit log lies: one locked file, or create-only segments on S3."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from secvec.components.shared import s3
from secvec.components.shared.audit_chain import (
    RECOVERED,
    UNCHANGED,
    LogState,
    digest_line,
    encode_line,
    parse_line,
)
from secvec.components.shared.errors import SecvecError
from secvec.components.shared.storage import join_uri

# What the next lines are, given how far the log goes.
MakeLines = Callable[[LogState], Sequence[bytes]]
_TAIL_BYTES = 4096
_ATTEMPTS = 50
_READERS = 16


@dataclass(frozen=True)
class FileLog:
    """A log in one file, for one machine; writers take turns by a lock.

    Attributes:
        path: The file; checkpoints lie beside it in ``<path>.checkpoints``.
    """

    path: Path

    def append(self, make_lines: MakeLines, *, force: bool) -> LogState:
        """Append lines in one write; with `force`, only return when all of them are on the disk.

        Raises:
            OSError: They cannot be written, and the file is as it was; or the log is gone while its
                checkpoints are still there.
        """
        with _locked(self.path) as descriptor:
            state = _resume(descriptor)
            if not state.size and self.read_checkpoints():
                raise OSError("it is gone, but its checkpoints are there")
            lines = make_lines(state)
            _write_whole(descriptor, b"".join(line + b"\n" for line in lines), force=force)
        return _follow(state, lines)

    def state(self) -> LogState:
        """How far the log goes, by its last line alone."""
        if not self.path.exists():
            return LogState()
        with _locked(self.path) as descriptor:
            return _resume(descriptor)

    def read_lines(self) -> Iterator[bytes]:
        """All lines in order, without their line breaks; what is cut short is made to fail."""
        with self.path.open("rb") as stream:
            for line in stream:
                yield line[:-1] if line.endswith(b"\n") else line + b" cut short"

    def write_checkpoint(self, state: LogState, content: bytes) -> None:
        """Keep a signed checkpoint."""
        with _locked(self._checkpoints) as descriptor:
            _write_whole(descriptor, content + b"\n", force=True)

    def read_checkpoints(self) -> list[bytes]:
        """All checkpoints."""
        return self._checkpoints.read_bytes().splitlines() if self._checkpoints.exists() else []

    @property
    def revocations(self) -> str:
        """Folder of the records of revoked vectors that go with this log."""
        return f"{self.path.absolute()}.revoked"

    @property
    def _checkpoints(self) -> Path:
        return self.path.with_name(self.path.name + ".checkpoints")

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True)
class ObjectLog:
    """A log on S3 in create-only segments of one line or more; Object Lock keeps them from being replaced.

    Writers race for the next number: whoever finds it taken reads on and tries the one after. This needs a
    server that honours ``If-None-Match`` under concurrency.

    Attributes:
        uri: Folder of the log: ``segments/<12 digits>.jsonl`` and ``checkpoints/<12 digits>.json``.
    """

    uri: str

    def append(self, make_lines: MakeLines, *, force: bool) -> LogState:
        """Append lines as one segment.

        Raises:
            OSError: Other writers took every number that was tried, or the log is gone while its
                checkpoints are still there.
        """
        number = self._count()
        if not number and self.read_checkpoints():
            raise OSError("it is gone, but its checkpoints are there")
        state = self._state_after(number)
        for _ in range(_ATTEMPTS):
            lines = make_lines(state)
            if not lines:
                return state
            content = b"".join(line + b"\n" for line in lines)
            number += 1
            uri = self._segment(number)
            # Reading back catches a server that let two create-only writes of one name through.
            if s3.write_object(uri, content, create_only=True) and s3.read_object(uri) == content:
                return _follow(state, lines)
            state = self._state_after(number)
        raise OSError(f"other writers took {_ATTEMPTS} segments in a row")

    def state(self) -> LogState:
        """How far the log goes, by its last segment alone."""
        return self._state_after(self._count())

    def read_lines(self) -> Iterator[bytes]:
        """All lines in order.

        Raises:
            SecvecError: A number is missing, or an object lies there that is no segment.
        """
        folder = join_uri(self.uri, "segments")
        found = s3.list_objects(folder)
        for number, uri in enumerate(found, start=1):
            if uri != self._segment(number):
                raise SecvecError(f"segment {number} is missing", where=folder, accepted=UNCHANGED)
        with ThreadPoolExecutor(_READERS) as pool:
            for content in pool.map(s3.read_object, found):
                yield from _split(content)

    def write_checkpoint(self, state: LogState, content: bytes) -> None:
        """Keep a signed checkpoint; the first for a size stays."""
        s3.write_object(
            join_uri(self.uri, "checkpoints", f"{state.size:012}.json"), content, create_only=True
        )

    def read_checkpoints(self) -> list[bytes]:
        """All checkpoints."""
        return [s3.read_object(uri) for uri in s3.list_objects(join_uri(self.uri, "checkpoints"))]

    @property
    def revocations(self) -> str:
        """Folder of the records of revoked vectors that go with this log."""
        return join_uri(self.uri, "revoked")

    def _count(self) -> int:
        """How many segments there are: numbers have no gaps, so doubling and halving finds the last one."""
        high = 1
        while self._has(high):
            high *= 2
        low = high // 2
        while low + 1 < high:
            middle = (low + high) // 2
            low, high = (middle, high) if self._has(middle) else (low, middle)
        return low

    def _state_after(self, number: int) -> LogState:
        return _state_at(_split(s3.read_object(self._segment(number)))[-1]) if number else LogState()

    def _segment(self, number: int) -> str:
        return join_uri(self.uri, "segments", f"{number:012}.jsonl")

    def _has(self, number: int) -> bool:
        return s3.describe_object(self._segment(number)) is not None

    def __str__(self) -> str:
        return self.uri


def _follow(state: LogState, lines: Sequence[bytes]) -> LogState:
    return LogState(state.size + len(lines), digest_line(lines[-1])) if lines else state


def _split(content: bytes) -> list[bytes]:
    """The lines of a segment; what is cut short is made to fail."""
    *lines, rest = content.split(b"\n")
    return [*lines, rest + b" cut short"] if rest or not lines else lines


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # released by the close
        yield descriptor
    finally:
        os.close(descriptor)


def _resume(descriptor: int) -> LogState:
    """How far the log goes, after closing a line that a crash cut short."""
    end = os.fstat(descriptor).st_size
    tail, reach = b"", _TAIL_BYTES
    while len(tail) < end and tail.count(b"\n", 0, -1) < 2:
        tail = os.pread(descriptor, reach, max(0, end - reach))
        reach *= 2
    if not tail:
        return LogState()
    if tail.endswith(b"\n"):
        return _state_at(tail[tail.rfind(b"\n", 0, -1) + 1 : -1])
    # The torn line was never confirmed to anyone. It stays where it is, and the chain runs over its bytes.
    *before, torn = tail.split(b"\n")
    state = (_state_at(before[-1]) if before else LogState()).follow(torn)
    line = encode_line(RECOVERED, {}, after=state)
    _write_whole(descriptor, b"\n" + line + b"\n", force=True)
    return state.follow(line)


def _state_at(line: bytes) -> LogState:
    entry = parse_line(line)
    if entry is None:
        raise OSError("its last line is not an audit entry")
    return LogState(size=int(entry["sequence"]), head=digest_line(line))


def _write_whole(descriptor: int, data: bytes, *, force: bool) -> None:
    """Write all of it, or leave the file as it was."""
    end = os.fstat(descriptor).st_size
    try:
        written = os.write(descriptor, data)
        if written != len(data):
            raise OSError(f"only {written} of {len(data)} bytes written")
        if force:
            os.fsync(descriptor)
    except OSError:
        os.ftruncate(descriptor, end)
        raise
