"""Two models that the gate has promoted, and everything that this leaves behind."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

from secvec.components.gate_promotion.evidence import Evidence
from secvec.components.gate_promotion.ledger import Ledger
from secvec.components.gate_promotion.policy import load_policy
from secvec.components.gate_promotion.promotion import ensure_registered
from secvec.components.gate_promotion.step import gate_promotion, judge
from secvec.components.shared import tracking
from secvec.components.shared.artifacts import fetch
from secvec.components.shared.audit_checkpoints import verify_log
from secvec.components.shared.custody import ensure_custody_key, open_sealed
from secvec.components.shared.errors import SecvecError
from secvec.components.shared.provenance import read_envelopes
from secvec.components.shared.references import Reference
from secvec.components.shared.signing_keys import ensure_signing_key
from secvec.components.shared.storage import local_path, read_bytes
from secvec.components.shared.vectors import open_vector, publish_vector, vector_context
from secvec.components.shared.verification import verify_model
from tests.benchmarks.tampers.targets import (
    Target,
    files_of,
    is_the_same_policy,
    says_the_same,
    says_the_same_by_line,
)

BUILDER = Path(__file__).parents[2] / "components" / "gate_promotion" / "gate_cases.py"
FILES = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"tensors" * 60}


@dataclass(frozen=True)
class Promoted:
    """A case that the gate has promoted, with the copies that a server holds of it.

    Attributes:
        case: What was judged.
        verdict: The verdict.
        served: The server's model folder.
        statement: Its copy of the verdict's statement.
        ledger: Where its receipts lie.
    """

    case: Any
    verdict: Reference
    served: Path
    statement: Path
    ledger: Ledger


class World:
    """Two promoted models in one store, with one log and one registry.

    Args:
        folder: An empty folder for all of it.
        tracking_uri: A registry that is set up already; a new one by default.
    """

    def __init__(self, folder: Path, *, tracking_uri: str = "") -> None:
        self.folder, self.tests = folder, load_builder()
        set_environment(folder)
        self.tracking_uri = tracking_uri or f"sqlite:///{folder}/mlflow.db"
        if not tracking_uri:
            tracking.initialise(self.tracking_uri, f"file://{folder}/artifacts")
        self.gate = self.tests.Gate(folder, names=count(random.randrange(10**9)))
        self.policy = folder / "policy.yaml"
        self.policy.write_text("version: 1\nmax_harm_rate: 0.02\nmin_utility: 0.5\nmax_age_days: 30\n")
        self.looser = folder / "looser.yaml"
        self.looser.write_text("version: 1\nmax_harm_rate: 0.05\nmin_utility: 0.0\n")
        self.one, self.other = self.promote(1), self.promote(2)

    def promote(self, number: int) -> Promoted:
        """Make a model, have it judged and promoted, and give a server its copies.

        Raises:
            SecvecError: The gate did not say PASS.
        """
        case = self._make_case(number)
        with variable("MLFLOW_TRACKING_URI", self.tracking_uri):
            verdict = gate_promotion(**vars(case))
            ledger = Ledger(case.store, name=case.model_name, registered=ensure_registered(case.model_name))
        found = json.loads((fetch(verdict) / "verdict.json").read_text())
        if found["outcome"] != "PASS":
            against = [one for one in found["reasons"] if one["outcome"] != "PASS"]
            raise SecvecError(f"a clean case is {found['outcome']}: {against}")
        served = self.folder / f"served-{number}"
        shutil.copytree(fetch(case.model) / "model", served)
        copy = Path(shutil.copytree(fetch(verdict), self.folder / f"verdict-{number}"))
        return Promoted(case, verdict, served, copy / "statement.json", ledger)

    def _make_case(self, number: int) -> Any:
        """A case of its own data, vector, model and figures, all within the policy."""
        draw, gate = random.Random(number), self.gate
        base = self.tests.make_model(self.folder / "base", seed=1)
        tensors = f"sha256:{number + 1:064x}"
        certificate = gate.certificate(base, vector_tensors_digest=tensors)
        dataset = gate.publish("dataset", {"training.jsonl": f'{{"row": {number}}}\n' * 9, "more.json": "{}"})
        vector = publish_vector(FILES, certificate, store=gate.store, event="vector_sealed")
        made = gate.provenance(data_digest=dataset.digest, vector_digest=tensors)
        model = gate.model(seed=number, provenance=made)
        case = self.tests.Case(
            base_model=str(base),
            dataset=dataset,
            vector=vector,
            model=model,
            evaluation=model,
            store=gate.store,
            model_name=f"model-{next(gate.names)}",
            policy=load_policy(self.policy),
        )
        figures = {"utility": round(draw.uniform(0.89, 1), 2), "kept": round(draw.uniform(0.96, 1), 2)}
        edit = lambda statistics: statistics["arms"]["guarded"].update(figures)  # noqa: E731
        return replace(case, evaluation=gate.evaluation(case, edit=edit))

    def targets(self) -> dict[str, Target]:
        """Everything that is tampered with: first whole artifacts by their manifests, then what is signed."""
        one, other = self.one, self.other
        found = {}
        for kind in ("dataset", "model", "vector", "evaluation"):
            mine, theirs = getattr(one.case, kind), getattr(other.case, kind)
            found[f"{kind} in the store"] = whole(mine, theirs)
        found["verdict in the store"] = whole(one.verdict, other.verdict)
        mine, theirs = (local_path(two.case.evaluation.uri) for two in (one, other))
        return found | {
            "log": Target([self.folder / "audit.jsonl"], verify_log, lines=True),
            "checkpoints": Target(
                [self.folder / "audit.jsonl.checkpoints", *files_of(self.folder / "pin")],
                verify_log,
                same=says_the_same_by_line,
            ),
            "evaluation, its manifest forged": Target(
                files_of(mine, "statement.json", "statistics.json"),
                lambda: judge_files(one.case),
                files_of(theirs, "statement.json", "statistics.json"),
                same=says_the_same,
            ),
            "provenance": Target(
                provenance_of(one.case),
                lambda: judge_files(one.case),
                provenance_of(other.case),
                same=says_the_same,
            ),
            "verdict at the server": Target(
                files_of(one.statement.parent, "statement.json", "model.sig"),
                lambda: verify_model(one.served, verdict=one.statement),
                files_of(other.statement.parent, "statement.json", "model.sig"),
                same=says_the_same,
            ),
            "receipts": Target(
                files_of(local_path(one.ledger.uri), "*.receipt.json", "*.done.json"),
                lambda: read_ledger(one.ledger),
                files_of(local_path(other.ledger.uri), "*.receipt.json", "*.done.json"),
                same=says_the_same,
            ),
            "model at the server": Target(
                files_of(one.served),
                lambda: verify_model(one.served, verdict=one.statement),
                files_of(other.served),
                folder=one.served,
            ),
            "sealed vector, its manifest forged": Target(
                files_of(local_path(one.case.vector.uri), "vector.sealed"),
                lambda: self.open_seal(one.case.vector),
                files_of(local_path(other.case.vector.uri), "vector.sealed"),
            ),
            "policy": Target(
                [self.policy], lambda: self.verify_by_policy(one), [self.looser], same=is_the_same_policy
            ),
        }

    def open_seal(self, vector: Reference) -> None:
        """Open a vector by its seal alone, as when manifest and reference were forged to fit."""
        folder = local_path(vector.uri)
        context = vector_context(json.loads((folder / "certificate.json").read_text()))
        with variable("SECVEC_AUDIT_LOG", str(self.folder / "openings.jsonl")):
            open_sealed(read_bytes(str(folder / "vector.sealed")), context=context)

    def verify_by_policy(self, one: Promoted) -> None:
        """Verify a served model by the policy file that its server was given."""
        digest = load_policy(self.policy).digest()
        verify_model(one.served, verdict=one.statement, policy_digest=digest)

    def check_clean(self, one: Promoted) -> None:
        """Everything that looks for tampering, on what nobody has touched."""
        for target in whole(one.case.dataset), whole(one.case.model), whole(one.verdict):
            target.check()
        judge_files(one.case)
        read_ledger(one.ledger)
        base = one.case.digests()["base"]
        open_vector(one.case.vector, base_digest=base, opened_by="fine_tune_guarded")
        self.verify_by_policy(one)
        verify_log()


def load_builder() -> Any:
    """The module by which the gate's tests build their cases."""
    spec = importlib.util.spec_from_file_location("builder_of_cases", BUILDER)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def set_environment(folder: Path) -> None:
    """Keys, log and pin of a world; nothing of the machine's own."""
    os.environ["SECVEC_SIGNING_KEY"] = str(ensure_signing_key(folder / "signing"))
    os.environ["SECVEC_PROVENANCE_KEY"] = str(ensure_signing_key(folder / "builder"))
    os.environ["SECVEC_CUSTODY_KEY"] = str(ensure_custody_key(folder / "custody.key"))
    os.environ["SECVEC_AUDIT_LOG"] = str(folder / "audit.jsonl")
    os.environ["SECVEC_AUDIT_PIN"] = str(folder / "pin")
    for name in ("TRUSTED_KEYS", "TRUSTED_BUILDERS"):
        os.environ.pop(f"SECVEC_{name}", None)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "KFP_RUN_ID"):
        os.environ.pop(name, None)


@contextmanager
def variable(name: str, value: str) -> Iterator[None]:
    """Set a variable for a while."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def judge_files(case: Any) -> None:
    """Judge a case by what lies in the store, as if every manifest had been forged to fit."""
    digests = {role: digest for role, digest in case.digests().items() if role not in ("suite", "judge")}
    evidence = Evidence(
        evaluation=local_path(case.evaluation.uri),
        model=local_path(case.model.uri),
        vector=local_path(case.vector.uri),
        digests={**digests, "evaluation": case.evaluation.digest},
        find_provenance=lambda artifact: read_envelopes(case.store, artifact),
    )
    found = judge(evidence, case.policy, now=datetime.now(UTC))
    if found.outcome != "PASS":
        raise SecvecError(f"against it: {[one.check for one in found.reasons if one.outcome != 'PASS']}")


def read_ledger(ledger: Ledger) -> None:
    """Read every receipt, and the mark under the intent that it carried out."""
    for number in range(1, ledger.count() + 1):
        receipt = ledger.state_at(number)
        if receipt.grant and ledger.done(receipt.grant.intent) != receipt:
            raise SecvecError("the mark of an intent names another receipt", where=ledger.uri)


def provenance_of(case: Any) -> list[Path]:
    """The statements that the gate needs of a case's own artifacts."""
    needed = (case.dataset, case.vector, case.model, case.evaluation)
    folders = [Path(case.store) / "provenance" / one.digest.removeprefix("sha256:") for one in needed]
    return [file for folder in folders for file in files_of(folder)]


def whole(mine: Reference, theirs: Reference | None = None) -> Target:
    """An artifact that is fetched by its digest."""
    folder = local_path(mine.uri)
    others = files_of(local_path(theirs.uri)) if theirs else []
    return Target(files_of(folder), lambda: fetch(mine), others, folder=folder)
