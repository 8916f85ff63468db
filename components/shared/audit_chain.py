"""The form of the audit log: canonical JSON lines, each bound to the one before by its SHA-256."""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import os
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import rfc8785

from secvec.components.shared.errors import SecvecError

GENESIS = "sha256:" + "0" * 64
RECOVERED = "log_recovered"
UNCHANGED = "a log as it was written"
_SHAPE = {
    "schema": int,
    "sequence": int,
    "time": str,
    "event": str,
    "who": dict,
    "fields": dict,
    "previous": str,
}
_RUN_VARIABLES = {"mlflow_run": "MLFLOW_RUN_ID", "kfp_run": "KFP_RUN_ID", "pod": "KFP_POD_NAME"}
_TOKEN = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")
_LARGEST_INTEGER = 2**53 - 1  # what JSON readers agree on (RFC 8785, section 3.2.2.3)


@dataclass(frozen=True)
class LogState:
    """How far a log goes.

    Attributes:
        size: Lines in the log.
        head: ``sha256:<hex>`` of the last line's bytes; `GENESIS` for an empty log.
    """

    size: int = 0
    head: str = GENESIS

    def follow(self, line: bytes) -> LogState:
        """The state with one more line."""
        return LogState(size=self.size + 1, head=digest_line(line))


def encode_lines(events: Iterable[tuple[str, Mapping[str, Any]]], *, after: LogState) -> list[bytes]:
    """Give the lines of some events that follow `after`, each bound to the one before.

    Raises:
        SecvecError: A field holds what JSON cannot carry.
    """
    lines = []
    for event, fields in events:
        lines.append(encode_line(event, fields, after=after))
        after = after.follow(lines[-1])
    return lines


def encode_line(event: str, fields: Mapping[str, Any], *, after: LogState) -> bytes:
    """Give the bytes of the line that follows `after`, without the line break.

    Raises:
        SecvecError: A field holds what JSON cannot carry.
    """
    entry = {
        "schema": 1,
        "sequence": after.size + 1,
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "event": event,
        "who": _who(),
        "fields": dict(fields),
        "previous": after.head,
    }
    try:
        return _quick(entry) if _is_plain(entry) else rfc8785.dumps(entry)  # type: ignore[arg-type]
    except (rfc8785.CanonicalizationError, TypeError, ValueError, RecursionError) as error:
        raise SecvecError(f"{event} cannot be logged: {error}", accepted="finite JSON values") from error


def parse_line(line: bytes) -> dict[str, Any] | None:
    """The entry that a line holds; None when its bytes are not canonical or not an entry."""
    try:
        entry = json.loads(line)
        if not isinstance(entry, dict) or {key: type(value) for key, value in entry.items()} != _SHAPE:
            return None
        canonical = _quick(entry) if _is_plain(entry) else rfc8785.dumps(entry)
    except (ValueError, RecursionError, rfc8785.CanonicalizationError):
        return None
    return entry if entry["schema"] == 1 and line == canonical else None


def digest_line(line: bytes) -> str:
    """``sha256:<hex>`` of a line's bytes."""
    return "sha256:" + hashlib.sha256(line).hexdigest()


def follow_lines(lines: Iterable[bytes], *, where: str) -> Iterable[LogState]:
    """Check line after line and give the state after each.

    A line that a crash cut short may stay if the next one says so; the chain runs over its bytes.

    Raises:
        SecvecError: Naming the first line that is edited, missing, moved or cut short.
    """
    state, torn = LogState(), 0
    for line in lines:
        number = state.size + 1
        entry = parse_line(line)
        if torn and (entry is None or entry["event"] != RECOVERED):
            break
        if entry and (entry["previous"] != state.head or entry["sequence"] != number):
            raise SecvecError(
                f"line {number} does not follow from the one before", where=where, accepted=UNCHANGED
            )
        torn = 0 if entry else number
        state = state.follow(line)
        yield state
    if torn:
        raise SecvecError(f"line {torn} is not a whole audit entry", where=where, accepted=UNCHANGED)


def _quick(entry: Any) -> bytes:
    """RFC 8785 for values without floats and with ASCII keys, ten times as fast as the general encoder."""
    return json.dumps(entry, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _is_plain(value: Any) -> bool:
    kind = type(value)
    if kind is str or value is None or kind is bool:
        return True
    if kind is int:
        return -_LARGEST_INTEGER <= value <= _LARGEST_INTEGER
    if kind is dict:
        return all(type(k) is str and k.isascii() and _is_plain(v) for k, v in value.items())
    return kind in (list, tuple) and all(_is_plain(one) for one in value)


def _who() -> dict[str, str]:
    runs = {name: os.environ[variable] for name, variable in _RUN_VARIABLES.items() if variable in os.environ}
    account = _service_account()
    return {
        "user": os.environ.get("USER", ""),
        "uid": str(os.getuid()),
        "host": socket.gethostname(),
        **({"service_account": account} if account else {}),
        **runs,
    }


@functools.cache
def _service_account() -> str:
    """The Kubernetes account of this pod, by the name in its token; empty outside a cluster."""
    try:
        claims = _TOKEN.read_text().split(".")[1]
        name = json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))["sub"]
    except (OSError, ValueError, LookupError, TypeError):
        return ""
    return str(name)
