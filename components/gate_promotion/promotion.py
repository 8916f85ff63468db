"""Promotion in the MLflow model registry: versions found by digest, registered by URI, aliases set last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from secvec.components.gate_promotion.verdict import Outcome
from secvec.components.shared.references import Reference
from secvec.components.shared.storage import join_uri
from secvec.components.shared.tracking import connect, hide_password, mlflow_errors

CANDIDATE = "candidate"
CHAMPION = "champion"
MODEL_DIGEST_TAG = "secvec.model_digest"
_ACCEPTED_SOURCE = (
    "a store on s3:// (an MLflow server takes no local folder as a model's source), "
    "or MLFLOW_TRACKING_URI=sqlite:///FILE"
)


@dataclass(frozen=True)
class Registration:
    """A model version in the registry.

    Attributes:
        name: Registered model.
        version: Version number, as MLflow writes it.
        source: URI of the model folder; nothing was copied.
        tracking_uri: The registry.
        run_id: The run the version belongs to, or nothing.
    """

    name: str
    version: str
    source: str
    tracking_uri: str
    run_id: str


def grant_aliases(outcome: Outcome) -> tuple[str, ...]:
    """Aliases that a verdict gives.

    A model that failed is registered, for the record, but is no candidate for anything. One that could not
    be judged is what people look at next.
    """
    return {"PASS": (CANDIDATE, CHAMPION), "INDETERMINATE": (CANDIDATE,), "FAIL": ()}[outcome]


def ensure_registered(name: str) -> int:
    """Create a registered model unless it is there; give when the registry says that it was created.

    Raises:
        SecvecError: MLflow does not answer, or refuses the name.
    """
    from mlflow.exceptions import MlflowException

    if (found := find_registered(name)) is not None:
        return found
    client = connect()
    with mlflow_errors(name, accepted="a model name without '/', ':' or other signs that MLflow refuses"):
        try:
            return int(client.create_registered_model(name).creation_timestamp)
        except MlflowException as late:
            if late.error_code != "RESOURCE_ALREADY_EXISTS":  # another gate was quicker
                raise
        return int(client.get_registered_model(name).creation_timestamp)


def find_registered(name: str) -> int | None:
    """When the registry says that a registered model was created; None if it knows none of this name.

    Raises:
        SecvecError: MLflow does not answer.
    """
    from mlflow.exceptions import MlflowException

    client = connect()
    with mlflow_errors(name):
        try:
            return int(client.get_registered_model(name).creation_timestamp)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
    return None


def register_version(model: Reference, *, name: str, run_id: str = "") -> Registration:
    """Find the model's version by its digest, or create it; no alias is touched.

    Args:
        model: The model artifact.
        name: Registered model, which must be there.
        run_id: MLflow run that a new version belongs to, or nothing.

    Raises:
        SecvecError: MLflow does not answer, or refuses the name or the source.
    """
    client = connect()
    source = join_uri(model.uri, "model")
    with mlflow_errors(source, accepted=_ACCEPTED_SOURCE):
        version = _find_version(client, name, model.digest)
        if version is None:
            created = client.create_model_version(
                name, source=source, run_id=run_id or None, tags={MODEL_DIGEST_TAG: model.digest}
            ).version
            version = _find_version(client, name, model.digest) or str(created)
            if version != str(created):  # somebody who had lost their turn came first after all
                client.delete_model_version(name, str(created))
    return Registration(
        name=name,
        version=str(version),
        source=source,
        tracking_uri=hide_password(client.tracking_uri),
        run_id=run_id,
    )


def tag_version(registration: Registration, tags: Mapping[str, str]) -> None:
    """Write tags on the version.

    Raises:
        SecvecError: MLflow does not answer.
    """
    client = connect()
    with mlflow_errors(registration.name):
        for key, value in tags.items():
            client.set_model_version_tag(registration.name, registration.version, key, value)


def read_aliases(name: str) -> dict[str, str]:
    """Versions by alias, of the aliases that the gate grants.

    Raises:
        SecvecError: MLflow does not answer.
    """
    client = connect()
    with mlflow_errors(name):
        found = client.get_registered_model(name).aliases
    return {alias: str(found[alias]) for alias in (CANDIDATE, CHAMPION) if alias in found}


def set_aliases(name: str, version: str, aliases: Sequence[str]) -> None:
    """Point aliases to a version, the most important one last.

    Raises:
        SecvecError: MLflow does not answer.
    """
    client = connect()
    with mlflow_errors(name):
        for alias in aliases:
            client.set_registered_model_alias(name, alias, version)


def _find_version(client: Any, name: str, digest: str) -> str | None:
    """The eldest version of these bytes; a tag can be edited, so the source must carry the digest too."""
    found = client.search_model_versions(f"name = '{name}' and tags.`{MODEL_DIGEST_TAG}` = '{digest}'")
    hexadecimal = digest.removeprefix("sha256:")
    versions = [int(version.version) for version in found if hexadecimal in (version.source or "")]
    return str(min(versions)) if versions else None
