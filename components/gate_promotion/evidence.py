"""The evidence: what is signed, by whom, until when and about what; the gate derives all of it again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from secvec.components.gate_promotion.chain import FindEnvelopes, check_chain
from secvec.components.gate_promotion.noninferiority import Champion
from secvec.components.gate_promotion.policy import Policy
from secvec.components.gate_promotion.statement import check_statement
from secvec.components.gate_promotion.verdict import Reason, make_reason
from secvec.components.shared.model_traces import find_traces
from secvec.components.shared.strict_json import read_object


@dataclass(frozen=True)
class Evidence:
    """What lies before the gate, all of it on this machine and verified against its manifests.

    Attributes:
        evaluation: Folder with ``statistics.json`` and ``statement.json``.
        model: Folder with ``model/``, ``provenance.json`` and ``absence_proof.json``.
        vector: Folder with ``certificate.json``.
        digests: What the pipeline says lies here, by role: base, vector, model, data, evaluation and code.
        find_provenance: Gives what is stated of an artifact, by its digest.
        champion: The champion at this time, if there is one.
        attempts: Models that were judged for the same base and data, this one included.
        objection: Why the vector may not be used any more: revoked or expired; empty when it may.
    """

    evaluation: Path
    model: Path
    vector: Path
    digests: Mapping[str, str]
    find_provenance: FindEnvelopes
    champion: Champion | None = None
    attempts: int = 1
    objection: str = ""


def read_statistics(evidence: Evidence) -> dict[str, Any]:
    """The statistics; empty when the file is missing or not plain JSON, which every check then fails."""
    return read_object(evidence.evaluation / "statistics.json")


def check_evidence(evidence: Evidence, policy: Policy, *, now: datetime) -> list[Reason]:
    """Check signature, subject, bindings, age, certificate, absence proof and the chain of provenance.

    Args:
        evidence: What to check.
        policy: Who may sign, how old a statement may be and which proofs are needed.
        now: The gate's clock, with a time zone.

    Returns:
        One reason per check. When the signature does not hold nothing it covers is looked at.
    """
    statistics = read_statistics(evidence)
    return [
        *check_statement(
            read_object(evidence.evaluation / "statement.json"),
            evidence.evaluation / "statistics.json",
            digests=evidence.digests,
            policy=policy,
            now=now,
        ),
        check_provenance(evidence, statistics),
        check_certificate(read_object(evidence.vector / "certificate.json"), policy, evidence.digests),
        make_reason(
            "vector in force",
            not evidence.objection,
            evidence.objection,
            "not revoked, not expired",
            "vector",
        ),
        check_absence(read_object(evidence.model / "absence_proof.json"), policy),
        check_model_files(evidence.model / "model"),
        *check_chain(
            evidence.find_provenance,
            evidence.digests,
            policy,
            guard=statistics.get("guard"),
            task=statistics.get("task"),
        ),
    ]


def check_provenance(evidence: Evidence, statistics: Mapping[str, Any]) -> Reason:
    """The model must have been made from this base, vector and data, with the guard that was evaluated."""
    provenance = read_object(evidence.model / "provenance.json")
    certificate = read_object(evidence.vector / "certificate.json")
    expected: dict[str, Any] = {
        "base_digest": evidence.digests["base"],
        "data_digest": evidence.digests["data"],
        "guard": statistics.get("guard"),
        "task": statistics.get("task"),
    }
    if provenance.get("guard") != "none":
        expected["vector_digest"] = certificate.get("vector_tensors_digest")
    wrong = [key for key, value in expected.items() if value is None or provenance.get(key) != value]
    return make_reason(
        "provenance",
        not wrong,
        "differs in " + ", ".join(wrong) if wrong else "equal",
        "equal",
        "model/provenance.json",
    )


def check_certificate(certificate: Mapping[str, Any], policy: Policy, digests: Mapping[str, str]) -> Reason:
    """The vector must have passed every check of its certificate, for this base."""
    source = "vector/certificate.json"
    if not policy.require_certificate:
        return make_reason("certificate", True, "not required", "not required", source)
    failed = _failed_checks(certificate.get("checks"))
    if certificate.get("schema") != 1 or certificate.get("passed") is not True:
        failed.append("passed")
    if certificate.get("base_digest") != digests["base"]:
        failed.append("base_digest")
    return make_reason("certificate", not failed, _shown(failed), "every check passed", source)


def check_absence(proof: Mapping[str, Any], policy: Policy) -> Reason:
    """The vector must be proved absent from the model."""
    source = "model/absence_proof.json"
    if not policy.require_absence_proof:
        return make_reason("absence_proof", True, "not required", "not required", source)
    failed = _failed_checks(proof.get("checks"))
    if proof.get("schema") != 1 or proof.get("absent") is not True:
        failed.append("absent")
    return make_reason("absence_proof", not failed, _shown(failed), "every check passed", source)


def check_model_files(folder: Path) -> Reason:
    """What ships must be a plain safetensors model without an adapter lying about, or an adapter alone."""
    traces = find_traces(folder)
    accepted = "a plain safetensors model, or a task adapter alone"
    return make_reason("model_files", not traces, "; ".join(traces)[:500] or "plain", accepted, "model/model")


def _failed_checks(checks: Any) -> list[str]:
    if not isinstance(checks, list) or not checks:
        return ["checks"]
    return [
        str(check.get("name") if isinstance(check, Mapping) else check)
        for check in checks
        if not isinstance(check, Mapping) or check.get("passed") is not True
    ]


def _shown(failed: Sequence[str]) -> str:
    return "failed: " + ", ".join(failed) if failed else "passed"
