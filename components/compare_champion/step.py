"""The step: a run's inputs in, whether the champion was made from exactly these out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, ConfigDict

from secvec.components.compare_champion.champion import Champion, read_champion
from secvec.components.gate_promotion.policy import Policy
from secvec.components.shared import tracking
from secvec.components.shared.artifacts import building, publish
from secvec.components.shared.code_digest import code_digest
from secvec.components.shared.errors import SecvecError
from secvec.components.shared.models import resolve_base
from secvec.components.shared.progress import report
from secvec.components.shared.references import Reference
from secvec.components.shared.run_records import record_verdict


class Comparison(BaseModel):
    """What came of it.

    Attributes:
        unchanged: Whether there is nothing to train.
        because: Why not, or which champion stays.
        verdict: The verdict UNCHANGED, where that is what it is.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    unchanged: bool
    because: str
    verdict: Reference | None = None


def compare_champion(
    *,
    skip_unchanged: bool,
    base_model: str,
    dataset: Reference,
    choices: str,
    policy: Policy,
    model_name: str,
    store: str,
    run: str,
) -> Comparison:
    """Tell whether the champion was made from these inputs by this code, and end the run's judgement if so.

    Whatever is missing, has expired or cannot be believed means: train.

    Args:
        skip_unchanged: Whether a run on unchanged inputs is to stop here; otherwise nothing is compared.
        base_model: URI of the base model.
        dataset: The dataset that was ingested: rows, seeds, anchors and prompts.
        choices: Digest of the run's other settings.
        policy: The policy that a candidate would have to pass.
        model_name: Registered model in MLflow.
        store: URI of the store the verdict is published in.
        run: Id of the run, under which the verdict is found.

    Raises:
        SecvecError: Nothing has changed, but the verdict that says so cannot be written.
    """
    if not skip_unchanged:
        return Comparison(unchanged=False, because="not asked for")
    try:
        champion = read_champion(model_name, policy=policy, now=datetime.now(UTC))
        inputs = {"data": dataset.digest, "config": choices, "code": code_digest()}
        changed = _compare(champion, inputs, policy=policy)
        # Last, because a base may have to be fetched.
        if not changed:
            inputs["base"] = resolve_base(base_model).digest
            changed = _compare(champion, inputs, policy=policy)
    except SecvecError as error:
        return _tell(Comparison(unchanged=False, because=str(error)))
    if changed:
        return _tell(Comparison(unchanged=False, because=f"changed: {', '.join(changed)}"))
    verdict = _publish(champion, inputs, model_name=model_name, store=store)
    record_verdict(verdict, store=store, run=run)
    because = f"{model_name} version {champion.version} stays champion"
    return _tell(Comparison(unchanged=True, because=because, verdict=verdict))


def _compare(champion: Champion, inputs: Mapping[str, str], *, policy: Policy) -> list[str]:
    changed = [role for role, digest in inputs.items() if champion.digests.get(role) != digest]
    return changed + ([] if champion.policy_digest == policy.digest() else ["policy"])


def _tell(comparison: Comparison) -> Comparison:
    report("champion_compared", unchanged=comparison.unchanged, because=comparison.because)
    if comparison.unchanged:
        tracking.log_tags({"secvec.verdict": "UNCHANGED"})
    return comparison


def _publish(champion: Champion, inputs: Mapping[str, str], *, model_name: str, store: str) -> Reference:
    verdict: dict[str, Any] = {
        "schema": 1,
        "outcome": "UNCHANGED",
        "reasons": [],
        "digests": dict(inputs),
        "policy_digest": champion.policy_digest,
        "model_name": model_name,
        "model_version": champion.version,
        "aliases": ["champion"],
        "champion_verdict": {"uri": champion.verdict.uri, "digest": champion.verdict.digest},
    }
    with building("verdict", store) as scratch:
        (scratch / "verdict.json").write_text(json.dumps(verdict, indent=2, sort_keys=True) + "\n")
        return publish(scratch, kind="verdict", store=store)
