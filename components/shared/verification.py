"""Verification for whoever serves a model: a verdict for exactly these bytes, signed, in force, and PASS.

Works offline, from the model folder, the verdict's signed statement and the trusted public keys.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from secvec.components.shared.attestation import VERDICT_TYPE, signers_of, verify_statement
from secvec.components.shared.errors import SecvecError
from secvec.components.shared.manifest import digest_file, list_files
from secvec.components.shared.model_signature import SIGNATURE_NAME, verify_model_signature
from secvec.components.shared.model_traces import find_traces
from secvec.components.shared.strict_json import read_object

STATEMENT_NAME = "statement.json"
_FOLDER = "model/"
# Clocks of a cluster differ by seconds; S3 itself refuses requests that are 15 minutes off.
CLOCK_TOLERANCE = timedelta(minutes=10)


@dataclass(frozen=True)
class VerifiedModel:
    """What a verification comes to.

    Attributes:
        folder: The folder whose bytes were checked.
        model_digest: Digest of the model artifact that the verdict is about.
        model_name: Registered model.
        model_version: Its version.
        policy_digest: The policy it passed.
        expires_at: When the verdict ends.
        signers: Key ids that signed the verdict.
    """

    folder: Path
    model_digest: str
    model_name: str
    model_version: str
    policy_digest: str
    expires_at: datetime
    signers: tuple[str, ...]


def verify_model(
    folder: Path,
    *,
    verdict: Path,
    allowed_signers: Collection[str] = (),
    policy_digest: str = "",
    now: datetime | None = None,
) -> VerifiedModel:
    """Check that a model folder may be served.

    Args:
        folder: What ships: a folder with ``config.json`` and weights, or the model artifact around it.
        verdict: The verdict artifact's folder, or its ``statement.json``.
        allowed_signers: Key ids; when not empty, only these trusted keys count.
        policy_digest: The one policy that counts, by its digest; empty: any that the gate was given.
        now: The clock; the system's by default.

    Returns:
        What was verified.

    Raises:
        SecvecError: A trace of an adapter or of code; or the verdict is not signed by a trusted key, is no
            PASS, has expired or not begun, was reached by another policy, or is about other files.
    """
    shipped = folder / "model" if (folder / "provenance.json").is_file() else folder
    refuse_traces(shipped)
    path = verdict / STATEMENT_NAME if verdict.is_dir() else verdict
    envelope = read_object(path)
    statement = verify_statement(
        envelope, predicate_type=VERDICT_TYPE, allowed_signers=allowed_signers, where=str(path)
    )
    predicate = statement["predicate"]
    expires_at = _check_outcome(predicate, now=now or datetime.now(UTC), where=str(path))
    policy = _check_policy(predicate, wanted=policy_digest, where=str(path))
    subjects = _read_subjects(statement, where=str(path))
    files = _check_files(shipped, subjects)
    _check_signature(predicate, path.with_name(SIGNATURE_NAME), files)
    return VerifiedModel(
        folder=shipped,
        model_digest=subjects["model artifact"],
        model_name=predicate["model"]["name"],
        model_version=predicate["model"]["version"],
        policy_digest=policy,
        expires_at=expires_at,
        signers=tuple(signers_of(envelope)),
    )


def refuse_traces(folder: Path) -> None:
    """Refuse a model folder that holds an adapter, code or a stray file.

    Raises:
        SecvecError: Naming the first trace, and how many there are.
    """
    traces = find_traces(folder)
    if traces:
        more = f" (and {len(traces) - 1} more)" if len(traces) > 1 else ""
        raise SecvecError(
            f"{traces[0]}{more}",
            where=str(folder),
            accepted="a plain safetensors model, or a task adapter alone",
        )


def _check_outcome(predicate: Mapping[str, Any], *, now: datetime, where: str) -> datetime:
    result, levels = predicate.get("verificationResult"), predicate.get("verifiedLevels")
    if result != "PASSED" or levels != ["SECVEC_PASS"]:
        raise SecvecError(f"the verdict is {levels}", where=where, accepted="a verdict that is PASS")
    try:
        begins_at, expires_at = (
            datetime.fromisoformat(predicate[name]) for name in ("timeVerified", "expires_at")
        )
        early, expired = now + CLOCK_TOLERANCE < begins_at, now >= expires_at
    except (KeyError, TypeError, ValueError) as error:
        raise SecvecError("the verdict has no expiry", where=where, accepted="a verdict in force") from error
    if expired:
        raise SecvecError(f"the verdict expired at {expires_at}", where=where, accepted="a verdict in force")
    if early:
        raise SecvecError(
            f"the verdict is of {begins_at}, after this machine's time {now:%Y-%m-%d %H:%M} UTC",
            where=where,
            accepted="clocks that agree",
        )
    return expires_at


def _check_policy(predicate: Mapping[str, Any], *, wanted: str, where: str) -> str:
    """A policy file that somebody loosened gives a verdict that is signed and says PASS all the same."""
    try:
        found = "sha256:" + predicate["policy"]["digest"]["sha256"]
    except (KeyError, TypeError) as error:
        raise SecvecError("names no policy", where=where, accepted="a verdict of this gate") from error
    if wanted and found != wanted:
        raise SecvecError(
            f"the verdict was reached by policy {found}", where=where, accepted=f"policy {wanted}"
        )
    return found


def _read_subjects(statement: Mapping[str, Any], *, where: str) -> dict[str, str]:
    try:
        found = {one["name"]: "sha256:" + one["digest"]["sha256"] for one in statement["subject"]}
    except (KeyError, TypeError) as error:
        raise SecvecError("has malformed subjects", where=where, accepted="a verdict of this gate") from error
    if "model artifact" not in found or len(found) != len(statement["subject"]):
        raise SecvecError("has malformed subjects", where=where, accepted="a verdict of this gate")
    return found


def _check_signature(predicate: Mapping[str, Any], path: Path, files: Mapping[str, str]) -> None:
    """Hold the folder's OpenSSF signature, where the verdict names its key, against the files as well."""
    public_key = predicate.get("modelSigningKey")
    if public_key is None:
        return
    try:
        bundle = path.read_bytes()
    except OSError as error:
        raise SecvecError(
            f"cannot be read ({error.strerror})", where=str(path), accepted="the verdict's whole folder"
        ) from error
    verify_model_signature(bundle, public_key=str(public_key), files=files)


def _check_files(folder: Path, subjects: Mapping[str, str]) -> dict[str, str]:
    expected = {
        name.removeprefix(_FOLDER): digest for name, digest in subjects.items() if name.startswith(_FOLDER)
    }
    found = set(list_files(folder))
    for name in sorted(found ^ expected.keys()):
        problem = "is not in the verdict" if name in found else "is missing"
        raise SecvecError(f"file {name} {problem}", where=str(folder), accepted="exactly the files judged")
    for name, digest in expected.items():
        actual = digest_file(folder / name)
        if actual != digest:
            raise SecvecError(f"file {name} has digest {actual}", where=str(folder), accepted=digest)
    return expected
