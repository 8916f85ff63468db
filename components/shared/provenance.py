"""Provenance: which step made an artifact, from what, with which parameters, by which code and image.

Signed in-toto statements (SLSA provenance v1, https://slsa.dev/spec/v1.0/provenance) beside the artifacts, as
``<store>/provenance/<artifact digest>/<statement digest>.json``: an artifact's own digest does not depend on
when it was made or who signed for it. The gate refuses what has none.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from secvec.components.shared.attestation import make_statement, sign_statement, verify_statement
from secvec.components.shared.code_digest import code_digest
from secvec.components.shared.errors import SecvecError
from secvec.components.shared.manifest import digest_bytes
from secvec.components.shared.references import Reference
from secvec.components.shared.signing_keys import can_sign
from secvec.components.shared.storage import join_uri, list_uris, read_bytes, write_bytes
from secvec.components.shared.strict_json import parse_strictly

PROVENANCE_TYPE = "https://slsa.dev/provenance/v1"
IMAGE_VARIABLE = "SECVEC_IMAGE"
_BUILDER = "urn:secvec:step:"
_RUN_VARIABLES = ("KFP_RUN_ID", "MLFLOW_RUN_ID")


def attest(
    reference: Reference,
    *,
    step: str,
    inputs: Mapping[str, str],
    parameters: Mapping[str, Any],
    started: datetime | None = None,
) -> None:
    """Sign what an artifact was made from and keep the statement beside it; once for equal inputs.

    Without a signing key nothing is written, and the gate will not take the artifact.

    Args:
        reference: What was published.
        step: The step that made it.
        inputs: ``sha256:<hex>`` digests by role: base, data, vector, task_result, model ...
        parameters: Everything else that decided the result, JSON values.
        started: When the work began; now by default.

    Raises:
        SecvecError: The key is unfit, or the store cannot be written.
    """
    if not can_sign("provenance") or find_provenance(reference, step=step, inputs=inputs):
        return
    statement = make_statement(
        {reference.kind: reference.digest},
        PROVENANCE_TYPE,
        _predicate(step, inputs, parameters, started or datetime.now(UTC)),
    )
    content = json.dumps(sign_statement(statement, purpose="provenance"), sort_keys=True).encode()
    name = f"{digest_bytes(content).removeprefix('sha256:')}.json"
    folder = _folder(_store_of(reference), reference.digest)
    write_bytes(join_uri(folder, name), content, create_only=True)


def find_provenance(
    reference: Reference, *, step: str, inputs: Mapping[str, str] | None = None
) -> dict[str, Any] | None:
    """Give the predicate of a trusted statement that a step made this artifact, or None.

    Args:
        reference: The artifact.
        step: The step that must have made it.
        inputs: What it must have been made from, if given: these digests and no others.

    Raises:
        SecvecError: The store cannot be read, or no trusted key is configured.
    """
    for envelope in read_envelopes(_store_of(reference), reference.digest):
        try:
            predicate = verify_provenance(envelope, artifact=reference.digest, step=step)
        except SecvecError:
            continue
        known = read_inputs(predicate)
        if inputs is None or {k: v for k, v in known.items() if k != "code"} == dict(inputs):
            return predicate
    return None


def read_envelopes(store: str, artifact: str) -> Iterator[dict[str, Any]]:
    """Everything that a store holds as an artifact's provenance and is JSON; nothing of it verified.

    Args:
        store: URI of the store.
        artifact: The artifact's digest.

    Raises:
        SecvecError: The store cannot be read.
    """
    for uri in list_uris(_folder(store, artifact)):
        try:
            found = parse_strictly(read_bytes(uri))
        except (ValueError, RecursionError):
            continue
        if isinstance(found, dict):
            yield found


def verify_provenance(
    envelope: Mapping[str, Any], *, artifact: str, step: str, allowed_signers: Collection[str] = ()
) -> dict[str, Any]:
    """Check one statement's signature, subject and maker.

    Args:
        envelope: The DSSE envelope.
        artifact: Digest that its one subject must have.
        step: The step it must name.
        allowed_signers: Key ids; when not empty, only these trusted keys count.

    Returns:
        The predicate.

    Raises:
        SecvecError: It cannot be believed or speaks of something else.
    """
    statement = verify_statement(
        envelope,
        predicate_type=PROVENANCE_TYPE,
        allowed_signers=allowed_signers,
        purpose="provenance",
        where=f"provenance of {artifact}",
    )
    predicate: dict[str, Any] = statement["predicate"]
    try:
        subjects = ["sha256:" + one["digest"]["sha256"] for one in statement["subject"]]
        maker = predicate["runDetails"]["builder"]["id"]
        read_inputs(predicate)
    except (KeyError, TypeError) as error:
        raise SecvecError("is malformed", where=f"provenance of {artifact}") from error
    if subjects != [artifact] or maker != _BUILDER + step:
        raise SecvecError(
            f"speaks of {', '.join(subjects)} made by {maker}",
            where=f"provenance of {artifact}",
            accepted=f"a statement that {step} made it",
        )
    return predicate


def read_inputs(predicate: Mapping[str, Any]) -> dict[str, str]:
    """Digests of what an artifact was made from, by role, the code among them.

    Raises:
        KeyError: An entry has no name or digest.
        TypeError: An entry is something else.
    """
    entries = [one for one in predicate["buildDefinition"]["resolvedDependencies"] if one["name"] != "image"]
    found = {one["name"]: "sha256:" + one["digest"]["sha256"] for one in entries}
    if len(found) != len(entries):
        raise TypeError("an input is named twice")
    return found


def read_parameters(predicate: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters that decided the result."""
    found = predicate["buildDefinition"].get("externalParameters")
    return dict(found) if isinstance(found, Mapping) else {}


def _predicate(
    step: str, inputs: Mapping[str, str], parameters: Mapping[str, Any], started: datetime
) -> dict[str, Any]:
    digests = {**inputs, "code": code_digest()}
    dependencies: list[dict[str, Any]] = [
        {"name": role, "digest": {"sha256": digest.removeprefix("sha256:")}}
        for role, digest in sorted(digests.items())
    ]
    if image := os.environ.get(IMAGE_VARIABLE):
        dependencies.append({"name": "image", **_describe_image(image)})
    runs = [os.environ[name] for name in _RUN_VARIABLES if os.environ.get(name)]
    return {
        "buildDefinition": {
            "buildType": f"{_BUILDER}{step}:v1",
            "externalParameters": dict(parameters),
            "resolvedDependencies": dependencies,
        },
        "runDetails": {
            "builder": {"id": _BUILDER + step},
            "metadata": {
                "invocationId": "/".join(runs),
                "startedOn": started.isoformat(timespec="seconds"),
                "finishedOn": datetime.now(UTC).isoformat(timespec="seconds"),
            },
        },
    }


def _describe_image(image: str) -> dict[str, Any]:
    """An image by its name, and by its digest where the name carries one."""
    name, _, digest = image.rpartition("@sha256:")
    return {"uri": image, "digest": {"sha256": digest}} if name else {"uri": image}


def _store_of(reference: Reference) -> str:
    return reference.uri.rstrip("/").rsplit("/", 2)[0]


def _folder(store: str, artifact: str) -> str:
    return join_uri(store, "provenance", artifact.removeprefix("sha256:"))
