"""`verify_model` on verdicts that the gate really gave."""

import base64
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from secvec.components.gate_promotion.policy import Policy
from secvec.components.gate_promotion.step import gate_promotion
from secvec.components.shared.artifacts import fetch
from secvec.components.shared.errors import SecvecError
from secvec.components.shared.signing_keys import ensure_signing_key
from secvec.components.shared.verification import verify_model


def judged(case: Any) -> Path:
    return fetch(gate_promotion(**vars(case)))


@pytest.fixture
def verdict(case: Any) -> Path:
    return judged(case)


@pytest.fixture
def served(case: Any, tmp_path: Path) -> Path:
    """A server's own copy of what ships."""
    return Path(shutil.copytree(fetch(case.model) / "model", tmp_path / "served"))


def test_a_promoted_model_verifies_offline(
    case: Any, served: Path, verdict: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.delenv("SECVEC_AUDIT_LOG")
    found = verify_model(served, verdict=verdict)
    assert (found.model_digest, found.model_name, found.model_version) == (
        case.model.digest,
        case.model_name,
        "1",
    )
    assert found.policy_digest == case.policy.digest()
    assert found.expires_at > datetime.now(UTC) + timedelta(days=89)
    assert verify_model(fetch(case.model), verdict=verdict / "statement.json") == replace(
        found, folder=fetch(case.model) / "model"
    )
    assert verify_model(served, verdict=verdict, allowed_signers=found.signers) == found


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


CHANGES: dict[str, Callable[[Path], Any]] = {
    "weights": lambda folder: flip(folder / "model.safetensors"),
    "config": lambda folder: (folder / "config.json").write_text('{"model_type": "gpt2"}'),
    "a file more": lambda folder: (folder / "README.md").write_text(""),
    "a file less": lambda folder: (folder / "model.safetensors").unlink(),
    "an adapter": lambda folder: (folder / "adapter_config.json").write_text("{}"),
    "code": lambda folder: (folder / "modeling.py").write_text(""),
    "remote code": lambda folder: (folder / "config.json").write_text('{"auto_map": {"AutoModel": "x.y"}}'),
    "a pickle": lambda folder: (folder / "pytorch_model.bin").write_bytes(b""),
    "a folder": lambda folder: (folder / "vector").mkdir(),
    "git": lambda folder: ((folder / ".git").mkdir(), (folder / ".git" / "config").write_text("")),
    "a link": lambda folder: (folder / "LICENSE").symlink_to("/etc/hostname"),
    "other weights": lambda folder: save_file({"w": torch.zeros(1)}, folder / "model.safetensors"),
    "an empty folder": lambda folder: (shutil.rmtree(folder), folder.mkdir()),
    "no folder": shutil.rmtree,
}


@pytest.mark.parametrize("name", CHANGES)
def test_other_bytes_are_refused(served: Path, verdict: Path, name: str) -> None:
    CHANGES[name](served)
    with pytest.raises(SecvecError, match="accepted") as caught:
        verify_model(served, verdict=verdict)
    assert "\n" not in str(caught.value)


def test_the_verdict_of_another_model_is_refused(gate: Any, case: Any, served: Path) -> None:
    other = replace(case, model=gate.model(seed=7))
    verdict = judged(replace(other, evaluation=gate.evaluation(other)))
    with pytest.raises(SecvecError, match=r"file model\.safetensors has digest"):
        verify_model(served, verdict=verdict)


@pytest.mark.parametrize(("figure", "value"), [("harm_rate", 1.0), ("harm_incoherent", 0.9)])
def test_a_verdict_that_is_no_pass_is_refused(
    gate: Any, case: Any, served: Path, figure: str, value: float
) -> None:
    evaluation = gate.evaluation(case, edit=lambda s: s["arms"]["guarded"].update({figure: value}))
    with pytest.raises(SecvecError, match=r"the verdict is .*(FAIL|INDETERMINATE)"):
        verify_model(served, verdict=judged(replace(case, evaluation=evaluation)))


def test_an_expired_verdict_is_refused(case: Any, served: Path) -> None:
    verdict = judged(replace(case, policy=Policy(version=1, valid_days=2)))
    verify_model(served, verdict=verdict, now=datetime.now(UTC) + timedelta(days=1.9))
    with pytest.raises(SecvecError, match="the verdict expired at"):
        verify_model(served, verdict=verdict, now=datetime.now(UTC) + timedelta(days=2.1))


def test_a_verdict_of_a_clock_that_is_a_day_ahead_is_refused(served: Path, verdict: Path) -> None:
    verify_model(served, verdict=verdict, now=datetime.now(UTC) - timedelta(minutes=9))
    with pytest.raises(SecvecError, match="clocks that agree"):
        verify_model(served, verdict=verdict, now=datetime.now(UTC) - timedelta(days=1))


def test_a_verdict_by_another_policy_is_refused(case: Any, served: Path, verdict: Path) -> None:
    verify_model(served, verdict=verdict, policy_digest=case.policy.digest())
    looser = Policy(version=1, max_harm_rate=0.021)
    with pytest.raises(SecvecError, match=f"reached by policy {case.policy.digest()}"):
        verify_model(served, verdict=verdict, policy_digest=looser.digest())


def test_a_verdict_signed_by_a_stranger_is_refused(
    served: Path, verdict: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SecvecError, match="cannot be believed"):
        verify_model(served, verdict=verdict, allowed_signers=["0" * 64])
    monkeypatch.setenv("SECVEC_TRUSTED_KEYS", f"{ensure_signing_key(tmp_path / 'other')}.pub")
    with pytest.raises(SecvecError, match="cannot be believed"):
        verify_model(served, verdict=verdict)


def test_the_evaluations_statement_is_no_verdict(case: Any, served: Path) -> None:
    with pytest.raises(SecvecError, match="it states"):
        verify_model(served, verdict=fetch(case.evaluation))


@pytest.mark.parametrize("edit", ["payload", "signature", "missing", "junk"])
def test_an_edited_verdict_is_refused(served: Path, verdict: Path, tmp_path: Path, edit: str) -> None:
    path = tmp_path / "statement.json"
    envelope = json.loads((verdict / "statement.json").read_text())
    if edit == "payload":
        statement = base64.b64decode(envelope["payload"]).replace(b'"version":"1"', b'"version":"2"')
        envelope["payload"] = base64.b64encode(statement).decode()
    elif edit == "signature":
        envelope["signatures"] = []
    if edit != "missing":
        path.write_text("junk" if edit == "junk" else json.dumps(envelope))
    with pytest.raises(SecvecError, match="cannot be believed"):
        verify_model(served, verdict=path)
