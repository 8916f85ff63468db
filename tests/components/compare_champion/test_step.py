"""UNCHANGED only by what the gate signed; whatever is missing means: train."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from secvec.components.compare_champion.step import Comparison, compare_champion
from secvec.components.gate_promotion.policy import Policy
from secvec.components.gate_promotion.step import gate_promotion
from secvec.components.shared.artifacts import fetch
from secvec.components.shared.choices import digest_choices
from secvec.components.shared.run_records import find_verdict
from secvec.components.shared.signing_keys import ensure_signing_key
from secvec.components.shared.tracking import connect

CHOICES: dict[str, Any] = {
    "guard": "mixture",
    "task": "lora",
    "seed": 1,
    "control_arm": True,
    "overrides": {"fine_tune_guarded": {"epochs": 2}},
}
Ask = Callable[..., Comparison]


@pytest.fixture
def champion(case: Any) -> Any:
    reference = gate_promotion(**vars(case), choices=digest_choices(**CHOICES))
    assert json.loads((fetch(reference) / "verdict.json").read_text())["outcome"] == "PASS"
    return case


@pytest.fixture
def ask(champion: Any) -> Ask:
    def ask(**changes: Any) -> Comparison:
        given = {
            "skip_unchanged": True,
            "base_model": champion.base_model,
            "dataset": champion.dataset,
            "choices": digest_choices(**CHOICES),
            "policy": champion.policy,
            "model_name": champion.model_name,
            "store": champion.store,
            "run": "run-2",
        }
        return compare_champion(**(given | changes))

    return ask


def test_equal_inputs_end_the_run_with_a_verdict_that_whoever_submitted_finds(
    ask: Ask, champion: Any
) -> None:
    found = ask()
    assert found.unchanged, found.because
    assert "version 1 stays champion" in found.because
    recorded = find_verdict(store=champion.store, run="run-2")
    assert recorded == found.verdict
    assert recorded is not None
    verdict = json.loads((fetch(recorded) / "verdict.json").read_text())
    assert (verdict["outcome"], verdict["model_name"], verdict["model_version"]) == (
        "UNCHANGED",
        champion.model_name,
        "1",
    )
    assert verdict["digests"]["data"] == champion.dataset.digest


def test_choices_are_compared_as_kfp_gives_them(ask: Ask) -> None:
    """KFP makes a float of every number in a mapping."""
    floats = CHOICES | {"overrides": {"fine_tune_guarded": {"epochs": 2.0}}}
    assert ask(choices=digest_choices(**floats)).unchanged


@pytest.mark.parametrize(
    "change",
    [
        {"guard": "always"},
        {"task": "full"},
        {"seed": 2},
        {"control_arm": False},
        {"overrides": {"fine_tune_guarded": {"epochs": 3}}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_another_choice_trains(ask: Ask, change: dict[str, Any]) -> None:
    found = ask(choices=digest_choices(**(CHOICES | change)))
    assert (found.unchanged, found.because) == (False, "changed: config")


def test_other_data_base_policy_or_code_trains(
    ask: Ask, champion: Any, gate: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = gate.publish("dataset", {"training.jsonl": "{} \n"})  # one byte more
    assert ask(dataset=other).because == "changed: data"
    assert ask(base_model=str(gate.make_base(tmp_path / "other"))).because == "changed: base"
    policy = champion.policy.model_copy(update={"max_harm_rate": 0.01})
    assert ask(policy=policy).because == "changed: policy"
    monkeypatch.setattr("secvec.components.compare_champion.step.code_digest", lambda: "sha256:" + "0" * 64)
    assert ask().because == "changed: code"
    assert find_verdict(store=champion.store, run="run-2") is None


def test_who_does_not_ask_trains(ask: Ask) -> None:
    assert not ask(skip_unchanged=False).unchanged


def test_without_a_champion_or_a_registry_it_trains(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "has no champion" in ask(model_name="never-heard-of").because
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert "not reachable" in ask().because
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert not ask().unchanged


def test_an_expired_verdict_trains(ask: Ask, case: Any) -> None:
    short = replace(case, policy=Policy(version=1, valid_days=1e-9), model_name=f"{case.model_name}-short")
    gate_promotion(**vars(short), choices=digest_choices(**CHOICES))
    found = ask(model_name=short.model_name, policy=short.policy)
    assert "its verdict expired" in found.because


def test_edited_tags_cannot_say_that_nothing_has_changed(ask: Ask, champion: Any, gate: Any) -> None:
    """Whoever may write to the registry must not be able to keep a champion for ever."""
    client = connect()
    name, other = champion.model_name, gate.publish("dataset", {"training.jsonl": '{"x": 1}\n'})
    client.set_model_version_tag(name, "1", "secvec.data_digest", other.digest)
    assert ask(dataset=other).because == "changed: data"
    forged = gate.publish(
        "verdict",
        {"verdict.json": {"outcome": "PASS", "digests": {"data": other.digest}}, "statement.json": {}},
    )
    client.set_model_version_tag(name, "1", "secvec.verdict_uri", forged.uri)
    client.set_model_version_tag(name, "1", "secvec.verdict_digest", forged.digest)
    assert "cannot be believed" in ask(dataset=other).because
    client.delete_model_version_tag(name, "1", "secvec.verdict_uri")
    assert not ask().unchanged


def test_an_alias_that_was_moved_trains(ask: Ask, champion: Any, tmp_path: Path) -> None:
    """The verdict speaks of version 1; the alias points to a version that nobody judged, with its tags."""
    client = connect()
    tags = client.get_model_version(champion.model_name, "1").tags
    moved = client.create_model_version(champion.model_name, source=str(tmp_path), tags=tags)
    client.set_registered_model_alias(champion.model_name, "champion", moved.version)
    assert "does not hold (name, model)" in ask().because


def test_a_signature_that_is_not_trusted_trains(
    ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = ensure_signing_key(tmp_path / "other" / "signing")
    monkeypatch.setenv("SECVEC_TRUSTED_KEYS", f"{key}.pub")
    assert "cannot be believed" in ask().because


def test_the_public_key_may_be_a_variable(
    ask: Ask, environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a cluster, where this step sees no signing key."""
    monkeypatch.delenv("SECVEC_SIGNING_KEY")
    assert not ask().unchanged
    monkeypatch.setenv("SECVEC_TRUSTED_KEYS", (environment / "signing.pub").read_text())
    assert ask().unchanged
