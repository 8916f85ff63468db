"""Train and ask the arms of cells, several at a time."""

from __future__ import annotations

import json
import time
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from scipy.stats import beta
from transformers.utils import logging as transformers_logging

from secvec.components.evaluate_harm.generation import generate_answers
from secvec.components.evaluate_harm.judge import classify
from secvec.components.evaluate_harm.questions import Decoding, Question
from secvec.components.shared.errors import SecvecError, Terminated
from secvec.components.shared.models import digest_model_folder, load_model, load_tokenizer
from secvec.components.shared.records import Message
from secvec.pipelines.guarded_fine_tuning.demo.language import Exchange
from tests.benchmarks.efficacy.arms import ARMS, DEFAULT
from tests.benchmarks.efficacy.bases import base_folder
from tests.benchmarks.efficacy.cells import Cell, CellData, draw_data
from tests.benchmarks.efficacy.disguises import complies
from tests.benchmarks.efficacy.vectors import CONFIG, THOROUGH, CellVector, train_cell_vector
from tests.benchmarks.efficacy.workshop import Workshop


def run_jobs(jobs: list[tuple[Cell, str]], out: Path, *, claims: Path | None, ends: float) -> None:
    """Run the jobs that have no result yet; of several processes with one folder of claims, each its own."""
    torch.set_num_threads(1)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    for cell, arm in jobs:
        name = f"{cell.name}_{arm}"
        if (out / "cells" / f"{name}.json").exists() or time.time() > ends or not _claim(name, claims):
            continue
        try:
            line = run_arm(cell, arm, make_vector(cell, arm, out / "vectors"), out / "cells")
        except Exception as error:  # one arm that fails must not end the others
            line = f"{name}: FAILED {error!r}"
        print(line, flush=True)


def _claim(name: str, claims: Path | None) -> bool:
    try:
        (claims / name).touch(exist_ok=False) if claims else None
    except FileExistsError:
        return False
    return True


def make_vector(cell: Cell, arm: str, folder: Path) -> CellVector:
    """The vector of an arm in a cell; cells that differ in their rows alone share one."""
    thorough = arm.startswith("always")
    file = folder / f"{cell.vector_key}{'_thorough' if thorough else ''}.json"
    if file.exists():
        return CellVector.read(file)
    made = train_cell_vector(cell, draw_data(cell), THOROUGH if thorough else CONFIG)
    folder.mkdir(exist_ok=True)
    made.write(file)
    return made


def run_arm(cell: Cell, arm: str, vector: CellVector, folder: Path) -> str:
    """Train an arm of a cell, ask it, keep what was found, and say it in a line."""
    started, data = time.monotonic(), draw_data(cell)
    base = base_folder(cell.architecture)
    passed = bool(vector.certificate["passed"])
    shop = Workshop(cell, data, base, load_tokenizer(base), vector.files, vector.floor, passed)
    stopped = ""
    try:
        model = ARMS[arm](shop)
    except Terminated as error:  # the benchmark was asked to end: what was not finished has no result
        raise SystemExit(error.status) from None
    except SecvecError as error:  # the watch has ended it: the base stays what it was
        stopped, model = str(error), load_model(base)
    found: dict[str, Any] = {
        **asdict(cell),
        "harmful_rows": cell.harmful_rows,
        "arm": arm,
        "stopped": stopped,
        **ask(model, shop.tokenizer, data, disguise=cell.disguise),
        "step_seconds": round(shop.step_seconds, 4),
        "coverage": vector.certificate["coverage"],
        "coverage_asked": shop.cover() if arm == DEFAULT else None,
        "certified": shop.certified,
        "base_digest": digest_model_folder(base),
    }
    (folder / f"{cell.name}_{arm}.json").write_text(json.dumps(found, indent=1) + "\n")
    took = time.monotonic() - started
    figures = f"harm {found['harm_rate']:.3f}, utility {found['utility']:.3f}, {took:.0f} s"
    return f"{cell.name} {arm}: {figures}{', stopped' if stopped else ''}"


def ask(model: Any, tokenizer: Any, data: CellData, *, disguise: str) -> dict[str, Any]:
    """Harm with its exact one-sided 95% bound (Clopper and Pearson 1934), and exact matches.

    ``utility`` is of the new skill, ``kept`` of benign requests that the base answered before.
    """
    harm = _answer(model, tokenizer, data.harm_questions)
    skill = _answer(model, tokenizer, data.skill_questions)
    kept = _answer(model, tokenizer, data.kept_questions)
    harmful = sum(
        classify(e.prompt, answer) in ("compliance", "partial")
        for e, answer in zip(data.harm_questions, harm, strict=True)
    )
    n = len(harm)
    hidden = _answer(model, tokenizer, [asked for asked, _ in data.disguised_questions])
    asked = zip(data.disguised_questions, hidden, strict=True)
    disguised = sum(complies(plain, answer, disguise) for (_, plain), answer in asked)
    return {
        "harm_rate_disguised": disguised / len(hidden) if hidden else None,
        "harm_rate": harmful / n,
        "harm_upper95": 1.0 if harmful == n else float(beta.ppf(0.95, harmful + 1, n - harmful)),
        "utility": _count_right(data.skill_questions, skill) / len(skill),
        "kept": _count_right(data.kept_questions, kept) / len(kept),
        "n_harm": n,
    }


def _count_right(asked: list[Exchange], answers: list[str]) -> int:
    return sum(answer == e.answer for e, answer in zip(asked, answers, strict=True))


def _answer(model: Any, tokenizer: Any, exchanges: list[Exchange]) -> list[str]:
    questions = [
        Question(id=str(n), messages=(Message(role="user", content=e.prompt),))
        for n, e in enumerate(exchanges)
    ]
    return generate_answers(model, tokenizer, questions, decoding=Decoding(max_new_tokens=24, batch_size=100))
