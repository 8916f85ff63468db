"""The example of a server behind `secvec verify`: valid, locked down, and its command does what it says."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from typer.testing import CliRunner

from secvec.components.gate_promotion.intents import Intent
from secvec.components.gate_promotion.policy import Policy
from secvec.components.gate_promotion.promotion import Registration
from secvec.components.gate_promotion.verdict_artifact import publish_verdict
from secvec.components.shared.artifacts import fetch, publish
from secvec.components.shared.errors import SecvecError
from secvec.components.shared.references import Reference
from secvec.components.shared.signing_keys import ensure_signing_key
from secvec.pipelines.command import app

kubernetes_validate = pytest.importorskip(
    "kubernetes_validate", reason="kubernetes-validate is not installed"
)


@pytest.fixture
def serving(manifests: Path, render_folder: Callable[[Path], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    return render_folder(manifests / "serving")


@pytest.fixture
def pod(serving: list[dict[str, Any]]) -> dict[str, Any]:
    (found,) = (thing for thing in serving if thing["kind"] == "Deployment")
    spec: dict[str, Any] = found["spec"]["template"]["spec"]
    return spec


@pytest.fixture
def served_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path, Path]:
    """A model, the gate's verdict on it and the gate's public key, as a server gets them."""
    key = ensure_signing_key(tmp_path / "gate")
    monkeypatch.setenv("SECVEC_SIGNING_KEY", str(key))
    monkeypatch.delenv("SECVEC_TRUSTED_KEYS", raising=False)
    (tmp_path / "artifact" / "model").mkdir(parents=True)
    (tmp_path / "artifact" / "model" / "config.json").write_text('{"model_type": "llama"}')
    save_file({"w": np.ones((2, 2), np.float32)}, tmp_path / "artifact" / "model" / "model.safetensors")
    model = publish(tmp_path / "artifact", kind="model", store=str(tmp_path / "store"))
    digest = "sha256:" + "d" * 64
    intent = Intent(
        model_name="served",
        model=model,
        evaluation=Reference(kind="evaluation", uri="file:///none", digest=digest),
        policy=Policy(version=1),
        outcome="PASS",
        reasons=(),
        digests={"model": model.digest, "evaluation": digest},
        aliases=("champion",),
        issued_at=datetime.now(UTC),
    )
    place = Registration(name="served", version="1", source=model.uri, tracking_uri="", run_id="")
    verdict = publish_verdict(intent, place, store=str(tmp_path / "store"))
    return tmp_path / "artifact" / "model", fetch(verdict), Path(f"{key}.pub")


def test_every_object_fits_the_strict_schema(serving: list[dict[str, Any]]) -> None:
    assert {thing["kind"] for thing in serving} == {"ConfigMap", "Deployment"}
    for thing in serving:
        kubernetes_validate.validate(thing, "1.30", strict=True)


def test_what_was_verified_cannot_be_changed_before_it_is_served(pod: dict[str, Any]) -> None:
    assert [one["name"] for one in pod["initContainers"]][-1] == "verify"
    for container in (pod["initContainers"][-1], *pod["containers"]):
        (mount,) = (one for one in container["volumeMounts"] if one["name"] == "fetched")
        assert mount["readOnly"] is True
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert "--enable-lora" not in pod["containers"][0]["args"]


@pytest.mark.parametrize("tampered", [False, True])
def test_the_command_verifies(
    pod: dict[str, Any],
    served_model: tuple[Path, Path, Path],
    tampered: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, verdict, key = served_model
    container = pod["initContainers"][-1]
    assert container["command"][0] == "secvec"
    places = {"/fetched/model": model, "/fetched/verdict": verdict, "/gate/gate.pub": key}
    words = [str(places.get(word, word)) for word in (*container["command"][1:], *container["args"])]
    for name in ("SECVEC_SIGNING_KEY", "SECVEC_TRUSTED_KEYS"):
        monkeypatch.delenv(name, raising=False)
    if tampered:
        (model / "config.json").write_text('{"model_type": "llama2"}')
    done = CliRunner().invoke(app, words)
    if tampered:
        assert isinstance(done.exception, SecvecError)
    else:
        assert done.exit_code == 0, done.output
        assert "served version 1" in done.output
