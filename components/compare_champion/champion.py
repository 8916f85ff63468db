"""The champion, as the gate signed it: tags of the registry say only where to look."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from secvec.components.gate_promotion.policy import Policy
from secvec.components.gate_promotion.promotion import CHAMPION
from secvec.components.shared.artifacts import fetch
from secvec.components.shared.attestation import VERDICT_TYPE, verify_statement
from secvec.components.shared.errors import SecvecError
from secvec.components.shared.manifest import digest_bytes
from secvec.components.shared.references import Reference
from secvec.components.shared.strict_json import read_object
from secvec.components.shared.tracking import connect, mlflow_errors

_ACCEPTED = "a champion that the gate promoted with a verdict that holds"


@dataclass(frozen=True)
class Champion:
    """A promoted model.

    Attributes:
        version: Its version in the registry.
        digests: What it was made from and judged by, by role.
        policy_digest: The policy that it passed.
        verdict: The signed verdict.
    """

    version: str
    digests: Mapping[str, str]
    policy_digest: str
    verdict: Reference


def read_champion(name: str, *, policy: Policy, now: datetime) -> Champion:
    """Read the champion of a registered model from the verdict that the gate signed on it.

    Args:
        name: The registered model.
        policy: Whose signatures count.
        now: The clock, with a time zone.

    Raises:
        SecvecError: There is none, or nothing signed that still holds says so of this very version.
    """
    version = _find_version(name)
    where = f"{name} version {version.version}"
    reference = _find_verdict(version.tags, where=where)
    folder = fetch(reference)
    predicate = _read_statement(folder, name=name, version=version, policy=policy)
    if _time(predicate.get("expires_at")) <= now:
        raise SecvecError(
            f"its verdict expired at {predicate['expires_at']}", where=where, accepted=_ACCEPTED
        )
    verdict = read_object(folder / "verdict.json")
    digests = {str(role): str(digest) for role, digest in (verdict.get("digests") or {}).items()}
    return Champion(str(version.version), digests, str(verdict.get("policy_digest", "")), reference)


def _find_version(name: str) -> Any:
    from mlflow.exceptions import MlflowException

    client = connect()
    with mlflow_errors(name):
        try:
            return client.get_model_version_by_alias(name, CHAMPION)
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
    raise SecvecError("has no champion", where=name, accepted=_ACCEPTED)


def _find_verdict(tags: Mapping[str, str], *, where: str) -> Reference:
    try:
        return Reference(
            kind="verdict",
            uri=tags.get("secvec.verdict_uri", ""),
            digest=tags.get("secvec.verdict_digest", ""),
        )
    except ValidationError:
        raise SecvecError("names no verdict in its tags", where=where, accepted=_ACCEPTED) from None


def _read_statement(folder: Path, *, name: str, version: Any, policy: Policy) -> dict[str, Any]:
    """Give what the gate signed, bound to these bytes, this name, this version and its model."""
    statement = verify_statement(
        read_object(folder / "statement.json"),
        predicate_type=VERDICT_TYPE,
        allowed_signers=policy.allowed_signers,
        where=f"verdict on {name} version {version.version}",
    )
    predicate: dict[str, Any] = statement["predicate"]
    file = folder / "verdict.json"
    found = digest_bytes(file.read_bytes()) if file.is_file() else ""
    subjects = {one.get("name"): one.get("digest", {}).get("sha256", "") for one in statement["subject"]}
    model = subjects.get("model artifact") or ""
    checks = {
        "result": predicate.get("verificationResult") == "PASSED",
        "verdict": predicate.get("verdict", {}).get("digest", {}).get("sha256")
        == found.removeprefix("sha256:"),
        "name": predicate.get("model") == {"name": name, "version": str(version.version)},
        # Who may edit the registry can point the alias elsewhere: the version's own bytes must be those.
        "model": bool(model) and model in (version.source or ""),
    }
    if wrong := [check for check, holds in checks.items() if not holds]:
        raise SecvecError(
            f"its signed verdict does not hold ({', '.join(wrong)})",
            where=f"{name} version {version.version}",
            accepted=_ACCEPTED,
        )
    return predicate


def _time(text: Any) -> datetime:
    try:
        found = datetime.fromisoformat(text)
        if found.tzinfo:
            return found
    except (TypeError, ValueError):
        pass
    raise SecvecError("its verdict names no time at which it expires", accepted=_ACCEPTED)
