"""Access records of the store: S3 server access logs, or CloudTrail's data events and KMS calls."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from secvec.components.shared.errors import SecvecError

_ACCEPTED = "an S3 server access log, or a CloudTrail file ({'Records': [...]})"
# https://docs.aws.amazon.com/AmazonS3/latest/userguide/LogFormat.html
_LINE = re.compile(
    r"\S+ \S+ \[(?P<time>[^\]]+)\] \S+ (?P<who>\S+) \S+ (?P<operation>\S+) (?P<key>\S+) "
    r'"[^"]*" (?P<status>\d+|-) '
)


@dataclass(frozen=True)
class Access:
    """One successful access.

    Attributes:
        time: When.
        principal: Last part of the requester's name: ``secvec-fine-tuner`` of an assumed role's ARN.
        action: ``GetObject`` or ``Decrypt``.
        key: The object's key; for ``Decrypt`` the digest of the vector in the encryption context.
    """

    time: datetime
    principal: str
    action: str
    key: str


def read_access_records(paths: Iterable[Path]) -> list[Access]:
    """Read reads of sealed vectors and decryptions, in order of time.

    Raises:
        SecvecError: A file cannot be read or is of another kind.
    """
    found: list[Access] = []
    for path in paths:
        try:
            text = path.read_text(encoding="utf-8")
            found += _from_cloudtrail(json.loads(text)) if text.startswith("{") else _from_lines(text)
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            reason = " ".join(str(error).split())[:120]
            raise SecvecError(f"cannot be read: {reason}", where=str(path), accepted=_ACCEPTED) from error
    return sorted(found, key=lambda one: one.time)


def _from_lines(text: str) -> Iterator[Access]:
    for number, line in enumerate(text.splitlines(), start=1):
        match = _LINE.match(line)
        if not match:
            raise ValueError(f"line {number} is no access record")
        if match["operation"] == "REST.GET.OBJECT" and match["status"] in ("200", "206"):
            time = datetime.strptime(match["time"], "%d/%b/%Y:%H:%M:%S %z")
            if match["key"].endswith("vector.sealed"):
                yield Access(time, _short(match["who"]), "GetObject", match["key"])


def _from_cloudtrail(content: Any) -> Iterator[Access]:
    for record in content["Records"]:
        action, parameters = record["eventName"], record.get("requestParameters") or {}
        if record.get("errorCode") or action not in ("GetObject", "Decrypt"):
            continue
        key = parameters.get("key") or (parameters.get("encryptionContext") or {}).get("vector", "")
        if action == "Decrypt" or key.endswith("vector.sealed"):
            time = datetime.fromisoformat(record["eventTime"]).astimezone(UTC)
            yield Access(time, _short(record["userIdentity"]["arn"]), action, key)


def _short(name: str) -> str:
    """``arn:aws:sts::1:assumed-role/secvec-gate/session`` and ``arn:aws:iam::1:user/ada`` by their names."""
    parts = name.split("/")
    return parts[1] if ":assumed-role" in parts[0] and len(parts) > 1 else parts[-1]
