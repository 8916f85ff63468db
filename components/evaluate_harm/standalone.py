"""Evaluation of any model on suites, without a pipeline, a vector or a signature.

Run as ``python -m secvec.components.evaluate_harm.standalone JOB`` by ``secvec evaluate``, where JOB is a
JSON file with an `EvaluationJob`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from secvec.components.evaluate_harm.arms import evaluate_arm
from secvec.components.evaluate_harm.chat_endpoint import EndpointError
from secvec.components.evaluate_harm.config import EvaluationConfig
from secvec.components.evaluate_harm.contrasts import summarise_contrasts
from secvec.components.evaluate_harm.endpoint import EndpointModel
from secvec.components.evaluate_harm.generation import LocalModel
from secvec.components.evaluate_harm.judge_specs import open_judges
from secvec.components.evaluate_harm.judge_statistics import summarise_judges
from secvec.components.evaluate_harm.judgements import Judge
from secvec.components.evaluate_harm.judging import digest_judges, judge_outcomes
from secvec.components.evaluate_harm.outcomes import ArmName, Outcome
from secvec.components.evaluate_harm.power import foresee
from secvec.components.evaluate_harm.probes import PromptSuite
from secvec.components.evaluate_harm.questions import Respondent
from secvec.components.evaluate_harm.results import write_findings
from secvec.components.evaluate_harm.statistics import summarise_arm
from secvec.components.evaluate_harm.strata import keep_worst, summarise_strata
from secvec.components.evaluate_harm.suites import Suite, open_suite
from secvec.components.evaluate_harm.training_look import TrainingLook, learn_look
from secvec.components.evaluate_harm.verdict_banner import write_judged_report
from secvec.components.shared.code_digest import code_digest
from secvec.components.shared.errors import SecvecError
from secvec.components.shared.manifest import digest_bytes
from secvec.components.shared.models import load_model, load_tokenizer, resolve_base
from secvec.components.shared.progress import running_step
from secvec.components.shared.records import read_records
from secvec.components.shared.settings import Settings

STEP = "evaluate"


class EvaluationJob(Settings):
    """What is evaluated."""

    model: str = Field(description="model folder, URI, hub id, or URL of an OpenAI-compatible endpoint")
    against: str = Field(default="", description="model it is compared with, or nothing")
    suites: tuple[str, ...] = Field(min_length=1, description="suite folders")
    training_rows: str = Field(default="", description="JSONL of chat records that prompts are dressed like")
    served_model: str = Field(default="", description="name of the model at an endpoint")
    seed: int = Field(default=0, ge=0, description="seed of sampled answers, at least 0")
    output: str = Field(description="folder to write to")
    max_harm: float | None = Field(
        default=None, ge=0, le=1, description="what the upper bound of harm may be at most, or nothing"
    )
    config: EvaluationConfig = Field(description="how models are asked")


def evaluate_model(job: EvaluationJob) -> dict[str, Any]:
    """Ask one model, and perhaps another, all suites, and write statistics, outcomes and report.

    A killed run goes on from the journals under ``<output>/work``; they are removed at the end. A served
    model that fails after all retries leaves the evaluation INDETERMINATE; the next run goes on from there.

    Returns:
        The statistics, without arms where a served model failed. The model is the arm ``guarded`` and what
        it is compared with the arm ``base``, the names that every report knows; ``guard`` is None, for nobody
        said how the model was trained.

    Raises:
        SecvecError: A suite or model is refused, or a suite's name occurs twice.
    """
    output = Path(job.output)
    suites = [open_suite(uri) for uri in job.suites]
    names = [suite.manifest.name for suite in suites]
    for name in names:
        if names.count(name) > 1:
            raise SecvecError("occurs twice", where=f"suite {name}", accepted="suites with different names")
    judges = open_judges(job.config.judges, calibrations=job.config.calibrations)
    look = learn_look(read_records(Path(job.training_rows))) if job.training_rows else TrainingLook()
    prompts = PromptSuite(
        harm=(), skill=(), kept=(), extra=[probe for suite in suites for probe in suite.probes]
    )
    outcomes: list[Outcome] = []
    digests = {}
    arms: dict[ArmName, str] = {"base": job.against, "guarded": job.model}
    for arm, uri in arms.items():
        if uri:
            digest, respondent = _open(uri, job)
            digests["base" if arm == "base" else "model"] = digest
            journals = output / "work" / digest_bytes(f"{digest} {code_digest()}".encode())[7:]
            try:
                outcomes += evaluate_arm(
                    arm, respondent, prompts, job.config, look=look, seed=job.seed, journals=journals
                )
            except EndpointError as error:
                return _give_up(error, job)
    judged = digest_bytes(f"{digest_judges(judges)} {code_digest()}".encode())[7:]
    outcomes = judge_outcomes(outcomes, judges, journals=output / "work" / judged)
    statistics = _summarise(outcomes, job, digests | _digest_suites(suites, judges), judges)
    write_findings(output, outcomes, statistics, language=job.config.language)
    _remove_work(output / "work")
    return statistics


def _give_up(error: EndpointError, job: EvaluationJob) -> dict[str, Any]:
    """Write that nothing could be measured, and why."""
    output = Path(job.output)
    limit = {"max_harm": job.max_harm, "upper95": None, "outcome": "INDETERMINATE", "reason": str(error)}
    statistics = {"schema": 1, "arms": {}, "suites": {}, "judges": [], "limit": limit}
    (output / "report.html").unlink(missing_ok=True)
    reason = {"check": "answers", "outcome": "INDETERMINATE", "figure": str(error), "bound": "answers"}
    verdict = {"outcome": "INDETERMINATE", "reasons": [reason]}
    write_judged_report(output, verdict, output / "report.html", language=job.config.language)
    text = json.dumps(statistics, indent=2, sort_keys=True)
    (output / "statistics.json").write_text(text + "\n", encoding="utf-8")
    return statistics


def _open(uri: str, job: EvaluationJob) -> tuple[str, Respondent]:
    """A model's digest and the model; an endpoint is known by its address and name only."""
    if uri.startswith(("http://", "https://")):
        endpoint = EndpointModel(url=uri, model=job.served_model or "default")
        return digest_bytes(f"{endpoint.url} {endpoint.model}".encode()), endpoint
    folder = resolve_base(uri)
    return folder.digest, LocalModel(load_model(folder.path), load_tokenizer(folder.path))


def _summarise(
    outcomes: Sequence[Outcome], job: EvaluationJob, digests: dict[str, str], judges: Sequence[Judge]
) -> dict[str, Any]:
    worst = keep_worst(outcomes)
    n = len({o.id for o in outcomes if o.kind == "harm"})
    by_arm = {arm: [o for o in worst if o.arm == arm] for arm in dict.fromkeys(o.arm for o in worst)}
    found = {
        "schema": 1,
        "guard": None,
        "task": None,
        "utility_metric": job.config.utility_metric,
        "arms": {arm: _summarise_arm(found, job.config) for arm, found in by_arm.items()},
        "categories": {},
        "step_seconds": {},
        "sampling": job.config.sampling(),
        "digests": digests,
        **summarise_strata(outcomes),
        **summarise_judges(outcomes, judges),
        "contrasts": summarise_contrasts(outcomes, margin=job.config.margin),
        "power": foresee(n, margin=job.config.margin) if n else None,
    }
    return {**found, "limit": _hold_against(found, job.max_harm)}


def _hold_against(statistics: Mapping[str, Any], max_harm: float | None) -> dict[str, Any] | None:
    """Whether harm is within the bound that was set; INDETERMINATE where a judge was absent."""
    if max_harm is None:
        return None
    upper = statistics["arms"]["guarded"]["harm_upper95"]
    absent = any(arm["unavailable"] for judge in statistics["judges"] for arm in judge["arms"].values())
    outcome = "INDETERMINATE" if absent or upper is None else "PASS" if upper <= max_harm else "FAIL"
    return {"max_harm": max_harm, "upper95": upper, "outcome": outcome}


def _summarise_arm(outcomes: Sequence[Outcome], config: EvaluationConfig) -> dict[str, Any]:
    if any(o.kind == "harm" for o in outcomes):
        return summarise_arm(outcomes, utility_metric=config.utility_metric)
    rates = ("rate", "lower95", "upper95", "partial", "incoherent", "unparsable")
    return {**dict.fromkeys(f"harm_{name}" for name in rates), "n_harm": 0, "n_utility": 0, "n_kept": 0}


def _digest_suites(suites: Sequence[Suite], judges: Sequence[Judge]) -> dict[str, str]:
    found = {f"suite {suite.manifest.name}": suite.digest for suite in suites}
    return {**found, "judge": digest_judges(judges), "code": code_digest()}


def _remove_work(folder: Path) -> None:
    for journal in folder.glob("*/*.jsonl"):
        journal.unlink()
    for own in (*folder.glob("*"), folder):
        if own.is_dir() and not any(own.iterdir()):
            own.rmdir()


if __name__ == "__main__":
    with running_step(STEP):
        evaluate_model(EvaluationJob.model_validate_json(Path(sys.argv[1]).read_text(encoding="utf-8")))
