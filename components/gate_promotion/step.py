"""The step: signed evaluation and policy in, verdict out; promotion happens here or nowhere."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial

from secvec.components.gate_promotion.approvals import author_of_run, require_approvals
from secvec.components.gate_promotion.attempts import check_attempts, count_attempts
from secvec.components.gate_promotion.champion import read_champion
from secvec.components.gate_promotion.evidence import Evidence, check_evidence, read_statistics
from secvec.components.gate_promotion.figures import judge_figures
from secvec.components.gate_promotion.intents import Intent, declare
from secvec.components.gate_promotion.ledger import Ledger
from secvec.components.gate_promotion.noninferiority import compare_with_base, compare_with_champion
from secvec.components.gate_promotion.policy import Policy
from secvec.components.gate_promotion.promoting import carry_out
from secvec.components.gate_promotion.promotion import ensure_registered, grant_aliases
from secvec.components.gate_promotion.suites import judge_suites
from secvec.components.gate_promotion.verdict import Outcome, Reason, decide
from secvec.components.gate_promotion.verdict_artifact import publish_verdict
from secvec.components.shared import audit
from secvec.components.shared.artifacts import fetch
from secvec.components.shared.audit_checkpoints import write_checkpoint
from secvec.components.shared.code_digest import code_digest
from secvec.components.shared.models import resolve_base
from secvec.components.shared.progress import report
from secvec.components.shared.provenance import read_envelopes
from secvec.components.shared.references import Reference
from secvec.components.shared.strict_json import read_object
from secvec.components.shared.tracking import current_run
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

    Order: evidence, judgement, audit log, intent, model version, verdict, receipt, aliases. Whatever fails,
    no alias shows a version without a receipt, and the same call comes to the same end.

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
        "evaluation": evaluation.digest,
    }
    evidence = Evidence(
        evaluation=fetch(evaluation),
        model=fetch(model),
        vector=fetch(vector),
        digests=digests,
        objection=find_objection(vector),
        find_provenance=partial(read_envelopes, store),
        attempts=count_attempts(digests),
    )
    now = datetime.now(UTC)
    judgement = judge(evidence, policy, now=now)
    ledger = None
    if judgement.believed:
        # Only what is believed gets a place in the registry, and a champion to be held against.
        ledger = Ledger(store, name=model_name, registered=ensure_registered(model_name))
        judgement = judge(replace(evidence, champion=read_champion(ledger)), policy, now=now)
    if choices:
        digests["config"] = choices
    _log_judgement(judgement, digests, policy=policy, model_name=model_name)
    intent = Intent(
        model_name=model_name,
        model=model,
        evaluation=evaluation,
        policy=policy,
        outcome=judgement.outcome,
        reasons=judgement.reasons,
        digests=digests,
        aliases=judgement.aliases,
        issued_at=now,
        run_id=current_run(),
        author=author_of_run(),
    )
    if ledger is None:
        return publish_verdict(intent, None, store=store)
    intent = declare(intent.model_copy(update={"after": ledger.latest().number}), ledger)
    reference = carry_out(intent, ledger, store=store)
    _log_receipt(intent, reference)
    return reference


def judge(evidence: Evidence, policy: Policy, *, now: datetime) -> Judgement:
    """Hold evidence and figures against the policy; touches nothing but the files given.

    Args:
        evidence: What lies before the gate.
        policy: Bounds.
        now: The gate's clock, with a time zone.
    """
    believed = check_evidence(evidence, policy, now=now)
    statistics = read_statistics(evidence)
    reasons = (
        *believed,
        *judge_figures(statistics, policy),
        *judge_suites(statistics, policy),
        *compare_with_base(statistics, policy),
        *compare_with_champion(statistics, evidence.champion, policy, model=evidence.digests["model"]),
        check_attempts(evidence.attempts, policy),
        *require_approvals(policy),
    )
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


def _log_receipt(intent: Intent, reference: Reference) -> None:
    verdict = read_object(fetch(reference) / "verdict.json")
    audit.note(
        "aliases_set",
        model_name=intent.model_name,
        model_version=verdict["model_version"],
        aliases=list(intent.aliases),
        verdict_digest=reference.digest,
    )
    write_checkpoint()
