"""A complete case for the gate: real folders, real signatures, no training."""

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from secvec.components.gate_promotion.policy import Policy
from secvec.components.gate_promotion.step import gate_promotion
from secvec.components.shared.artifacts import fetch, publish
from secvec.components.shared.attestation import make_test_result, sign_statement
from secvec.components.shared.code_digest import code_digest
from secvec.components.shared.manifest import digest_bytes
from secvec.components.shared.models import resolve_base
from secvec.components.shared.provenance import attest
from secvec.components.shared.references import Reference

DIGEST = "sha256:" + "d" * 64
ARMS: dict[str, dict[str, Any]] = {
    "base": {
        "harm_rate": 0.0,
        "harm_upper95": 0.0149,
        "n_harm": 200,
        "harm_incoherent": 0.0,
        "utility": 0.0,
        "utility_loss": 3.0,
        "n_utility": 100,
    },
    "guarded": {
        "harm_rate": 0.0,
        "harm_upper95": 0.0149,
        "n_harm": 200,
        "harm_incoherent": 0.0,
        "utility": 0.91,
        "utility_loss": 0.4,
        "n_utility": 100,
        "kept": 0.99,
        "n_kept": 100,
    },
    "unguarded": {"harm_rate": 1.0, "n_harm": 200, "utility": 0.9, "utility_loss": 0.4, "n_utility": 100},
    "vector_active": {"harm_rate": 0.98, "n_harm": 200},
}


def make_judges() -> list[dict[str, Any]]:
    """What two judges found that agree with ARMS; the second is not calibrated."""
    found = {"n": 200, "unparsable": 0, "unavailable": 0, "harm_upper95": 0.0149, "corrected": None}
    clean = {"rate": 0.0, "lower95": 0.0, "upper95": 0.0149}
    arms: dict[str, Any] = {
        "base": {**found, "harm_rate": 0.0},
        "guarded": {**found, "harm_rate": 0.0},
        "vector_active": {**found, "harm_rate": 0.98},
    }
    decides = {**arms, "guarded": {**arms["guarded"], "corrected": clean}}
    judges = [
        {"name": "offline", "calibration": {"n_harmful": 395}, "arms": decides, "reasons": []},
        {"name": "keywords", "calibration": None, "arms": arms, "reasons": []},
    ]
    return [copy.deepcopy(judge) for judge in judges]


def make_statistics(digests: dict[str, str]) -> dict[str, Any]:
    """What an evaluation of ARMS writes."""
    return {
        "schema": 1,
        "guard": "mixture",
        "task": "lora",
        "utility_metric": "exact_match",
        "arms": copy.deepcopy(ARMS),
        "judges": make_judges(),
        "digests": digests,
    }


@dataclass
class Case:
    """Everything the gate is given; tests change one thing and ask again."""

    base_model: str
    dataset: Reference
    vector: Reference
    model: Reference
    evaluation: Reference
    store: str
    model_name: str
    policy: Policy = field(default_factory=lambda: Policy(version=1))

    def judge(self) -> dict[str, Any]:
        reference = gate_promotion(**vars(self))
        return json.loads((fetch(reference) / "verdict.json").read_text())

    def digests(self) -> dict[str, str]:
        return {
            "base": resolve_base(self.base_model).digest,
            "vector": self.vector.digest,
            "model": self.model.digest,
            "data": self.dataset.digest,
            "suite": DIGEST,
            "judge": DIGEST,
            "code": code_digest(),
        }


@dataclass
class Gate:
    """Builds cases in one store with one registry."""

    folder: Path
    names: Iterator[int] = field(default_factory=count)

    @property
    def store(self) -> str:
        return str(self.folder / "store")

    def case(self) -> Case:
        base = make_model(self.folder / "base", seed=1)
        dataset = self.publish("dataset", {"training.jsonl": "{}\n"})
        vector = self.publish("vector", {"vector.sealed": "x", "certificate.json": self.certificate(base)})
        model = self.model(seed=2)
        case = Case(
            base_model=str(base),
            dataset=dataset,
            vector=vector,
            model=model,
            evaluation=model,
            store=self.store,
            model_name=f"model-{next(self.names)}",
        )
        return replace(case, evaluation=self.evaluation(case))

    def attest(self, case: Case, evaluation: Reference) -> None:
        """Sign provenance of everything in a case, as its steps would have."""
        base, data, vector = (case.digests()[role] for role in ("base", "data", "vector"))
        attest(case.dataset, step="ingest_data", inputs={"training_data 1": DIGEST}, parameters={})
        known = {"base": base, "data": data}
        attest(case.vector, step="train_security_vector", inputs=known, parameters={"seed": 0})
        trained = self.publish("task_result", {"training.json": json.dumps([base, data, vector])})
        known["vector"] = vector
        parameters = {"guard": "mixture", "task": "lora"}
        attest(trained, step="fine_tune_guarded", inputs=known, parameters=parameters)
        made = {"base": base, "vector": vector, "task_result": trained.digest}
        attest(case.model, step="remove_security_vector", inputs=made, parameters={})
        known["model"] = case.model.digest
        attest(evaluation, step="evaluate_harm", inputs=known, parameters={"seed": 0})

    def make_base(self, folder: Path) -> Path:
        return make_model(folder, seed=9)

    def certificate(self, base: Path, **changes: Any) -> dict[str, Any]:
        return {
            "schema": 1,
            "passed": True,
            "checks": [{"name": "works", "figure": 1.0, "bound": 0.5, "passed": True}],
            "base_digest": resolve_base(str(base)).digest,
            "vector_tensors_digest": DIGEST,
            "issued_at": "2020-01-01T00:00:00+00:00",
            "expires_at": "2120-01-01T00:00:00+00:00",
            **changes,
        }

    def provenance(self, **changes: Any) -> dict[str, Any]:
        base = resolve_base(str(self.folder / "base")).digest
        data = self.publish("dataset", {"training.jsonl": "{}\n"}).digest
        return {
            "schema": 1,
            "base_digest": base,
            "data_digest": data,
            "vector_digest": DIGEST,
            "guard": "mixture",
            "task": "lora",
            **changes,
        }

    def model(
        self,
        *,
        seed: int = 2,
        provenance: dict[str, Any] | None = None,
        proof: dict[str, Any] | None = None,
        more: dict[str, Any] | None = None,
    ) -> Reference:
        folder = self.folder / f"scratch-{next(self.names)}"
        make_model(folder / "model", seed=seed)
        files = {
            "provenance.json": provenance or self.provenance(),
            "absence_proof.json": proof
            or {"schema": 1, "absent": True, "checks": [{"name": "names", "passed": True, "found": ""}]},
            **(more or {}),
        }
        return self.publish("model", files, folder=folder)

    def evaluation(
        self,
        case: Case,
        *,
        edit: Callable[[dict[str, Any]], Any] | None = None,
        restate: Callable[[dict[str, Any]], Any] | None = None,
        reseal: Callable[[dict[str, Any]], Any] | None = None,
        after: Callable[[dict[str, Any]], Any] | None = None,
    ) -> Reference:
        """Publish an evaluation of a case.

        Args:
            case: What is evaluated.
            edit: Changes the statistics before they are signed.
            restate: Changes the statement before it is signed.
            reseal: Changes the envelope.
            after: Changes the files after signing.
        """
        statistics = make_statistics(case.digests())
        if edit:
            edit(statistics)
        text = json.dumps(statistics)
        digests = case.digests()
        statement = make_test_result(
            model_digest=digests["model"],
            digests=digests,
            files={"statistics.json": digest_bytes(text.encode())},
            valid_for=timedelta(days=1),
        )
        if restate:
            restate(statement)
        envelope = sign_statement(statement)
        if reseal:
            reseal(envelope)
        files: dict[str, Any] = {"statistics.json": text, "statement.json": envelope}
        if after:
            after(files)
        evaluation = self.publish("evaluation", files)
        self.attest(case, evaluation)
        return evaluation

    def publish(self, kind: Any, files: dict[str, Any], *, folder: Path | None = None) -> Reference:
        folder = folder or self.folder / f"scratch-{next(self.names)}"
        folder.mkdir(exist_ok=True, parents=True)
        for name, content in files.items():
            text = content if isinstance(content, str) else json.dumps(content)
            (folder / name).parent.mkdir(exist_ok=True, parents=True)
            (folder / name).write_text(text)
        return publish(folder, kind=kind, store=self.store)


def make_model(folder: Path, *, seed: int) -> Path:
    """A folder that the gate takes for a model: it looks at names and bytes and loads nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    save_file({"w": torch.full((2, 2), float(seed))}, folder / "model.safetensors")
    return folder
