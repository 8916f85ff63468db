"""The audit log: who opened a vector or promoted a model, written before it happened.

``SECVEC_AUDIT_LOG`` names a file (a path or ``file://``), or ``s3://bucket/prefix``. Lines are canonical JSON
(RFC 8785), each bound to the one before; signed checkpoints, pinned in a second place, show when the log was
cut back or replaced.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from secvec.components.shared.audit_chain import LogState, encode_lines, follow_lines, parse_line
from secvec.components.shared.audit_stores import FileLog, ObjectLog
from secvec.components.shared.errors import SecvecError
from secvec.components.shared.storage import local_path, scheme_of

LOG_VARIABLE = "SECVEC_AUDIT_LOG"
_ACCEPTED = f"{LOG_VARIABLE} names a file in a folder that can be written, or s3://bucket/prefix"


def append(event: str, **fields: Any) -> LogState:
    """Append one event and wait until it is safe: call it before doing what it says.

    Args:
        event: What happens next, for example ``vector_opened``.
        **fields: JSON values: digests, reasons, identifiers. Never a secret, never prompt text.

    Returns:
        How far the log goes, the new line included.

    Raises:
        SecvecError: No log is configured, or it cannot be written; then the caller must not go on.
    """
    return _append([(event, fields)], force=True)


def append_all(events: Iterable[tuple[str, Mapping[str, Any]]]) -> LogState:
    """Append many events and wait once until all of them are safe (group commit).

    Waiting for the disk is what an append costs: this is for imports and other bulk, where nobody acts on
    one event before the next is written.

    Args:
        events: Names and fields, in order.

    Returns:
        How far the log goes, all new lines included.

    Raises:
        SecvecError: No log is configured, or it cannot be written; then none of them is in the log.
    """
    return _append(list(events), force=True)


def note(event: str, **fields: Any) -> LogState:
    """Append one event that has already happened, without waiting for the disk.

    Raises:
        SecvecError: No log is configured, or it cannot be written.
    """
    return _append([(event, fields)], force=False)


def verify(location: str = "") -> LogState:
    """Check every line's form and its bond to the one before.

    Args:
        location: The log; the one that ``SECVEC_AUDIT_LOG`` names by default.

    Raises:
        SecvecError: The log cannot be read, or naming the first line that is edited, missing, moved or cut.
    """
    log = open_log(location)
    state = LogState()
    try:
        for reached in follow_lines(log.read_lines(), where=str(log)):
            state = reached
    except OSError as error:
        raise SecvecError(
            f"cannot read the audit log ({error.strerror})", where=str(log), accepted="an audit log"
        ) from error
    return state


def read_entries(location: str = "") -> Iterator[dict[str, Any]]:
    """Give the entries of a log in order; a line that a crash cut short holds none.

    Args:
        location: The log; the one that ``SECVEC_AUDIT_LOG`` names by default.

    Raises:
        SecvecError: The log cannot be read. Whether it is whole, `verify` says.
    """
    log = open_log(location)
    try:
        yield from (entry for line in log.read_lines() if (entry := parse_line(line)))
    except OSError as error:
        raise SecvecError(
            f"cannot read the audit log ({error.strerror})", where=str(log), accepted="an audit log"
        ) from error


def open_log(location: str = "") -> FileLog | ObjectLog:
    """The log at a location; nothing is read or written yet.

    Raises:
        SecvecError: No location is given or configured, or it is of another kind.
    """
    value = location or os.environ.get(LOG_VARIABLE, "")
    if not value:
        raise SecvecError("no audit log is configured", where=LOG_VARIABLE, accepted=_ACCEPTED)
    scheme = scheme_of(value)
    if scheme == "file":
        return FileLog(local_path(value))
    if scheme == "s3":
        return ObjectLog(value.rstrip("/"))
    raise SecvecError("is no place for an audit log", where=value, accepted=_ACCEPTED)


def _append(events: list[tuple[str, Mapping[str, Any]]], *, force: bool) -> LogState:
    log = open_log()
    try:
        return log.append(lambda state: encode_lines(events, after=state), force=force)
    except OSError as error:
        raise SecvecError(
            f"cannot write the audit log ({error.strerror or error})", where=str(log), accepted=_ACCEPTED
        ) from error
    except SecvecError as error:
        raise SecvecError(f"cannot write the audit log: {error}") from error
