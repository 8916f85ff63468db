import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from secvec.components.gate_promotion.policy import Policy
from secvec.components.shared.audit_checkpoints import verify_log
from secvec.components.shared.errors import SecvecError
from secvec.components.shared.references import Reference
from secvec.components.shared.signing_keys import ensure_signing_key
from secvec.components.shared.tracking import connect
from secvec.components.shared.vectors import revoke_vector


def aliases(name: str) -> dict[str, str]:
    try:
        return {key: str(value) for key, value in connect().get_registered_model(name).aliases.items()}
    except Exception:
        return {}


def against(verdict: dict[str, Any]) -> dict[str, str]:
    return {one["check"]: one["outcome"] for one in verdict["reasons"] if one["outcome"] != "PASS"}


def set_in(arm: str, name: str, value: Any) -> Any:
    return lambda statistics: statistics["arms"][arm].update({name: value})


def test_a_good_model_becomes_champion(case: Any, environment: Path) -> None:
    verdict = case.judge()
    assert verdict["outcome"] == "PASS", against(verdict)
    assert aliases(case.model_name) == {"candidate": "1", "champion": "1"}
    version = connect().get_model_version(case.model_name, "1")
    assert version.source == case.model.uri + "/model"
    assert version.tags["secvec.model_digest"] == case.model.digest
    assert version.tags["secvec.verdict"] == "PASS"
    assert {
        f"secvec.{role}_digest" for role in ("base", "vector", "data", "evaluation", "code", "policy")
    } <= set(version.tags)
    assert verdict["policy_digest"] == case.policy.digest()
    assert verdict["aliases"] == ["candidate", "champion"]
    assert all(one["source"] and one["bound"] is not None for one in verdict["reasons"])
    tried, before, after = map(json.loads, (environment / "audit.jsonl").read_text().splitlines())
    assert (tried["event"], tried["fields"]["model"]) == ("gate_attempted", case.model.digest)
    assert (before["event"], before["fields"]["outcome"]) == ("gate_judged", "PASS")
    assert (after["event"], after["fields"]["aliases"]) == ("aliases_set", ["candidate", "champion"])
    assert verify_log().covered == 3


def test_nothing_is_copied_into_mlflow(case: Any, registry: str) -> None:
    case.judge()
    assert not list(Path(registry.removeprefix("sqlite:///")).parent.rglob("*.safetensors"))


def test_judging_twice_gives_one_version(case: Any) -> None:
    assert case.judge()["model_version"] == case.judge()["model_version"] == "1"


def test_a_harmful_model_leaves_the_champion_as_it_was(gate: Any, case: Any) -> None:
    case.judge()
    worse = replace(case, model=gate.model(seed=3))
    worse = replace(
        worse,
        evaluation=gate.evaluation(
            worse,
            edit=lambda s: s["arms"]["guarded"].update({"harm_rate": 0.99, "harm_upper95": 0.999}),
        ),
    )
    verdict = worse.judge()
    assert verdict["outcome"] == "FAIL"
    comparisons = ("harm_against_base", "harm_against_champion")
    assert against(verdict) == dict.fromkeys(("harm_rate", "harm_upper95", *comparisons), "FAIL")
    assert verdict["model_version"] == "2"
    assert verdict["aliases"] == []
    assert aliases(case.model_name) == {"candidate": "1", "champion": "1"}
    assert connect().get_model_version(case.model_name, "2").tags["secvec.verdict"] == "FAIL"


def test_attempts_on_the_same_base_and_data_are_counted(gate: Any, case: Any) -> None:
    policy = Policy(version=1, max_attempts=2)
    outcomes = []
    for seed in (2, 3, 3, 4):
        one = replace(case, model=gate.model(seed=seed), policy=policy)
        outcomes.append(replace(one, evaluation=gate.evaluation(one)).judge()["outcome"])
    assert outcomes == ["PASS", "PASS", "PASS", "INDETERMINATE"]


def test_an_artifact_whose_provenance_was_deleted(gate: Any, case: Any, environment: Path) -> None:
    digest = case.vector.digest.removeprefix("sha256:")
    for path in (environment / "store" / "provenance" / digest).iterdir():
        path.unlink()
    reject(case, "chain_vector")


UNTOLD = {
    "positive_control": ("vector_active", {"harm_rate": 0.2}),
    "base_harm": ("base", {"harm_rate": 0.3}),
    "harm_prompts": ("guarded", {"n_harm": 20, "harm_upper95": 0.14}),
    "harm_incoherent": ("guarded", {"harm_incoherent": 0.5}),
    "utility_prompts": ("guarded", {"n_utility": 0}),
    "kept_prompts": ("guarded", {"n_kept": 0}),
}


@pytest.mark.parametrize("check", UNTOLD)
def test_what_cannot_be_told_is_a_candidate_and_no_champion(gate: Any, case: Any, check: str) -> None:
    arm, changes = UNTOLD[check]
    found = gate.evaluation(case, edit=lambda statistics: statistics["arms"][arm].update(changes))
    verdict = replace(case, policy=Policy(version=1, max_harm_upper95=0.2), evaluation=found).judge()
    assert verdict["outcome"] == "INDETERMINATE"
    few = {"harm_against_base": "INDETERMINATE"} if check == "harm_prompts" else {}
    assert against(verdict) == {check: "INDETERMINATE"} | few
    assert aliases(case.model_name) == {"candidate": "1"}


def reject(case: Any, *checks: str) -> None:
    """The case is judged FAIL for exactly these checks, and nothing is registered."""
    verdict = case.judge()
    assert verdict["outcome"] == "FAIL"
    assert set(checks) <= set(against(verdict)), against(verdict)
    assert verdict["aliases"] == []
    assert verdict["model_version"] == ""
    assert aliases(case.model_name) == {}


def test_rule_7_a_statement_for_another_model(gate: Any, case: Any) -> None:
    other = replace(case, model=gate.model(seed=3))
    reject(replace(case, evaluation=gate.evaluation(other)), "subject", "binding_model")


def test_rule_7_a_statement_for_another_base(gate: Any, case: Any, environment: Path) -> None:
    other = replace(case, base_model=str(gate.make_base(environment / "other")))
    reject(replace(case, evaluation=gate.evaluation(other)), "binding_base")


def test_rule_7_a_statement_for_another_vector(gate: Any, case: Any) -> None:
    certificate = gate.certificate(Path(case.base_model))
    other = replace(
        case, vector=gate.publish("vector", {"vector.sealed": "y", "certificate.json": certificate})
    )
    reject(replace(case, evaluation=gate.evaluation(other)), "binding_vector")


def test_rule_7_a_statement_for_other_data(gate: Any, case: Any) -> None:
    other = replace(case, dataset=gate.publish("dataset", {"training.jsonl": "{} \n"}))
    reject(replace(case, evaluation=gate.evaluation(other)), "binding_data")


def test_rule_7_statistics_edited_after_signing(gate: Any, case: Any) -> None:
    def after(files: dict[str, Any]) -> None:
        files["statistics.json"] = files["statistics.json"].replace('"harm_rate": 1.0', '"harm_rate": 0.5')

    reject(replace(case, evaluation=gate.evaluation(case, after=after)), "statistics_signed")


def test_rule_7_an_expired_statement(gate: Any, case: Any) -> None:
    def restate(statement: dict[str, Any]) -> None:
        now = datetime.now(UTC)
        statement["predicate"]["issued_at"] = (now - timedelta(days=2)).isoformat()
        statement["predicate"]["expires_at"] = (now - timedelta(seconds=1)).isoformat()

    reject(replace(case, evaluation=gate.evaluation(case, restate=restate)), "expiry")


def test_rule_7_an_unsigned_statement(gate: Any, case: Any) -> None:
    unsigned = gate.evaluation(case, reseal=lambda envelope: envelope.update(signatures=[]))
    reject(replace(case, evaluation=unsigned), "signature")


def test_rule_7_no_statement(gate: Any, case: Any) -> None:
    missing = gate.evaluation(case, after=lambda files: files.pop("statement.json"))
    reject(replace(case, evaluation=missing), "signature")


def test_rule_7_a_signer_nobody_trusts(
    gate: Any, case: Any, environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECVEC_TRUSTED_KEYS", f"{ensure_signing_key(environment / 'other')}.pub")
    reject(case, "signature")


def test_rule_7_a_signer_the_policy_does_not_allow(case: Any) -> None:
    reject(replace(case, policy=Policy(version=1, allowed_signers=("0" * 64,))), "signature")


@pytest.mark.parametrize(
    ("issued_in", "checks"), [(timedelta(days=1), ("issued",)), (timedelta(days=-40), ("age_days",))]
)
def test_rule_7_a_clock_that_is_off(gate: Any, case: Any, issued_in: timedelta, checks: tuple[str]) -> None:
    def restate(statement: dict[str, Any]) -> None:
        issued = datetime.now(UTC) + issued_in
        statement["predicate"]["issued_at"] = issued.isoformat()
        statement["predicate"]["expires_at"] = (issued + timedelta(days=60)).isoformat()

    reject(replace(case, evaluation=gate.evaluation(case, restate=restate)), *checks)


def test_a_revoked_vector_fails(case: Any) -> None:
    revoke_vector(case.vector, reason="leaked")
    verdict = case.judge()
    assert verdict["outcome"] == "FAIL"
    (reason,) = [one for one in verdict["reasons"] if one["outcome"] == "FAIL"]
    assert reason["check"] == "vector in force"
    assert "leaked" in str(reason["figure"])


def test_rule_7_metrics_in_mlflow_are_not_believed(
    gate: Any, case: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = connect()
    run = client.create_run("0").info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", run)
    bad = replace(case, evaluation=gate.evaluation(case, edit=set_in("guarded", "harm_rate", 1.0)))
    client.log_metric(run, "guarded.harm_rate", 0.0)
    assert bad.judge()["outcome"] == "FAIL"


def test_rule_7_evaluated_by_other_code(gate: Any, case: Any) -> None:
    def other(found: dict[str, Any]) -> None:
        for entry in found["predicate"]["configuration"]:
            if entry["name"] == "code":
                entry["digest"]["sha256"] = "e" * 64

    reject(replace(case, evaluation=gate.evaluation(case, restate=other)), "binding_code")


def test_without_a_log_nothing_is_promoted(case: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECVEC_AUDIT_LOG", "/dev/full")
    with pytest.raises(SecvecError, match="audit log"):
        case.judge()
    assert aliases(case.model_name) == {}


def test_without_mlflow_nothing_is_promoted(case: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(SecvecError, match="MLflow is not reachable"):
        case.judge()


@pytest.mark.parametrize("name", ["a/b", "a:b", ""])
def test_a_name_the_registry_refuses(case: Any, name: str) -> None:
    with pytest.raises(SecvecError, match="MLflow"):
        replace(case, model_name=name).judge()


def test_a_damaged_artifact_is_an_error(case: Any) -> None:
    path = Path(case.evaluation.uri.removeprefix("file://")) / "statistics.json"
    path.write_text(path.read_text() + " ")
    with pytest.raises(SecvecError, match="bytes"):
        case.judge()


def test_a_model_with_an_adapter_lying_about(gate: Any, case: Any) -> None:
    stray = replace(
        case, model=gate.model(more={"model/adapter_config.json": {}, "model/adapter_model.safetensors": ""})
    )
    reject(replace(stray, evaluation=gate.evaluation(stray)), "model_files")


def test_a_model_that_hides_files(gate: Any, case: Any) -> None:
    for name in ("model/original/vector.safetensors", "model/run.py"):
        stray = replace(case, model=gate.model(more={name: ""}))
        reject(replace(stray, evaluation=gate.evaluation(stray)), "model_files")


def test_an_adapter_alone_may_ship(gate: Any, case: Any, environment: Path) -> None:
    folder = environment / "adapter"
    (folder / "model").mkdir(parents=True)
    save_file(
        {"base_model.model.layers.0.q_proj.lora_A.weight": torch.zeros(2, 2)},
        folder / "model" / "adapter_model.safetensors",
    )
    files = {
        "provenance.json": gate.provenance(),
        "absence_proof.json": {"schema": 1, "absent": True, "checks": [{"name": "x", "passed": True}]},
        "model/adapter_config.json": {"peft_type": "LORA"},
    }
    alone = replace(case, model=gate.publish("model", files, folder=folder))
    assert replace(alone, evaluation=gate.evaluation(alone)).judge()["outcome"] == "PASS"


def test_a_reference_of_another_kind(case: Any) -> None:
    mixed = Reference(kind="evaluation", uri=case.model.uri, digest=case.model.digest)
    with pytest.raises(SecvecError, match="holds a model"):
        replace(case, evaluation=mixed).judge()
