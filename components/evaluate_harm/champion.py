"""How the champion did when it was tested: its outcomes, from its own signed evaluation."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secvec.components.evaluate_harm.outcomes import Outcome
from secvec.components.shared import tracking
from secvec.components.shared.artifacts import artifact_uri, fetch
from secvec.components.shared.attestation import TEST_RESULT_TYPE, verify_statement
from secvec.components.shared.errors import SecvecError
from secvec.components.shared.manifest import digest_file
from secvec.components.shared.references import Reference
from secvec.components.shared.strict_json import read_object

ALIAS = "champion"
EVALUATION_TAG = "secvec.evaluation_digest"


@dataclass(frozen=True)
class Champion:
    """The champion's evaluation, or why there is none to compare with.

    Attributes:
        outcomes: Its outcomes; empty without an evaluation.
        version: Its version in the registry; empty where there is no champion to compare with.
        reason: What stands in the way of a comparison; empty where there is one, or simply no champion.
    """

    outcomes: tuple[Outcome, ...] = ()
    version: str = ""
    reason: str = ""


def recall_champion(model_name: str, *, store: str, digests: Mapping[str, str]) -> Champion:
    """Find the champion's outcomes on the very same prompts and by the very same judges.

    Nothing is decided by them, so that whatever stands in the way is a reason in the report and no error.

    Args:
        model_name: Registered model in MLflow; empty for none.
        store: Where evaluations are published.
        digests: What this evaluation is bound to, of which suite and judge must be the champion's too.
    """
    if not model_name or not os.environ.get(tracking.URI_VARIABLE):
        return Champion()
    try:
        client = tracking.connect()
        with tracking.mlflow_errors(model_name):
            version = _find_version(client, model_name)
        if version is None:
            return Champion()
        number, digest = version
        uri = artifact_uri(store, kind="evaluation", digest=digest)
        folder = fetch(Reference(kind="evaluation", uri=uri, digest=digest))
        _check(folder, digests)
        return Champion(outcomes=_read(folder), version=number)
    except SecvecError as error:
        return Champion(reason=str(error))


def _find_version(client: Any, name: str) -> tuple[str, str] | None:
    from mlflow.exceptions import MlflowException

    try:
        found = client.get_model_version_by_alias(name, ALIAS)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise
    digest = found.tags.get(EVALUATION_TAG, "")
    if not digest:
        raise SecvecError("has no evaluation", where=f"{name} {found.version}", accepted=EVALUATION_TAG)
    return str(found.version), digest


def _check(folder: Path, digests: Mapping[str, str]) -> None:
    """The evaluation must be signed, and of the same prompts and judges."""
    statement = verify_statement(
        read_object(folder / "statement.json"), predicate_type=TEST_RESULT_TYPE, where="the champion"
    )
    if statement["predicate"]["files"].get("outcomes.jsonl") != digest_file(folder / "outcomes.jsonl"):
        raise SecvecError("its outcomes are not those that were signed", where="the champion")
    own = read_object(folder / "statistics.json").get("digests", {})
    for role in ("suite", "judge"):
        if own.get(role) != digests[role]:
            raise SecvecError(
                f"it was tested with another {role}", where="the champion", accepted=digests[role]
            )


def _read(folder: Path) -> tuple[Outcome, ...]:
    lines = (folder / "outcomes.jsonl").read_text(encoding="utf-8").split("\n")
    try:
        return tuple(Outcome(**json.loads(line)) for line in lines if line)
    except (TypeError, ValueError) as error:
        raise SecvecError("its outcomes are of another form", where="the champion") from error
