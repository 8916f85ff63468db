"""The step: signed evaluation and policy in, verdict out; promotion happens here or nowhere."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from secvec.components.gate_promotion.evidence import Evidence, check_evidence, read_statistics
from secvec.components.gate_promotion.figures import judge_figures
from secvec.components.gate_promotion.policy import Policy
from secvec.components.gate_promotion.promotion import (
    Registration,
    grant_aliases,
    register_version,
    set_aliases,
    tag_version,
)
from secvec.components.gate_promotion.verdict import Outcome, Reason, Verdict, decide
from secvec.components.gate_promotion.verification_summary import summarise_verdict
from secvec.components.shared import audit
from secvec.components.shared.artifacts import building, fetch, publish
from secvec.components.shared.attestation import sign_statement
from secvec.components.shared.audit_checkpoints import write_checkpoint
from secvec.components.shared.code_digest import code_digest
from secvec.components.shared.manifest import digest_bytes, read_manifest
from secvec.components.shared.models import resolve_base
from secvec.components.shared.progress import report
from secvec.components.shared.references import Reference
from secvec.components.shared.vectors import find_objection


@dataclass(frozen=True)
class Judgement:
    """What the gate found.

    Attributes:
        outcome: PASS, FAIL or INDETERMINATE.
        reasons: One for each check.
        believed: Whether the evidence holds, whatever the figures say; without it nothing is registered.
    """

    outcome: Outcome
    reasons: tuple[Reason, ...]
    believed: bool

    @property
    def aliases(self) -> tuple[str, ...]:
        """Aliases that it gives."""
        return grant_aliases(self.outcome) if self.believed else ()


def gate_promotion(
    *,
    base_model: str,
    dataset: Reference,
    vector: Reference,
    model: Reference,
    evaluation: Reference,
    policy: Policy,
    model_name: str,
    store: str,
    choices: str = "",
) -> Reference:
    """Judge a model by its signed evaluation and promote it, or refuse.

    Order: evidence, judgement, audit log, model version, verdict, aliases. What fails leaves no alias moved.

    Args:
        base_model: URI of the base model.
        dataset: The dataset it was trained and evaluated with.
        vector: The security vector.
        model: The model under judgement.
        evaluation: Its signed evaluation.
        policy: Bounds.
        model_name: Registered model in MLflow.
        store: URI of the store the verdict is published in.
        choices: Digest of the run's other settings, by which a later run on the same inputs knows this one.

    Returns:
        The verdict artifact, whatever the verdict; ``FAIL`` and ``INDETERMINATE`` promote nothing.

    Raises:
        SecvecError: An artifact is damaged, the audit log cannot be written, or MLflow does not answer.
    """
    digests = {
        "base": resolve_base(base_model).digest,
        "vector": vector.digest,
        "model": model.digest,
        "data": dataset.digest,
        "code": code_digest(),
    }
    evidence = Evidence(
        evaluation=fetch(evaluation),
        model=fetch(model),
        vector=fetch(vector),
        digests=digests,
        objection=find_objection(vector),
    )
    judgement = judge(evidence, policy, now=datetime.now(UTC))
    digests["evaluation"] = evaluation.digest
    if choices:
        digests["config"] = choices
    _log_judgement(judgement, digests, policy=policy, model_name=model_name)
    registration = register_version(model, name=model_name) if judgement.believed else None
    verdict = _make_verdict(judgement, digests, policy=policy, name=model_name, found=registration)
    reference = _publish(verdict, policy=policy, model=model, folder=evidence.model, store=store)
    if registration:
        tag_version(registration, _tags(verdict, reference))
        set_aliases(registration, verdict.aliases)
        _log_receipt(registration, verdict, reference)
    return reference


def judge(evidence: Evidence, policy: Policy, *, now: datetime) -> Judgement:
    """Hold evidence and figures against the policy; touches nothing but the files given.

    Args:
        evidence: What lies before the gate.
        policy: Bounds.
        now: The gate's clock, with a time zone.
    """
    believed = check_evidence(evidence, policy, now=now)
    reasons = (*believed, *judge_figures(read_statistics(evidence), policy))
    return Judgement(outcome=decide(reasons), reasons=reasons, believed=decide(believed) == "PASS")


def _log_judgement(judgement: Judgement, digests: dict[str, str], *, policy: Policy, model_name: str) -> None:
    """Write ahead: when this raises, nothing is registered and no alias moves."""
    against = [reason.check for reason in judgement.reasons if reason.outcome != "PASS"]
    audit.append(
        "gate_judged",
        outcome=judgement.outcome,
        against=against,
        digests=digests,
        policy_digest=policy.digest(),
        policy=policy.model_dump(mode="json"),
        model_name=model_name,
        aliases=list(judgement.aliases),
    )
    write_checkpoint()
    report("gate_judged", outcome=judgement.outcome, against=against)


def _log_receipt(registration: Registration, verdict: Verdict, reference: Reference) -> None:
    audit.note(
        "aliases_set",
        model_name=registration.name,
        model_version=registration.version,
        aliases=list(verdict.aliases),
        verdict_digest=reference.digest,
    )
    write_checkpoint()


def _make_verdict(
    judgement: Judgement,
    digests: dict[str, str],
    *,
    policy: Policy,
    name: str,
    found: Registration | None,
) -> Verdict:
    facts: dict[str, str] = {}
    if found:
        facts = {"tracking_uri": found.tracking_uri, "run_id": found.run_id, "source": found.source}
    return Verdict(
        outcome=judgement.outcome,
        reasons=judgement.reasons,
        digests=digests,
        policy_digest=policy.digest(),
        model_name=name,
        model_version=found.version if found else "",
        aliases=judgement.aliases,
        mlflow=facts,
    )


def _publish(verdict: Verdict, *, policy: Policy, model: Reference, folder: Path, store: str) -> Reference:
    text = (verdict.model_dump_json(by_alias=True, indent=2) + "\n").encode()
    statement = summarise_verdict(
        verdict,
        verdict_file=digest_bytes(text),
        policy=policy,
        model=model,
        shipped=read_manifest(folder, digest=model.digest),
    )
    with building("verdict", store) as scratch:
        (scratch / "verdict.json").write_bytes(text)
        envelope = json.dumps(sign_statement(statement), indent=2, sort_keys=True)
        (scratch / "statement.json").write_text(envelope + "\n", encoding="utf-8")
        return publish(scratch, kind="verdict", store=store)


def _tags(verdict: Verdict, reference: Reference) -> dict[str, str]:
    return {
        **{f"secvec.{role}_digest": digest for role, digest in verdict.digests.items()},
        "secvec.verdict": verdict.outcome,
        "secvec.verdict_digest": reference.digest,
        "secvec.verdict_uri": reference.uri,
        "secvec.policy_digest": verdict.policy_digest,
    }
