"""Keys that sign statements, and the public keys whose signatures are believed.

Results (evaluations, verdicts, checkpoints of the audit log) and provenance (what each step made from what)
have keys of their own, so that a step that trains cannot sign an evaluation:

- ``SECVEC_SIGNING_KEY`` and ``SECVEC_PROVENANCE_KEY`` name a private key file, hold the key itself in PEM, or
  are the URI of a key in a KMS (``awskms:...``, ``gcpkms:...``, ``azurekms:...``, ``hv:...``). Without the
  second one the first signs both.
- ``SECVEC_TRUSTED_KEYS`` and ``SECVEC_TRUSTED_BUILDERS`` name public key files, or hold public keys in PEM,
  joined by colons; by default the public half of the signing key.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from secvec.components.shared.errors import SecvecError
from secvec.components.shared.private_files import create_private, read_private

Purpose = Literal["results", "provenance"]
SIGNING_VARIABLE = "SECVEC_SIGNING_KEY"
TRUSTED_VARIABLE = "SECVEC_TRUSTED_KEYS"
PROVENANCE_VARIABLE = "SECVEC_PROVENANCE_KEY"
BUILDERS_VARIABLE = "SECVEC_TRUSTED_BUILDERS"
_KEY_FORM = "an unencrypted Ed25519 private key in PEM (PKCS #8)"
_KMS_SCHEMES = ("awskms:", "gcpkms:", "azurekms:", "hv:")
_PEM = "-----BEGIN"


def ensure_signing_key(path: Path) -> Path:
    """Create an Ed25519 key for its owner alone and its public half ``<path>.pub``, unless they are there.

    Raises:
        SecvecError: The folder cannot be written, or the file there is no such key.
    """
    from securesystemslib.signer import CryptoSigner

    create_private(path, CryptoSigner.generate_ed25519().private_bytes)
    public = path.with_name(path.name + ".pub")
    if not public.exists():
        create_private(public, public_pem(load_private_key(str(path))))
        public.chmod(0o644)
    return path


def can_sign(purpose: Purpose) -> bool:
    """Whether a key is configured for a purpose; whether it is one shows when it signs."""
    return bool(_find_key(purpose)[1])


def load_signer(purpose: Purpose) -> Any:
    """Give the securesystemslib signer for a purpose.

    Raises:
        SecvecError: None is configured, the key is readable by others or of another kind, or the KMS does
            not answer.
    """
    from securesystemslib.signer import CryptoSigner

    key = find_local_key(purpose)
    if key is None:
        return _load_kms_signer(_find_key(purpose)[1], load_trusted_keys(purpose)[0])
    return CryptoSigner(key)


def load_file_signer(name: str, *, public_key: str) -> Any:
    """Give the signer of a person's own key.

    Args:
        name: A private key file, or the URI of a key in a KMS.
        public_key: Its public half, for a KMS.

    Raises:
        SecvecError: It is missing, open to others or of another kind, or the KMS does not answer.
    """
    from securesystemslib.signer import CryptoSigner

    if name.startswith(_KMS_SCHEMES):
        return _load_kms_signer(name, read_public_key(public_key))
    return CryptoSigner(load_private_key(name))


def find_local_key(purpose: Purpose) -> Any | None:
    """The Ed25519 private key of a purpose itself; None when it is in a KMS.

    Raises:
        SecvecError: None is configured, or it is unfit.
    """
    variable, name = _find_key(purpose)
    if name.startswith(_KMS_SCHEMES):
        return None
    if not name:
        raise SecvecError(
            "no signing key is configured", where=variable, accepted=f"{variable} names {_KEY_FORM}"
        )
    return load_private_key(name, variable=variable)


def load_private_key(name: str, *, variable: str = "") -> Any:
    """Read an Ed25519 private key from a file that nobody else may read, or from PEM.

    Raises:
        SecvecError: It is missing, open to others or of another kind.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    held = name.startswith(_PEM)
    content = name.encode() if held else read_private(Path(name), what=_KEY_FORM)
    try:
        key = load_pem_private_key(content, None)
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise SecvecError("does not hold a signing key", where=variable if held else name, accepted=_KEY_FORM)
    return key


def load_trusted_keys(purpose: Purpose = "results") -> Sequence[Any]:
    """Public keys whose signatures are believed, as securesystemslib keys.

    Raises:
        SecvecError: None is configured, or one is no public key that can be read.
    """
    variable, names = _find_trusted(purpose)
    accepted = f"{variable} names public key files (Ed25519 or P-256, PEM), or holds PEM, joined by ':'"
    keys = [read_public_key(name, accepted=accepted) for name in names]
    if not keys:
        raise SecvecError("no trusted key is configured", where=variable, accepted=accepted)
    return keys


def read_public_key(name: str, *, accepted: str = "an Ed25519 or P-256 public key in PEM") -> Any:
    """Give the securesystemslib key of a public key file, or of PEM text.

    Raises:
        SecvecError: It is no such key.
    """
    from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key
    from securesystemslib.signer import SSlibKey

    held = name.startswith(_PEM)
    try:
        key = load_pem_public_key(name.encode() if held else Path(name).read_bytes())
    except (OSError, ValueError) as error:
        raise SecvecError(
            "is no public key that can be read", where=name[:40] if held else name, accepted=accepted
        ) from error
    fitting = isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP256R1)
    if not fitting and not isinstance(key, Ed25519PublicKey):
        raise SecvecError("is no Ed25519 or P-256 key", where=name[:200], accepted=accepted)
    return SSlibKey.from_crypto(key)


def public_pem(key: Any) -> bytes:
    """The public half of a private key, in PEM."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))


def _find_key(purpose: Purpose) -> tuple[str, str]:
    """The variable that names the key, and its value."""
    if purpose == "provenance" and os.environ.get(PROVENANCE_VARIABLE):
        return PROVENANCE_VARIABLE, os.environ[PROVENANCE_VARIABLE]
    return SIGNING_VARIABLE, os.environ.get(SIGNING_VARIABLE, "")


def _find_trusted(purpose: Purpose) -> tuple[str, list[str]]:
    """The variable that names trusted keys, and each of them; by default the public half of the own key."""
    if purpose == "provenance":
        if value := os.environ.get(BUILDERS_VARIABLE):
            return BUILDERS_VARIABLE, list(filter(None, value.split(":")))
        if value := os.environ.get(PROVENANCE_VARIABLE, ""):
            return BUILDERS_VARIABLE, _public_half(value)
    if value := os.environ.get(TRUSTED_VARIABLE):
        return TRUSTED_VARIABLE, list(filter(None, value.split(":")))
    return TRUSTED_VARIABLE, _public_half(os.environ.get(SIGNING_VARIABLE, ""))


def _public_half(name: str) -> list[str]:
    if not name or name.startswith(_KMS_SCHEMES):
        return []
    return [public_pem(load_private_key(name)).decode()] if name.startswith(_PEM) else [f"{name}.pub"]


def _load_kms_signer(uri: str, public_key: Any) -> Any:
    """A key that never leaves its KMS; for the configured one the public half is the first trusted key."""
    from securesystemslib.signer import Signer

    try:
        return Signer.from_priv_key_uri(uri, public_key)
    except Exception as error:  # whatever the KMS's client raises, or that it is not installed
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise SecvecError(
            f"the KMS signer cannot be made ({reason})",
            where=uri,
            accepted="the URI of a signing key, the KMS's client library, and its public half as trusted key",
        ) from error
