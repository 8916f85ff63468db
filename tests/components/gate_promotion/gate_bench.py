"""Evidence for the gate's judgement as loose files, without store and registry."""

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from gate_cases import DIGEST

from secvec.components.gate_promotion.evidence import Evidence
from secvec.components.gate_promotion.noninferiority import Champion
from secvec.components.gate_promotion.policy import Policy
from secvec.components.gate_promotion.step import Judgement, judge
from secvec.components.shared.attestation import make_statement, make_test_result, sign_statement
from secvec.components.shared.manifest import digest_bytes
from secvec.components.shared.provenance import PROVENANCE_TYPE

ROLES = ("base", "vector", "model", "data", "suite", "judge", "code", "evaluation", "task_result")
DIGESTS = {role: "sha256:" + f"{number:x}" * 64 for number, role in enumerate(ROLES, start=1)}
GIVEN = ("base", "vector", "model", "data", "code", "evaluation")
BOUND = {role: DIGESTS[role] for role in ("base", "vector", "model", "data", "suite", "judge", "code")}


def state(artifact: str, step: str, inputs: tuple[str, ...], **parameters: Any) -> dict[str, Any]:
    """A statement of provenance as a step signs it."""
    return make_statement(
        {artifact: DIGESTS[artifact]},
        PROVENANCE_TYPE,
        {
            "buildDefinition": {
                "buildType": f"urn:secvec:step:{step}:v1",
                "externalParameters": parameters,
                "resolvedDependencies": [
                    {"name": role, "digest": {"sha256": DIGESTS[role].removeprefix("sha256:")}}
                    for role in (*inputs, "code")
                ],
            },
            "runDetails": {"builder": {"id": f"urn:secvec:step:{step}"}},
        },
    )


CHAIN = {
    "data": state("data", "ingest_data", ()),
    "vector": state("vector", "train_security_vector", ("base", "data")),
    "task_result": state(
        "task_result", "fine_tune_guarded", ("base", "data", "vector"), guard="mixture", task="lora"
    ),
    "model": state("model", "remove_security_vector", ("base", "vector", "task_result")),
    "evaluation": state("evaluation", "evaluate_harm", ("base", "data", "vector", "model")),
}


@dataclass
class Bench:
    """Evidence as loose files before the gate's judgement: no store and no registry, so a case costs little.

    Attributes:
        folder: Where the files go.
        parts: Contents of the JSON files, by name; what is None is not written.
        restate: Changes the statement before it is signed.
        reseal: Changes the envelope after it is signed.
        after: Changes the evaluation folder after it is written.
        chain: Statements of provenance by artifact; what is None is not stated.
        reseal_chain: Changes their envelopes after they are signed.
        champion: The champion at this time.
        attempts: Models judged so far.
    """

    folder: Path
    parts: dict[str, Any]
    restate: Callable[[Any], Any] = lambda statement: None
    reseal: Callable[[Any], Any] = lambda envelope: None
    after: Callable[[Path], Any] = lambda folder: None
    chain: dict[str, Any] = field(default_factory=lambda: copy.deepcopy(CHAIN))
    reseal_chain: Callable[[str, Any], Any] = lambda name, envelope: None
    champion: Champion | None = None
    attempts: int = 1

    def judge(self, policy: Policy | None = None) -> Judgement:
        for path, name in {
            "evaluation/statistics.json": "statistics",
            "model/provenance.json": "provenance",
            "model/absence_proof.json": "absence_proof",
            "vector/certificate.json": "certificate",
        }.items():
            (self.folder / path).parent.mkdir(exist_ok=True)
            if self.parts[name] is not None:
                (self.folder / path).write_text(json.dumps(self.parts[name]))
        self._sign(self.folder / "evaluation")
        self.after(self.folder / "evaluation")
        evidence = Evidence(
            evaluation=self.folder / "evaluation",
            model=self.folder / "model",
            vector=self.folder / "vector",
            digests={role: DIGESTS[role] for role in GIVEN},
            find_provenance=self._find_provenance,
            champion=self.champion,
            attempts=self.attempts,
        )
        return judge(evidence, policy or Policy(version=1), now=datetime.now(UTC))

    def _find_provenance(self, artifact: str) -> list[dict[str, Any]]:
        name = next((name for name in CHAIN if DIGESTS[name] == artifact), "")
        if self.chain.get(name) is None:
            return []
        envelope = sign_statement(self.chain[name], purpose="provenance")
        self.reseal_chain(name, envelope)
        return [envelope]

    def _sign(self, evaluation: Path) -> None:
        statistics = evaluation / "statistics.json"
        signed = digest_bytes(statistics.read_bytes()) if statistics.exists() else DIGEST
        statement = make_test_result(
            model_digest=DIGESTS["model"],
            digests=BOUND,
            files={"statistics.json": signed},
            valid_for=timedelta(days=1),
        )
        self.restate(statement)
        envelope = sign_statement(statement)
        self.reseal(envelope)
        (evaluation / "statement.json").write_text(json.dumps(envelope))
