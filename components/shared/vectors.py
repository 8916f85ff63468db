"""Published vectors: what each proved, whether it is in force, and the one way to open it.

A vector is known by the digest of its tensors, whatever file or store it lies in. Revocations and rotations
are create-only records beside the vectors: ``<store>/revoked/<tensors digest>.json`` and
``<store>/rotated/<artifact digest>.json``; a revocation is also kept beside the audit log, so that a copy of
the vector in another store is refused too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from secvec.components.shared import audit
from secvec.components.shared.artifacts import building, fetch, fetch_file, publish
from secvec.components.shared.custody import open_sealed, seal
from secvec.components.shared.errors import SecvecError
from secvec.components.shared.references import Reference
from secvec.components.shared.storage import exists, join_uri, read_bytes, write_bytes

CERTIFICATE = "certificate.json"
SEALED = "vector.sealed"
PURPOSE = "security-vector"
# Clocks of a cluster differ by seconds; S3 itself refuses requests that are 15 minutes off.
CLOCK_TOLERANCE = timedelta(minutes=10)


class Revocation(BaseModel):
    """That a vector may not be used any more.

    Attributes:
        vector: Digest of its tensors.
        reason: Why, in a person's words.
        time: When, ISO 8601 with time zone.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    vector: str
    reason: str
    time: str


def make_validity(days: int) -> dict[str, str]:
    """Give ``issued_at`` and ``expires_at`` of a certificate that is made now."""
    now = datetime.now(UTC).replace(microsecond=0)
    return {"issued_at": now.isoformat(), "expires_at": (now + timedelta(days=days)).isoformat()}


def vector_context(certificate: Mapping[str, Any]) -> dict[str, str]:
    """What a sealed vector is bound to: its base, its purpose, its own tensors and its last day."""
    return {
        "base_digest": str(certificate["base_digest"]),
        "purpose": PURPOSE,
        "vector": str(certificate.get("vector_tensors_digest", "")),
        "expires_at": str(certificate.get("expires_at", "")),
    }


def publish_vector(
    files: Mapping[str, bytes], certificate: Mapping[str, Any], *, store: str, event: str, key: str = ""
) -> Reference:
    """Seal a vector and publish it with its certificate, after the audit log says so.

    Args:
        files: What `adapters.pack_vector` gave.
        certificate: What it proved.
        store: URI of the artifact store.
        event: What the log says: ``vector_sealed``, ``vector_imported`` or ``vector_rotated``.
        key: Custody key; the one that the environment names by default.

    Raises:
        SecvecError: The log cannot be written, the key is unfit, or the store refuses.
    """
    context = vector_context(certificate)
    sealed = seal(files, context=context, key=key)
    audit.append(event, **_about(context), data_digest=certificate.get("data_digest", ""))
    with building("vector", store) as folder:
        (folder / SEALED).write_bytes(sealed)
        (folder / CERTIFICATE).write_text(json.dumps(certificate, indent=2, sort_keys=True) + "\n")
        return publish(folder, kind="vector", store=store)


def read_certificate(reference: Reference, *, base_digest: str = "") -> dict[str, Any]:
    """Read what a vector proved, without opening it; one that is not in force is refused.

    Args:
        reference: The published vector.
        base_digest: Digest of the base it is to act on, if it is to act.

    Raises:
        SecvecError: It was made for another base, did not pass, has expired or was revoked.
    """
    certificate: dict[str, Any] = json.loads(fetch_file(reference, CERTIFICATE))
    if base_digest and certificate.get("base_digest") != base_digest:
        raise SecvecError(
            f"the security vector was made for the base {certificate.get('base_digest')}",
            where=reference.uri,
            accepted=f"a vector made for {base_digest}",
        )
    if certificate.get("passed") is not True:
        raise SecvecError("the security vector has no passed certificate", where=reference.uri)
    check_in_force(certificate, where=reference.uri, now=datetime.now(UTC))
    refuse_revoked(certificate, [_revoked_in(_store_of(reference))], where=reference.uri)
    return certificate


def open_vector(reference: Reference, *, base_digest: str, opened_by: str) -> dict[str, bytes]:
    """Open a sealed vector in memory, for the base it was made for.

    Custody writes the opening to the audit log first and refuses when it cannot (rule 4). A vector that was
    rotated is opened from its newest copy.

    Args:
        reference: The published vector.
        base_digest: Digest of the base it is to act on.
        opened_by: The step that opens it, for the audit log.

    Raises:
        SecvecError: Wrong base, expired or revoked, broken seal, or no right to open it.
    """
    try:
        certificate = read_certificate(reference, base_digest=base_digest)
        refuse_revoked(certificate, [audit.open_log().revocations], where=reference.uri)
    except SecvecError as error:
        audit.note("vector_refused", artifact=reference.digest, opened_by=opened_by, reason=str(error))
        raise
    sealed = (fetch(find_current(reference)) / SEALED).read_bytes()
    return open_sealed(sealed, context=vector_context(certificate), opened_by=opened_by)


def is_expired(reference: Reference) -> bool:
    """Tell whether a published vector's last day is over."""
    expires = _read_plain_certificate(reference).get("expires_at", "")
    return bool(expires) and datetime.now(UTC) >= datetime.fromisoformat(expires)


def check_in_force(certificate: Mapping[str, Any], *, where: str, now: datetime) -> None:
    """Hold a certificate's dates against a clock.

    Raises:
        SecvecError: It has expired, has no dates, or was issued in the future: one of the clocks is wrong.
    """
    try:
        issued, expires = (datetime.fromisoformat(certificate[name]) for name in ("issued_at", "expires_at"))
        early, late = now + CLOCK_TOLERANCE < issued, now >= expires
    except (KeyError, TypeError, ValueError) as error:
        raise SecvecError(
            "the security vector's certificate has no dates", where=where, accepted="issued_at and expires_at"
        ) from error
    if late:
        raise SecvecError(
            f"the security vector expired at {expires}", where=where, accepted="a vector trained since then"
        )
    if early:
        raise SecvecError(
            f"the security vector was issued at {issued}, after this machine's time {now:%Y-%m-%d %H:%M} UTC",
            where=where,
            accepted="clocks that agree",
        )


def refuse_revoked(certificate: Mapping[str, Any], places: list[str], *, where: str) -> None:
    """Refuse a vector that was revoked.

    Raises:
        SecvecError: There is a record of its revocation, or it cannot be told.
    """
    for place in places:
        if found := find_revocation(str(certificate.get("vector_tensors_digest")), place):
            raise SecvecError(
                f"the security vector was revoked at {found.time}: {found.reason}",
                where=where,
                accepted="another vector: other seeds, config or seed",
            )


def find_objection(reference: Reference) -> str:
    """Say why a published vector may not be used any more: revoked or expired; empty when it may.

    Raises:
        SecvecError: It cannot be told: the store cannot be read.
    """
    certificate = _read_plain_certificate(reference)
    try:
        check_in_force(certificate, where=reference.uri, now=datetime.now(UTC))
    except SecvecError as error:
        return str(error)
    vector = str(certificate.get("vector_tensors_digest", ""))
    places = [_revoked_in(_store_of(reference)), audit.open_log().revocations]
    found = next((one for place in places if (one := find_revocation(vector, place))), None)
    return f"revoked at {found.time}: {found.reason}" if found else ""


def find_revocation(vector: str, place: str) -> Revocation | None:
    """Give the record of a vector's revocation in one place, or None.

    Raises:
        SecvecError: The place cannot be read, or holds something else under the vector's name.
    """
    uri = _record(place, vector)
    if not exists(uri):
        return None
    try:
        return Revocation.model_validate_json(read_bytes(uri))
    except ValidationError as error:
        raise SecvecError(
            "is no revocation", where=uri, accepted="a record of `secvec vector revoke`"
        ) from error


def revoke_vector(reference: Reference, *, reason: str) -> Revocation:
    """Refuse a vector from now on, everywhere: in its store and wherever this audit log is used.

    Raises:
        SecvecError: The log or the store cannot be written; called again, it finishes what was begun.
    """
    vector = _read_plain_certificate(reference)["vector_tensors_digest"]
    audit.append("vector_revoked", vector=vector, artifact=reference.digest, reason=reason)
    places = [_revoked_in(_store_of(reference)), audit.open_log().revocations]
    known = [found for place in places if (found := find_revocation(vector, place))]
    time = datetime.now(UTC).isoformat(timespec="seconds")
    revocation = known[0] if known else Revocation(vector=vector, reason=reason, time=time)
    for place in places:
        if not find_revocation(vector, place):
            write_bytes(_record(place, vector), revocation.model_dump_json().encode(), create_only=True)
    return revocation


def rotate_vector(reference: Reference, *, new_key: str) -> Reference:
    """Seal a vector under another key; what refers to it stays valid and opens the new copy.

    Args:
        reference: The published vector, sealed under the key that the environment names.
        new_key: Key file or ARN of the new key.

    Returns:
        The new copy, with the same tensors, certificate and binding.

    Raises:
        SecvecError: It is not in force, was rotated before, or one of the keys is unfit.
    """
    certificate = read_certificate(reference)
    copy = find_current(reference)
    if copy != reference:
        raise SecvecError("was rotated before", where=reference.uri, accepted=f"its newest copy, {copy.uri}")
    base = str(certificate["base_digest"])
    files = open_vector(reference, base_digest=base, opened_by="rotate_vector")
    new = publish_vector(files, certificate, store=_store_of(reference), event="vector_rotated", key=new_key)
    # Read back before anything points there.
    context = vector_context(certificate)
    again = open_sealed(
        (fetch(new) / SEALED).read_bytes(), context=context, opened_by="rotate_vector", key=new_key
    )
    if again != files:
        raise SecvecError("does not open to what was sealed", where=new.uri, accepted="a sound store")
    write_bytes(_rotated(reference), new.model_dump_json().encode(), create_only=True)
    return new


def find_current(reference: Reference) -> Reference:
    """Give the newest copy of a vector that may have been rotated.

    Raises:
        SecvecError: A record of rotation is damaged, or leads to another vector's certificate.
    """
    current = reference
    while exists(uri := _rotated(current)):
        try:
            current = Reference.model_validate_json(read_bytes(uri))
        except ValidationError as error:
            raise SecvecError("is no reference", where=uri, accepted="a record of a rotation") from error
        if current.kind != "vector" or _certificate_bytes(current) != _certificate_bytes(reference):
            raise SecvecError("leads to another vector", where=uri, accepted="a record of a rotation")
    return current


def _certificate_bytes(reference: Reference) -> bytes:
    return fetch_file(reference, CERTIFICATE)


def _read_plain_certificate(reference: Reference) -> dict[str, Any]:
    return dict(json.loads(_certificate_bytes(reference)))


def _about(context: Mapping[str, str]) -> dict[str, str]:
    return {name: context[name] for name in ("vector", "base_digest", "expires_at")}


def _store_of(reference: Reference) -> str:
    return reference.uri.rstrip("/").rsplit("/", 2)[0]


def _revoked_in(store: str) -> str:
    return join_uri(store, "revoked")


def _rotated(reference: Reference) -> str:
    return join_uri(_store_of(reference), "rotated", f"{reference.digest.removeprefix('sha256:')}.json")


def _record(place: str, vector: str) -> str:
    return join_uri(place, f"{vector.removeprefix('sha256:')}.json")
