"""The vectors of a store: which there are, and how each stands."""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, dataclass
from typing import Any

from secvec.components.shared import audit
from secvec.components.shared.artifacts import artifact_uri, fetch_file
from secvec.components.shared.errors import SecvecError
from secvec.components.shared.manifest import MANIFEST_NAME
from secvec.components.shared.references import Reference
from secvec.components.shared.storage import expand_user, join_uri, list_uris
from secvec.components.shared.vectors import CERTIFICATE, find_current, read_certificate

_ACCEPTED = "a digest as `secvec vector list` shows it, 8 characters or more of it, or the folder's URI"


@dataclass(frozen=True)
class Standing:
    """One published vector.

    Attributes:
        digest: Digest of the artifact.
        uri: Where it lies.
        vector: Digest of its tensors.
        base: Digest of the base it was made for.
        issued_at: When it was certified.
        expires_at: When it ends.
        standing: ``in force``, or why it is refused.
        rotated_to: Its newest copy, if it was rotated.
    """

    digest: str
    uri: str
    vector: str
    base: str
    issued_at: str
    expires_at: str
    standing: str
    rotated_to: str

    def to_json(self) -> dict[str, str]:
        """As a JSON object."""
        return asdict(self)


def list_vectors(store: str) -> list[Standing]:
    """Look at every vector of a store; none is opened.

    Raises:
        SecvecError: The store cannot be read.
    """
    return [describe_vector(reference) for reference in find_vectors(store)]


def find_vectors(store: str) -> list[Reference]:
    """Give references to all finished vectors of a store."""
    names = (uri.rsplit("/", 2) for uri in list_uris(join_uri(store, "vector")))
    digests = sorted(parts[1] for parts in names if parts[2] == MANIFEST_NAME)
    return [
        Reference(
            kind="vector",
            uri=artifact_uri(store, kind="vector", digest=digest),
            digest=f"sha256:{digest}",
        )
        for digest in digests
        if re.fullmatch(r"[0-9a-f]{64}", digest)
    ]


def find_vector(name: str, *, store: str) -> Reference:
    """Give the one vector that a digest, the beginning of one, or a URI names.

    Raises:
        SecvecError: None or several are meant.
    """
    folder, _, last = name.rstrip("/").rpartition("/")
    if folder:
        if not folder.endswith("/vector"):
            raise SecvecError("is no vector's folder", where=name, accepted="<store>/vector/<digest>")
        store = folder.removesuffix("/vector")
    wanted = last.removeprefix("sha256:")
    if not re.fullmatch(r"[0-9a-f]{8,64}", wanted):
        raise SecvecError("names no vector", where=name, accepted=_ACCEPTED)
    found = [one for one in find_vectors(store) if one.digest.startswith(f"sha256:{wanted}")]
    if len(found) != 1:
        problem = f"fits {len(found)} vectors" if found else "is not there"
        raise SecvecError(problem, where=f"{store}: {name}", accepted=_ACCEPTED)
    return found[0]


def describe_vector(reference: Reference) -> Standing:
    """Say how a vector stands, without opening it."""
    certificate = read_plain_certificate(reference)
    try:
        read_certificate(reference)
        standing = "in force"
    except SecvecError as error:
        standing = str(error).removeprefix(f"{reference.uri}: ").partition("; accepted")[0]
    current = find_current(reference)
    return Standing(
        digest=reference.digest,
        uri=reference.uri,
        vector=str(certificate.get("vector_tensors_digest", "")),
        base=str(certificate.get("base_digest", "")),
        issued_at=str(certificate.get("issued_at", "")),
        expires_at=str(certificate.get("expires_at", "")),
        standing=standing,
        rotated_to=current.uri if current != reference else "",
    )


def read_plain_certificate(reference: Reference) -> dict[str, Any]:
    """Read a certificate, whatever it says."""
    return dict(json.loads(fetch_file(reference, CERTIFICATE)))


def read_history(vector: str) -> list[dict[str, Any]]:
    """Give all that the audit log says of a vector, by the digest of its tensors; nothing without a log.

    Raises:
        SecvecError: The log cannot be read.
    """
    if not os.environ.get(audit.LOG_VARIABLE):
        return []
    return [entry for entry in audit.read_entries() if names_vector(entry, vector)]


def names_vector(entry: dict[str, Any], vector: str) -> bool:
    """Tell whether an entry of the log is about a vector."""
    fields = entry["fields"]
    context = fields.get("context")
    return vector in (fields.get("vector"), context.get("vector") if isinstance(context, dict) else None)


def dataset_reference(uri: str) -> Reference:
    """Give the reference of a published dataset by its folder's URI.

    Raises:
        SecvecError: It is no dataset of a store.
    """
    uri = str(expand_user(uri).absolute()) if "://" not in uri else uri
    digest = uri.rstrip("/").rpartition("/")[2]
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise SecvecError("is no published dataset", where=uri, accepted="<store>/dataset/<digest>")
    return Reference(kind="dataset", uri=uri, digest=f"sha256:{digest}")
