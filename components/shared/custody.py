"""Custody of vectors: sealed wherever they rest, opened only in memory and only after the audit log says so.

A vector is a jailbreak in a file. It is encrypted with the AWS Encryption SDK (AES-256-GCM, key commitment),
under a local key file by default and under an AWS KMS key when ``SECVEC_CUSTODY_KEY`` holds its ARN. The
encryption context binds it to the base model it was made for and to its purpose.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import logging
import os
import resource
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from secvec.components.shared import audit
from secvec.components.shared.errors import SecvecError
from secvec.components.shared.private_files import create_private, read_private

KEY_VARIABLE = "SECVEC_CUSTODY_KEY"
# No public loader of weights knows this beginning.
MAGIC = b"secvec-sealed-1\n"
_KEY_FORM = "32 bytes in base64 on one line"
_ACCEPTED_KEY = f"{KEY_VARIABLE} names a key file (mode 600, {_KEY_FORM}) or an AWS KMS key ARN"
_CONTEXT_KEYS = ("base_digest", "purpose")


def seal(files: Mapping[str, bytes], *, context: Mapping[str, str], key: str = "") -> bytes:
    """Encrypt named contents into one blob.

    Args:
        files: Contents by file name.
        context: Must hold ``base_digest`` and ``purpose``; stored readable and authenticated.
        key: Key file or ARN; the one that ``SECVEC_CUSTODY_KEY`` names by default.

    Returns:
        The sealed blob, of a format only `open_sealed` reads.

    Raises:
        SecvecError: The context is incomplete, or the key is missing, unreadable or unfit.
    """
    index = [[name, len(content)] for name, content in files.items()]
    plain = json.dumps(index).encode() + b"\n" + b"".join(files.values())
    sealed, _ = _call("encrypt", plain, _checked(context), key)
    return MAGIC + len(sealed).to_bytes(8, "big") + sealed


def open_sealed(
    blob: bytes, *, context: Mapping[str, str], opened_by: str = "", key: str = ""
) -> dict[str, bytes]:
    """Decrypt a blob in memory, after the opening has been written to the audit log.

    Args:
        blob: What `seal` returned.
        context: Must equal the context it was sealed under.
        opened_by: The step that opens it, for the log.
        key: Key file or ARN; the one that ``SECVEC_CUSTODY_KEY`` names by default.

    Returns:
        Contents by file name. The caller keeps them in memory.

    Raises:
        SecvecError: The log cannot be written; the key is missing or another one; the blob is damaged, cut,
            extended, or sealed for another base or purpose.
    """
    digest = "sha256:" + hashlib.sha256(blob).hexdigest()
    expected = _checked(context)
    audit.append("vector_opened", opened_by=opened_by, sealed_digest=digest, context=expected)
    _forbid_core_dumps()
    try:
        return _open(blob, expected, where=digest, key=key)
    except SecvecError as error:
        audit.note("vector_refused", opened_by=opened_by, sealed_digest=digest, reason=str(error))
        raise


def _open(blob: bytes, expected: dict[str, str], *, where: str, key: str) -> dict[str, bytes]:
    header = len(MAGIC) + 8
    length = int.from_bytes(blob[len(MAGIC) : header], "big")
    if not blob.startswith(MAGIC) or len(blob) != header + length:
        raise SecvecError("is not a whole sealed vector", where=where, accepted="what was sealed, unchanged")
    plain, found = _call("decrypt", blob[header:], expected, key)
    # The SDK compares only the keys it is given: a context that holds more must be refused here.
    if found != expected:
        raise SecvecError(f"was sealed for {found}", where=where, accepted=f"a vector sealed for {expected}")
    return _unpack(plain)


def ensure_custody_key(path: Path) -> Path:
    """Create a key file for its owner alone, unless there is one.

    Raises:
        SecvecError: The folder cannot be written.
    """
    create_private(path, base64.b64encode(os.urandom(32)) + b"\n")
    return path


def _checked(context: Mapping[str, str]) -> dict[str, str]:
    for key in _CONTEXT_KEYS:
        if not isinstance(context.get(key), str) or not context[key]:
            raise SecvecError(f"the encryption context lacks {key!r}", accepted=", ".join(_CONTEXT_KEYS))
    return dict(context)


def _call(operation: str, source: bytes, context: dict[str, str], key: str) -> tuple[bytes, dict[str, str]]:
    """Run one SDK call; every way it can fail becomes one line that says nothing of the content."""
    import aws_encryption_sdk
    from aws_encryption_sdk.identifiers import Algorithm, CommitmentPolicy

    logging.getLogger("aws_encryption_sdk").setLevel(logging.CRITICAL)  # it logs tracebacks of what it raises
    keyring, key_name = _make_keyring(key or os.environ.get(KEY_VARIABLE, ""))
    client = aws_encryption_sdk.EncryptionSDKClient(
        commitment_policy=CommitmentPolicy.REQUIRE_ENCRYPT_REQUIRE_DECRYPT, max_encrypted_data_keys=1
    )
    # A signing suite would prove nothing more: whoever can seal holds the key.
    suite = {"algorithm": Algorithm.AES_256_GCM_HKDF_SHA512_COMMIT_KEY} if operation == "encrypt" else {}
    try:
        result, header = getattr(client, operation)(
            source=source, keyring=keyring, encryption_context=context, **suite
        )
    except Exception as error:  # the SDK raises its own, cryptography's, botocore's and struct's
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise SecvecError(
            f"cannot {operation} a vector: {reason}",
            where=key_name,
            accepted="the key, base and purpose it was sealed with, and an unchanged file",
        ) from None
    return result, dict(header.encryption_context)


def _make_keyring(name: str) -> tuple[Any, str]:
    from aws_cryptographic_material_providers.mpl import AwsCryptographicMaterialProviders
    from aws_cryptographic_material_providers.mpl.config import MaterialProvidersConfig
    from aws_cryptographic_material_providers.mpl.models import (
        AesWrappingAlg,
        CreateAwsKmsKeyringInput,
        CreateRawAesKeyringInput,
    )

    if not name:
        raise SecvecError("no custody key is configured", where=KEY_VARIABLE, accepted=_ACCEPTED_KEY)
    providers = AwsCryptographicMaterialProviders(config=MaterialProvidersConfig())
    if name.startswith("arn:"):
        return providers.create_aws_kms_keyring(
            CreateAwsKmsKeyringInput(kms_key_id=name, kms_client=_make_kms_client(name))
        ), name
    key = _read_key(Path(name))
    return providers.create_raw_aes_keyring(
        CreateRawAesKeyringInput(
            key_namespace="secvec",
            key_name="sha256:" + hashlib.sha256(b"secvec custody key" + key).hexdigest()[:16],
            wrapping_key=key,
            wrapping_alg=AesWrappingAlg.ALG_AES256_GCM_IV12_TAG16,
        )
    ), name


def _make_kms_client(arn: str) -> Any:
    import boto3

    parts = arn.split(":")
    if len(parts) < 6 or parts[2] != "kms" or not parts[3]:
        raise SecvecError("is not the ARN of a KMS key", where=arn, accepted=_ACCEPTED_KEY)
    return boto3.client("kms", region_name=parts[3])


def _read_key(path: Path) -> bytes:
    text = read_private(path, what=_KEY_FORM)
    try:
        key = base64.b64decode(text.strip(), validate=True)
    except binascii.Error:
        key = b""
    if len(key) != 32:
        raise SecvecError("does not hold a custody key", where=str(path), accepted=_KEY_FORM)
    return key


def _forbid_core_dumps() -> None:
    """A crash must not write what is open in memory to the disk."""
    _, most = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, most))


def _unpack(plain: bytes) -> dict[str, bytes]:
    head, _, body = plain.partition(b"\n")
    files, start = {}, 0
    for name, size in json.loads(head):
        files[name] = body[start : start + size]
        start += size
    return files
