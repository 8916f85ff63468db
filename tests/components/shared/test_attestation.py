import base64
import copy
import json
import stat
from datetime import timedelta
from pathlib import Path

import pytest

from secvec.components.shared.attestation import (
    TEST_RESULT_TYPE,
    make_statement,
    make_test_result,
    sign_statement,
    signers_of,
    verify_statement,
)
from secvec.components.shared.errors import SecvecError
from secvec.components.shared.signing_keys import ensure_signing_key, load_trusted_keys
from secvec.components.shared.strict_json import parse_strictly

DIGEST = "sha256:" + "a" * 64


@pytest.fixture
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = ensure_signing_key(tmp_path / "keys" / "signing")
    monkeypatch.setenv("SECVEC_SIGNING_KEY", str(path))
    monkeypatch.delenv("SECVEC_TRUSTED_KEYS", raising=False)
    return path


@pytest.fixture
def envelope(key: Path) -> dict:
    return sign_statement(
        make_test_result(model_digest=DIGEST, digests={"base": DIGEST}, files={}, valid_for=timedelta(days=1))
    )


def test_what_is_signed_verifies(envelope: dict) -> None:
    before = copy.deepcopy(envelope)
    statement = verify_statement(envelope, predicate_type=TEST_RESULT_TYPE)
    assert statement["subject"] == [{"name": "model", "digest": {"sha256": "a" * 64}}]
    assert envelope == before
    assert signers_of(envelope) == [load_trusted_keys()[0].keyid]


def test_it_is_an_envelope_other_tools_can_check(envelope: dict, key: Path) -> None:
    """DSSE v1 pre-authentication encoding, checked with cryptography alone."""
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    payload = base64.b64decode(envelope["payload"])
    kind = envelope["payloadType"].encode()
    message = b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)
    public = load_pem_public_key(Path(f"{key}.pub").read_bytes())
    public.verify(base64.b64decode(envelope["signatures"][0]["sig"]), message)


def test_the_key_is_private_and_made_once(key: Path) -> None:
    before = key.read_bytes()
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    ensure_signing_key(key)
    assert key.read_bytes() == before
    assert sorted(path.name for path in key.parent.iterdir()) == ["signing", "signing.pub"]


def test_another_trusted_key_alone_does_not_do(
    envelope: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = ensure_signing_key(tmp_path / "other")
    monkeypatch.setenv("SECVEC_TRUSTED_KEYS", f"{other}.pub")
    with pytest.raises(SecvecError, match="cannot be believed"):
        verify_statement(envelope)
    monkeypatch.setenv("SECVEC_TRUSTED_KEYS", f"{other}.pub:{tmp_path}/keys/signing.pub")
    verify_statement(envelope)


def test_a_trusted_key_that_is_not_allowed_does_not_do(envelope: dict) -> None:
    verify_statement(envelope, allowed_signers=signers_of(envelope))
    with pytest.raises(SecvecError, match="cannot be believed"):
        verify_statement(envelope, allowed_signers=["0" * 64])


def repack(envelope: dict, statement: object) -> dict:
    return {**envelope, "payload": base64.b64encode(json.dumps(statement).encode()).decode()}


def test_each_edit_is_refused(envelope: dict) -> None:
    statement = verify_statement(envelope)
    other = copy.deepcopy(statement)
    other["subject"][0]["digest"]["sha256"] = "b" * 64
    edits = [
        {},
        {**envelope, "signatures": []},
        {**envelope, "more": 1},
        {**envelope, "payloadType": "text/plain"},
        {**envelope, "signatures": [{**envelope["signatures"][0], "keyid": "0" * 64}]},
        {**envelope, "signatures": [{**envelope["signatures"][0], "sig": "AAAA"}]},
        {**envelope, "signatures": [{**envelope["signatures"][0], "sig": "?"}]},
        {**envelope, "signatures": [{**envelope["signatures"][0], "payload": envelope["payload"]}]},
        {**envelope, "signatures": None},
        {**envelope, "payload": "AA"},
        {**envelope, "payload": envelope["payload"] + "\n"},
        {**envelope, "payload": "!" + envelope["payload"]},
        repack(envelope, other),
        repack(envelope, statement),
    ]
    for edited in edits:
        with pytest.raises(SecvecError, match="cannot be believed"):
            verify_statement(edited)


def test_another_kind_of_statement_is_refused(key: Path) -> None:
    envelope = sign_statement(make_statement({"x": DIGEST}, "https://example.org/other", {}))
    with pytest.raises(SecvecError, match="it states"):
        verify_statement(envelope, predicate_type=TEST_RESULT_TYPE)
    for bad in ({}, {"_type": "other"}, {**make_statement({}, "x", {}), "predicate": None}):
        with pytest.raises(SecvecError, match="cannot be believed"):
            verify_statement(sign_statement(bad))


def test_nan_is_never_signed(key: Path) -> None:
    with pytest.raises(SecvecError, match="cannot be signed"):
        sign_statement(make_statement({}, "x", {"figure": float("nan")}))


@pytest.mark.parametrize("text", [b'{"a":NaN}', b'{"a":-Infinity}', b'{"a":1,"a":2}', b'{"a":{"b":1,"b":1}}'])
def test_json_that_can_be_taken_two_ways_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"not JSON|repeated"):
        parse_strictly(text)


def test_bad_keys_are_named(key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key.chmod(0o644)
    with pytest.raises(SecvecError, match="open to other users"):
        sign_statement({})
    key.chmod(0o600)
    key.write_text("junk")
    with pytest.raises(SecvecError, match="does not hold a signing key"):
        sign_statement({})
    monkeypatch.setenv("SECVEC_TRUSTED_KEYS", str(key))
    with pytest.raises(SecvecError, match="no public key that can be read"):
        load_trusted_keys()
    monkeypatch.delenv("SECVEC_TRUSTED_KEYS")
    monkeypatch.delenv("SECVEC_SIGNING_KEY")
    with pytest.raises(SecvecError, match="no trusted key"):
        load_trusted_keys()
    with pytest.raises(SecvecError, match="no signing key"):
        sign_statement({})
