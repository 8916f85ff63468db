"""Finished work: lets a step that already ran with the same inputs return the result it published."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

import rfc8785
from pydantic import BaseModel, ValidationError

from secvec.components.shared.artifacts import artifact_uri
from secvec.components.shared.manifest import MANIFEST_NAME, digest_bytes
from secvec.components.shared.provenance import find_provenance
from secvec.components.shared.references import Reference
from secvec.components.shared.signing_keys import can_sign
from secvec.components.shared.storage import exists, join_uri, read_bytes, write_bytes


def input_key(**parts: Any) -> str:
    """Give the sha256 (hex) of everything that a step's result depends on.

    Args:
        parts: JSON values, settings or references by name. Whole floats equal integers, as after KFP.

    Raises:
        ValueError: A part is no JSON value, for example a path or NaN.
    """
    return hashlib.sha256(rfc8785.dumps(_to_json(parts))).hexdigest()


def recall(store: str, step: str, key: str, *, inputs: Mapping[str, str] | None = None) -> Reference | None:
    """Give the result that a step published for these inputs, or None if there is none to rely on.

    A record is only a hint: it counts if this store holds a manifest with the digest that it names; the files
    are verified when the result is fetched. Where provenance is signed, only a result that has it counts: one
    without would be refused by the gate in the end.

    Args:
        store: Where results are published.
        step: The step's name.
        key: What `input_key` gave.
        inputs: What its provenance must say that it was made from.

    Raises:
        SecvecError: The store cannot be read.
    """
    record_uri = _record_uri(store, step, key)
    if not exists(record_uri):
        return None
    try:
        record = Reference.model_validate_json(read_bytes(record_uri))
    except ValidationError:
        return None
    # The URI is made anew: a store may have been moved since, and a record may not point out of it.
    uri = artifact_uri(store, kind=record.kind, digest=record.digest)
    manifest = join_uri(uri, MANIFEST_NAME)
    if not exists(manifest) or digest_bytes(read_bytes(manifest)) != record.digest:
        return None
    found = record.model_copy(update={"uri": uri})
    if inputs is not None and can_sign("provenance") and not find_provenance(found, step=step, inputs=inputs):
        return None
    return found


def remember(
    store: str, step: str, key: str, reference: Reference, *, inputs: Mapping[str, str] | None = None
) -> None:
    """Record a step's published result under its inputs, after its provenance was signed.

    The first result stays, so that all re-runs agree; only a record that `recall` cannot use is replaced.

    Raises:
        SecvecError: The store cannot be written.
    """
    uri = _record_uri(store, step, key)
    if recall(store, step, key, inputs=inputs) is None:
        write_bytes(uri, reference.model_dump_json().encode(), create_only=not exists(uri))


def _record_uri(store: str, step: str, key: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{64}", key):
        raise ValueError(f"not an input key: {key!r}")
    return join_uri(store, "finished", step, f"{key}.json")


def _to_json(part: Any) -> Any:
    if isinstance(part, BaseModel):
        return part.model_dump(mode="json")
    if isinstance(part, Mapping):
        return {name: _to_json(one) for name, one in part.items()}
    return [_to_json(one) for one in part] if isinstance(part, list | tuple) else part
