"""Signed statements: in-toto Statement v1 in a DSSE envelope.

Which key signs and whose signatures are believed: `secvec.components.shared.signing_keys`.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import rfc8785

from secvec.components.shared.errors import SecvecError
from secvec.components.shared.signing_keys import Purpose, load_signer, load_trusted_keys
from secvec.components.shared.strict_json import parse_strictly

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
TEST_RESULT_TYPE = "https://in-toto.io/attestation/test-result/v0.1"
VERDICT_TYPE = "https://slsa.dev/verification_summary/v1"
_ACCEPTED_ENVELOPE = "a DSSE envelope of an in-toto statement signed by a trusted key"


def make_statement(
    subjects: Mapping[str, str], predicate_type: str, predicate: Mapping[str, Any]
) -> dict[str, Any]:
    """Build an in-toto Statement v1.

    Args:
        subjects: ``sha256:<hex>`` digests by subject name.
        predicate_type: URI of the predicate's type.
        predicate: The claim, finite JSON values.
    """
    return {
        "_type": STATEMENT_TYPE,
        "subject": [
            {"name": name, "digest": {"sha256": digest.removeprefix("sha256:")}}
            for name, digest in subjects.items()
        ],
        "predicateType": predicate_type,
        "predicate": dict(predicate),
    }


def make_test_result(
    *, model_digest: str, digests: Mapping[str, str], files: Mapping[str, str], valid_for: timedelta
) -> dict[str, Any]:
    """State that an evaluation of one model came to the files given (in-toto test result v0.1).

    Args:
        model_digest: Digest of the model artifact, the statement's one subject.
        digests: What the result is bound to, by role: base, vector, model, data, suite, judge, code.
        files: ``sha256:<hex>`` by name of the files that hold the result; the gate reads ``statistics.json``.
        valid_for: How long the statement may be relied on.
    """
    issued = datetime.now(UTC).replace(microsecond=0)
    predicate = {
        # PASSED: the evaluation ran to its end. Whether its figures are good enough is the policy's question.
        "result": "PASSED",
        "configuration": [
            {"name": role, "digest": {"sha256": digest.removeprefix("sha256:")}}
            for role, digest in sorted(digests.items())
        ],
        "files": dict(files),
        "issued_at": issued.isoformat(),
        "expires_at": (issued + valid_for).isoformat(),
    }
    return make_statement({"model": model_digest}, TEST_RESULT_TYPE, predicate)


def sign_statement(
    statement: Mapping[str, Any], *, purpose: Purpose = "results", signer: Any = None
) -> dict[str, Any]:
    """Sign a statement.

    Args:
        statement: The statement, finite JSON values.
        purpose: Which of the configured keys signs.
        signer: A securesystemslib signer that signs instead.

    Returns:
        The DSSE envelope as a JSON object.

    Raises:
        SecvecError: The key is missing, readable by others or of another kind; the statement holds a value
            that JSON has not (NaN, infinity).
    """
    from securesystemslib.dsse import Envelope

    signer = signer or load_signer(purpose)
    try:
        payload = rfc8785.dumps(dict(statement))
    except (rfc8785.CanonicalizationError, TypeError) as error:
        raise SecvecError(
            f"cannot be signed: {error}", where="statement", accepted="finite JSON values"
        ) from error
    envelope = Envelope(payload, PAYLOAD_TYPE, {})
    envelope.sign(signer)
    return envelope.to_dict()


def verify_statement(
    envelope: Mapping[str, Any],
    *,
    predicate_type: str | None = None,
    allowed_signers: Collection[str] = (),
    purpose: Purpose = "results",
    keys: Sequence[Any] | None = None,
    where: str = "statement",
) -> dict[str, Any]:
    """Check an envelope's signature and form.

    Args:
        envelope: The DSSE envelope.
        predicate_type: What the statement must be, if given.
        allowed_signers: Key ids; when not empty, only these trusted keys count.
        purpose: Which of the trusted keys count.
        keys: Public keys that count instead of the trusted ones.
        where: What the envelope is called in an error.

    Returns:
        The statement that was signed.

    Raises:
        SecvecError: It is unsigned, edited, no statement, or its signer is not trusted or not allowed.
    """
    from securesystemslib.dsse import Envelope

    trusted = load_trusted_keys(purpose) if keys is None else keys
    believed = [key for key in trusted if not allowed_signers or key.keyid in allowed_signers]
    try:
        if set(envelope) != {"payload", "payloadType", "signatures"}:
            raise ValueError("it is not an envelope")
        if any(set(signature) != {"keyid", "sig"} for signature in envelope["signatures"]):
            raise ValueError("a signature holds more than key id and signature")
        # from_dict rewrites what it is given
        parsed = Envelope.from_dict(copy.deepcopy(dict(envelope)))
        if parsed.payload_type != PAYLOAD_TYPE:
            raise ValueError(f"its payload is {parsed.payload_type!r}")
        if parsed.to_dict() != envelope:
            raise ValueError("its base64 is not spelled the one way")
        if not believed:
            raise ValueError("none of the trusted keys is allowed to sign it")
        parsed.verify(believed, threshold=1)
        statement = parse_strictly(parsed.payload)
        _check_form(statement, predicate_type)
    except Exception as error:  # an edited envelope fails anywhere between base64 and the signature
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise SecvecError(f"cannot be believed: {reason}", where=where, accepted=_ACCEPTED_ENVELOPE) from None
    return statement


def signers_of(envelope: Mapping[str, Any]) -> list[str]:
    """Key ids that an envelope claims; `verify_statement` says whether to believe it."""
    return [str(signature.get("keyid", "")) for signature in envelope.get("signatures", [])]


def _check_form(statement: Any, predicate_type: str | None) -> None:
    if not isinstance(statement, dict) or statement.get("_type") != STATEMENT_TYPE:
        raise ValueError("its payload is no in-toto statement")
    if predicate_type is not None and statement.get("predicateType") != predicate_type:
        raise ValueError(f"it states {statement.get('predicateType')!r}")
    if not isinstance(statement.get("subject"), list) or not isinstance(statement.get("predicate"), dict):
        raise ValueError("it lacks subject or predicate")
