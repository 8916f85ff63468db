"""Approvals: people who sign for a verdict that the policy does not leave to the gate alone.

A person's approval is a signed statement over the verdict's digest. Enough of them, by people whom the policy
names, turn an INDETERMINATE verdict into a PASS; a policy that asks for approvals leaves every PASS at
INDETERMINATE until they are there. They never turn a FAIL, and never stand in for a signature or an absence
proof. The gate's own key settles it (`secvec reconcile`): no approver can promote anything.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from secvec.components.gate_promotion.policy import Policy, key_id, read_public_key
from secvec.components.gate_promotion.verdict import Outcome, Reason, Verdict
from secvec.components.shared import audit
from secvec.components.shared.artifacts import fetch
from secvec.components.shared.attestation import (
    VERDICT_TYPE,
    make_statement,
    sign_statement,
    signers_of,
    verify_statement,
)
from secvec.components.shared.errors import SecvecError
from secvec.components.shared.manifest import digest_file
from secvec.components.shared.references import Reference
from secvec.components.shared.signing_keys import SIGNING_VARIABLE
from secvec.components.shared.storage import create_bytes, join_uri, list_uris, read_bytes
from secvec.components.shared.strict_json import parse_strictly, read_object

APPROVAL_TYPE = "urn:secvec:approval:1"
AUTHOR_VARIABLE = "SECVEC_AUTHOR"
CHECK = "approvals"
_ACCEPTED = "a verdict that is INDETERMINATE, by a policy that asks for approvals"


def require_approvals(policy: Policy) -> list[Reason]:
    """The reason that keeps a verdict open until people approve it; none if the policy asks for none."""
    if not policy.required_approvals:
        return []
    return [describe_approvals([], policy)]


def describe_approvals(names: Sequence[str], policy: Policy) -> Reason:
    """What the approvals there are come to."""
    outcome: Outcome = "PASS" if len(names) >= policy.required_approvals > 0 else "INDETERMINATE"
    source = f"approved by {', '.join(names)}" if names else "people"
    return Reason(
        check=CHECK, outcome=outcome, figure=len(names), bound=policy.required_approvals, source=source
    )


def author_of_run() -> str:
    """Who started the run, as far as it is known: ``SECVEC_AUTHOR``, or the user of a local run."""
    return os.environ.get(AUTHOR_VARIABLE) or os.environ.get("USER", "")


def find_obstacle(outcome: Outcome, reasons: Sequence[Reason], policy: Policy) -> str:
    """Why people's approval cannot settle a verdict; empty if it can."""
    found = {reason.check: reason for reason in reasons}
    failed = [reason.check for reason in reasons if reason.outcome == "FAIL"]
    if failed or outcome == "FAIL":
        return f"failed {', '.join(failed) or 'as a whole'}"
    if not policy.required_approvals:
        return "its policy asks for no approvals"
    if outcome != "INDETERMINATE":
        return f"is {outcome} already"
    for check, wanted in (("signature", "verified"), ("absence_proof", "passed")):
        if check not in found or found[check].outcome != "PASS" or found[check].figure != wanted:
            return f"has no {check.replace('_', ' ')} that holds"
    return ""


def read_open_verdict(reference: Reference) -> tuple[Verdict, Policy]:
    """Read a verdict that waits for approvals, by its trusted signature.

    Raises:
        SecvecError: It cannot be believed, or approvals cannot settle it.
    """
    folder = fetch(reference)
    where = reference.uri
    statement = verify_statement(
        read_object(folder / "statement.json"), predicate_type=VERDICT_TYPE, where=where
    )
    signed = statement["predicate"]["verdict"]["digest"]["sha256"]
    if f"sha256:{signed}" != digest_file(folder / "verdict.json"):
        raise SecvecError("its verdict.json is not the one that was signed", where=where, accepted=_ACCEPTED)
    verdict = Verdict.model_validate(read_object(folder / "verdict.json"))
    policy = Policy.read(read_object(folder / "policy.json"), where=f"{where}/policy.json")
    if policy.digest() != verdict.policy_digest:
        raise SecvecError("its policy.json is not the one that was applied", where=where, accepted=_ACCEPTED)
    if obstacle := find_obstacle(verdict.outcome, verdict.reasons, policy):
        raise SecvecError(f"cannot be approved: it {obstacle}", where=where, accepted=_ACCEPTED)
    return verdict, policy


def approve(reference: Reference, *, key: Path, store: str) -> str:
    """Sign for a verdict as one of the people whom its policy names.

    Args:
        reference: The verdict.
        key: The person's private key file.
        store: URI of the store, in which the approval is kept.

    Returns:
        The person's name in the policy.

    Raises:
        SecvecError: The verdict cannot be approved, the key is no approver's or the author's, or the audit
            log or the store cannot be written.
    """
    verdict, policy = read_open_verdict(reference)
    now = datetime.now(UTC)
    statement = make_statement(
        {"verdict": reference.digest},
        APPROVAL_TYPE,
        {"model": verdict.digests["model"], "issued_at": now.isoformat()},
    )
    envelope = _sign_as(statement, key)
    signer = signers_of(envelope)[0]
    name = next((one for one, pem in policy.approvers.items() if key_id(pem) == signer), "")
    authors = _signers(fetch(reference) / "statement.json")
    if not name or name == verdict.author or signer in authors:
        raise SecvecError(
            "is the author's own" if name else "is no approver's",
            where=str(key),
            accepted=f"the key of one of {', '.join(sorted(policy.approvers))} who is not the author",
        )
    audit.append("verdict_approved", verdict=reference.digest, model=verdict.digests["model"], approver=name)
    place = join_uri(_folder(reference.digest, store), f"{signer}.json")
    create_bytes(place, json.dumps(envelope).encode())
    return name


def count_approvals(
    reference: Reference, *, policy: Policy, author: str, evaluation: Reference, store: str, now: datetime
) -> list[str]:
    """Names of the distinct people whose approval of a verdict counts, in order.

    Args:
        reference: The verdict.
        policy: Whose approval counts.
        author: Who started the run; their own approval does not count.
        evaluation: The evaluation, whose signers are authors too.
        store: URI of the store in which approvals are kept.
        now: The clock; an approval from the future does not count.

    Raises:
        SecvecError: The store cannot be read.
    """
    authors = {
        *_signers(fetch(reference) / "statement.json"),
        *_signers(fetch(evaluation) / "statement.json"),
    }
    keys = {name: read_public_key(pem) for name, pem in policy.approvers.items() if name != author}
    keys = {name: key for name, key in keys.items() if key.keyid not in authors}
    envelopes = [_read(uri) for uri in list_uris(_folder(reference.digest, store))]
    limit = now + timedelta(seconds=policy.clock_skew_seconds)
    return sorted(
        name
        for name, key in keys.items()
        if any(_holds(one, key, verdict=reference.digest, limit=limit) for one in envelopes)
    )


def _holds(envelope: dict[str, Any], key: Any, *, verdict: str, limit: datetime) -> bool:
    try:
        statement = verify_statement(envelope, predicate_type=APPROVAL_TYPE, keys=[key])
        subjects = ["sha256:" + one["digest"]["sha256"] for one in statement["subject"]]
        return subjects == [verdict] and datetime.fromisoformat(statement["predicate"]["issued_at"]) <= limit
    except (SecvecError, KeyError, TypeError, ValueError):
        return False


def _sign_as(statement: dict[str, Any], key: Path) -> dict[str, Any]:
    """Sign with another key than this process's own."""
    before = os.environ.get(SIGNING_VARIABLE)
    os.environ[SIGNING_VARIABLE] = str(key)
    try:
        return sign_statement(statement)
    finally:
        if before is None:
            del os.environ[SIGNING_VARIABLE]
        else:
            os.environ[SIGNING_VARIABLE] = before


def _signers(path: Path) -> list[str]:
    return signers_of(read_object(path))


def _folder(verdict: str, store: str) -> str:
    return join_uri(store, "approvals", verdict.removeprefix("sha256:"))


def _read(uri: str) -> dict[str, Any]:
    try:
        found = parse_strictly(read_bytes(uri))
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
