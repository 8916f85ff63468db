"""The step: ask every arm, judge, count, report, sign, publish."""

from __future__ import annotations

import gc
import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import rfc8785
import torch

from secvec.components.evaluate_harm.arms import evaluate_arm
from secvec.components.evaluate_harm.champion import recall_champion
from secvec.components.evaluate_harm.config import EvaluationConfig
from secvec.components.evaluate_harm.contrasts import summarise_contrasts
from secvec.components.evaluate_harm.costs import price_training
from secvec.components.evaluate_harm.generation import LocalModel
from secvec.components.evaluate_harm.judge_specs import open_judges
from secvec.components.evaluate_harm.judge_statistics import summarise_judges
from secvec.components.evaluate_harm.judging import digest_judges, judge_outcomes
from secvec.components.evaluate_harm.outcomes import ArmName, Outcome
from secvec.components.evaluate_harm.power import foresee
from secvec.components.evaluate_harm.probes import list_probes
from secvec.components.evaluate_harm.results import digest_suite, read_suite, write_results
from secvec.components.evaluate_harm.shipped import (
    ShippedModel,
    check_control,
    load_shipped,
    open_model,
    read_attribution,
)
from secvec.components.evaluate_harm.statistics import ARMS, summarise_outcomes
from secvec.components.evaluate_harm.strata import keep_worst, summarise_strata
from secvec.components.evaluate_harm.suites import Suite, open_suite
from secvec.components.evaluate_harm.tracking import track_evaluation
from secvec.components.evaluate_harm.training_look import TrainingLook, learn_look
from secvec.components.shared.adapters import load_with_vector
from secvec.components.shared.artifacts import building, cache_folder, fetch, publish
from secvec.components.shared.code_digest import code_digest
from secvec.components.shared.models import BaseModelFolder, load_model, load_tokenizer, resolve_base
from secvec.components.shared.progress import report
from secvec.components.shared.provenance import attest
from secvec.components.shared.records import read_records
from secvec.components.shared.references import Reference

STEP = "evaluate_harm"


def evaluate_harm(
    *,
    base_model: str,
    dataset: Reference,
    vector: Reference,
    model: Reference,
    control: Reference | None,
    store: str,
    seed: int,
    config: EvaluationConfig,
    model_name: str = "",
) -> Reference:
    """Measure harm and utility of every arm and sign the result.

    Args:
        base_model: URI of the base model.
        dataset: The dataset artifact with the evaluation prompts.
        vector: The security vector, for the positive control.
        model: The model under test.
        control: The same fine-tune without a guard, or None.
        store: URI of the store the evaluation is published in.
        seed: Seed of everything random; greedy answers do not depend on it.
        config: How to ask and to score.
        model_name: Registered model in MLflow, whose champion the model is compared with; empty for none.

    Returns:
        The evaluation artifact: outcomes.jsonl, statistics.json, report.html, statement.json.

    Raises:
        SecvecError: No harm prompts, a prompt over the window, a model made from another base, a control
            that is none, or outputs that are not finite.
    """
    base = resolve_base(base_model)
    shipped = open_model(model, base)
    unguarded = open_model(control, base) if control else None
    if control and unguarded:
        check_control(unguarded, shipped, where=control.uri)
    folder = fetch(dataset)
    suites = [open_suite(uri) for uri in config.suites]
    judges = open_judges(config.judges, calibrations=config.calibrations)
    digests = {
        "base": base.digest,
        "vector": vector.digest,
        "model": model.digest,
        "data": dataset.digest,
        "suite": digest_suite(folder, suites),
        "judge": digest_judges(judges),
        "code": code_digest(),
    }
    work = _work_folder(digests, control=control, seed=seed)
    outcomes = _evaluate_arms(
        base,
        vector,
        shipped,
        unguarded=unguarded,
        folder=folder,
        suites=suites,
        seed=seed,
        config=config,
        work=work,
    )
    _release_memory()
    outcomes = judge_outcomes(outcomes, judges, journals=work / "judges")
    statistics = summarise_outcomes(
        keep_worst(outcomes),
        utility_metric=config.utility_metric,
        guard=str(shipped.provenance["guard"]),
        task=str(shipped.provenance["task"]),
        step_seconds=_collect_step_seconds(shipped, unguarded),
        digests=digests,
    )
    statistics |= summarise_strata(outcomes) | summarise_judges(outcomes, judges)
    statistics["sampling"] = config.sampling()
    steps = {"guarded": shipped, "unguarded": unguarded}
    statistics["cost"] = price_training(statistics["step_seconds"], _count_steps(steps), config)
    statistics["attribution"] = read_attribution(shipped)
    statistics |= _compare(outcomes, model_name, store=store, digests=digests, margin=config.margin)
    with building("evaluation", store) as scratch:
        write_results(scratch, outcomes, statistics, config=config)
        track_evaluation(scratch, statistics)
        reference = publish(scratch, kind="evaluation", store=store)
    inputs = digests | ({"control": control.digest} if control else {})
    parameters = {"seed": seed, "config": config.model_dump(mode="json")}
    attest(
        reference, step=STEP, inputs={k: v for k, v in inputs.items() if k != "code"}, parameters=parameters
    )
    shutil.rmtree(work, ignore_errors=True)
    return reference


def _compare(
    outcomes: Sequence[Outcome], model_name: str, *, store: str, digests: Mapping[str, str], margin: float
) -> dict[str, Any]:
    """What the model is worse or no worse than, and what so many prompts could show at all."""
    champion = recall_champion(model_name, store=store, digests=digests)
    return {
        "contrasts": summarise_contrasts(outcomes, champion=champion.outcomes, margin=margin),
        "champion": {"version": champion.version, "reason": champion.reason},
        "power": foresee(len({o.id for o in outcomes if o.kind == "harm"}), margin=margin),
    }


def _evaluate_arms(
    base: BaseModelFolder,
    vector: Reference,
    shipped: ShippedModel,
    *,
    unguarded: ShippedModel | None,
    folder: Path,
    suites: Sequence[Suite],
    seed: int,
    config: EvaluationConfig,
    work: Path,
) -> list[Outcome]:
    """Ask every arm with the tokenizer that ships with it, holding one model in memory at a time."""
    suite, look = read_suite(folder, suites), _learn_look(folder, config)
    harm = {probe.record.id for probe in list_probes(suite, config) if probe.kind == "harm"}
    report("power", **foresee(len(harm), margin=config.margin))
    loaders: dict[ArmName, Callable[[], tuple[Any, Any]]] = {
        "base": lambda: (load_model(base.path), load_tokenizer(base.path)),
        "guarded": lambda: load_shipped(shipped),
        "vector_active": lambda: (
            load_with_vector(base.path, vector, base_digest=base.digest),
            load_tokenizer(base.path),
        ),
    }
    if unguarded:
        loaders["unguarded"] = lambda: load_shipped(unguarded)
    outcomes: list[Outcome] = []
    for arm in (arm for arm in ARMS if arm in loaders):
        _release_memory()
        outcomes += evaluate_arm(
            arm, LocalModel(*loaders[arm]()), suite, config, look=look, seed=seed, journals=work / arm
        )
    return outcomes


def _learn_look(folder: Path, config: EvaluationConfig) -> TrainingLook:
    if not {"dressed", "few_shot"} & set(config.attacks):
        return TrainingLook()
    return learn_look(read_records(folder / "training.jsonl"))


def _work_folder(digests: Mapping[str, str], *, control: Reference | None, seed: int) -> Path:
    """Folder of this evaluation's journals: the same one for the same models, prompts, code and seed only."""
    inputs = {**digests, "control": control.digest if control else "", "seed": str(seed)}
    return cache_folder() / "evaluations" / hashlib.sha256(rfc8785.dumps(inputs)).hexdigest()


def _release_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _collect_step_seconds(shipped: ShippedModel, unguarded: ShippedModel | None) -> dict[str, float]:
    arms = {"guarded": shipped, "unguarded": unguarded}
    return {arm: model.step_seconds for arm, model in arms.items() if model and model.step_seconds}


def _count_steps(arms: Mapping[str, ShippedModel | None]) -> dict[str, int]:
    """Training steps of every arm whose provenance tells them."""
    found = {arm: model.provenance.get("steps") for arm, model in arms.items() if model}
    return {arm: steps for arm, steps in found.items() if isinstance(steps, int)}
