"""The shipped folder's signature in the OpenSSF Model Signing format (https://model_signing/signature/v1.0).

A Sigstore bundle over the sha256 of every file, signed with an ECDSA P-256 key, the kind that the format's
tools verify: ``model_signing verify key --signature model.sig --public_key model.pub MODEL``. That key is
derived from the gate's own (HKDF, RFC 5869), so that there is one secret to keep, and its public half is part
of the signed verdict. Nothing is hashed here: the manifest's digests, verified before, are what is signed.

The format's tools let a signature name paths to ignore, skip ``.git`` paths by themselves and follow links if
it says so; here a signature that does any of this is refused.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from secvec.components.shared.attestation import PAYLOAD_TYPE, STATEMENT_TYPE
from secvec.components.shared.errors import SecvecError
from secvec.components.shared.signing_keys import find_local_key, public_pem
from secvec.components.shared.strict_json import parse_strictly

SIGNATURE_NAME = "model.sig"
PUBLIC_KEY_NAME = "model.pub"
_PREDICATE_TYPE = "https://model_signing/signature/v1.0"
_MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_SERIALIZATION = {"method": "files", "hash_type": "sha256", "allow_symlinks": False, "ignore_paths": []}
_DERIVATION = b"secvec OpenSSF model signing, ECDSA P-256"
_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551  # of P-256's group (FIPS 186-5)


def sign_model(files: Mapping[str, str], *, name: str) -> tuple[bytes, bytes] | None:
    """Sign the files of a model folder.

    Args:
        files: ``sha256:<hex>`` by POSIX path within the folder.
        name: What the model is called.

    Returns:
        The bundle and the public key in PEM; None when the gate's key is in a KMS, where none can be derived.

    Raises:
        SecvecError: There is no signing key.
    """
    secret = find_local_key("results")
    if secret is None:
        return None
    key = _derive_key(secret)
    payload = json.dumps(_state(files, name), sort_keys=True).encode()
    public = public_pem(key)
    return _bundle(payload, _sign(key, payload), public), public


def verify_model_signature(bundle: bytes, *, public_key: str, files: Mapping[str, str]) -> None:
    """Check that a bundle signs exactly these files with exactly this key.

    Args:
        bundle: Content of ``model.sig``.
        public_key: ECDSA P-256 public key in PEM.
        files: ``sha256:<hex>`` of every file there is, by POSIX path within the folder.

    Raises:
        SecvecError: The signature does not hold, has another form, or is about other files.
    """
    try:
        payload = _open(parse_strictly(bundle), public_key.encode())
        statement = parse_strictly(payload)
        signed = _read(statement)
    except Exception as error:  # an edited bundle fails anywhere between base64 and the signature
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise SecvecError(
            f"cannot be believed: {reason}", where=SIGNATURE_NAME, accepted="the signature that the gate made"
        ) from None
    for path in sorted({*signed, *files}):
        if signed.get(path) != files.get(path):
            raise SecvecError(
                f"is not about this file {path}", where=SIGNATURE_NAME, accepted="exactly the files signed"
            )


def _state(files: Mapping[str, str], name: str) -> dict[str, Any]:
    """The in-toto statement of the format: one root digest over all digests in the order of the names."""
    resources = [
        {"name": path, "algorithm": "sha256", "digest": files[path].removeprefix("sha256:")}
        for path in sorted(files)
    ]
    return {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": name, "digest": {"sha256": _root(resources)}}],
        "predicateType": _PREDICATE_TYPE,
        "predicate": {"serialization": _SERIALIZATION, "resources": resources},
    }


def _read(statement: Mapping[str, Any]) -> dict[str, str]:
    """The files that a statement signs; what the format allows and this product does not is refused."""
    predicate = statement["predicate"]
    resources = predicate["resources"]
    found = {one["name"]: f"sha256:{one['digest']}" for one in resources}
    wanted = _state(found, statement["subject"][0]["name"])
    if statement != wanted:
        raise ValueError("it is not of the strict form: plain files, nothing ignored, no links")
    return found


def _root(resources: list[dict[str, str]]) -> str:
    return hashlib.sha256(b"".join(bytes.fromhex(one["digest"]) for one in resources)).hexdigest()


def _bundle(payload: bytes, signature: bytes, public: bytes) -> bytes:
    found = {
        "mediaType": _MEDIA_TYPE,
        "verificationMaterial": {
            "publicKey": {"hint": hashlib.sha256(public).hexdigest()},
            "tlogEntries": [],
        },
        "dsseEnvelope": {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": PAYLOAD_TYPE,
            "signatures": [{"sig": base64.b64encode(signature).decode(), "keyid": ""}],
        },
    }
    return json.dumps(found, sort_keys=True).encode()


def _open(bundle: Any, public: bytes) -> bytes:
    """The payload, after checking that the bundle is byte for byte what such a signer writes."""
    from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, SECP256R1, EllipticCurvePublicKey
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    key = load_pem_public_key(public)
    if not isinstance(key, EllipticCurvePublicKey) or not isinstance(key.curve, SECP256R1):
        raise ValueError("its key is no P-256 key")
    envelope = bundle["dsseEnvelope"]
    payload = base64.b64decode(envelope["payload"], validate=True)
    signature = base64.b64decode(envelope["signatures"][0]["sig"], validate=True)
    if bundle != json.loads(_bundle(payload, signature, public)):
        raise ValueError("it is not of the strict form: one signature by the key of the verdict")
    key.verify(signature, _encode(payload), ECDSA(SHA256()))
    return payload


def _sign(key: Any, payload: bytes) -> bytes:
    from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
    from cryptography.hazmat.primitives.hashes import SHA256

    return bytes(key.sign(_encode(payload), ECDSA(SHA256(), deterministic_signing=True)))


def _encode(payload: bytes) -> bytes:
    """Pre-authentication encoding (DSSE v1)."""
    kind = PAYLOAD_TYPE.encode()
    return b" ".join([b"DSSEv1", str(len(kind)).encode(), kind, str(len(payload)).encode(), payload])


def _derive_key(secret: Any) -> Any:
    """The P-256 key that goes with an Ed25519 key."""
    from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, derive_private_key
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    # 16 bytes more than the group's order keep the remainder from favouring any scalar (FIPS 186-5, A.2.1).
    stream = HKDF(SHA256(), length=48, salt=None, info=_DERIVATION).derive(secret.private_bytes_raw())
    return derive_private_key(int.from_bytes(stream, "big") % (_ORDER - 1) + 1, SECP256R1())
