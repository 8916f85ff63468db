"""The offline judge on human labels: trained on one model's answers, tested on another's, both ways.

Run as ``python tests/benchmarks/judge_across_models.py`` with XSTest completions in
``$SECVEC_SHARED_DATA/xstest``. ``--write`` fits the weights on all answers and writes them, with the
calibration record, into the package: only needed after a change of cues. The weights are a maximum a
posteriori estimate, whose prior lies at the weights set by hand in cues.yaml.

What "trained on one" covers: the weights. The cues themselves were written with both models' answers at hand.
Hence a third look: answers that the authors wrote in styles of other models, in four parts, each written
before the judge had been run on it and while the cues knew only the parts before; see `OTHER_STYLES`.
"""

from __future__ import annotations

import csv
import json
import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import minimize

from secvec.components.evaluate_harm import judge
from secvec.components.evaluate_harm.calibration import Calibration, calibrate
from secvec.components.evaluate_harm.cues import find_cues, load_lexicon
from secvec.components.evaluate_harm.judgements import HARMFUL_LABELS, Exchange, Judge
from secvec.components.evaluate_harm.keywords import KeywordJudge
from secvec.components.evaluate_harm.reading import normalise, read_answer

MODELS = ("gpt4", "llama2orig")
REFERENCE_SET = "XSTest v2 completions, gpt4 and llama2orig, final_label (CC-BY-4.0)"
# Precision of the prior: at 5, a weight moves by one when a handful of answers ask for it.
PRECISION = 5.0
PACKAGE = Path(judge.__file__).parent
OTHER_STYLES = Path(__file__).parents[1] / "components" / "evaluate_harm" / "answers_in_other_styles.csv"

Rows = list[dict[str, str]]


def read_completions(model: str) -> Rows:
    """Human-labelled completions of one model.

    Raises:
        FileNotFoundError: The set is not there.
    """
    beside = Path(__file__).parents[3] / "shared" / "data"
    folder = Path(os.environ.get("SECVEC_SHARED_DATA", beside)) / "xstest"
    with (folder / f"xstest_v2_completions_{model}.csv").open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def fit_weights(rows: Rows, *, precision: float = PRECISION) -> dict[str, Any]:
    """Fit the weights of all cues to human labels (declined: not full compliance)."""
    lexicon = load_lexicon()
    names = sorted(_measure(rows[0]))
    prior = np.array([*(lexicon.weights.get(name, 0.0) for name in names), lexicon.intercept])
    matrix = np.array([[*map(_measure(row).__getitem__, names), 1.0] for row in rows])
    declined = np.array([row["final_label"] != "1_full_compliance" for row in rows], float)

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        logits = matrix @ weights
        rest = weights - prior
        value = np.sum(np.logaddexp(0, logits) - declined * logits) + precision / 2 * rest @ rest
        return float(value), matrix.T @ (1 / (1 + np.exp(-logits)) - declined) + precision * rest

    found = minimize(loss, prior, jac=True, method="L-BFGS-B").x
    rounded = [round(float(weight), 3) for weight in found]
    weights = {name: weight for name, weight in zip(names, rounded, strict=False) if weight}
    return {"weights": weights, "intercept": rounded[-1]}


def compare_with_people(rows: Rows, weights: dict[str, Any]) -> tuple[Calibration, list[str]]:
    """Label rows with given weights; agreement on compliance, and the labels."""
    judge.load_weights.cache_clear()
    shipped = judge.load_weights()
    shipped.clear()
    shipped.update(weights)
    labels: list[str] = [judge.classify(row["prompt"], row["completion"]) for row in rows]
    judge.load_weights.cache_clear()
    human = [row["final_label"] == "1_full_compliance" for row in rows]
    found = [label == "compliance" for label in labels]
    return calibrate(human, found, judge="sha256:0", reference_set=REFERENCE_SET, date="2025-01-01"), labels


def compare_other_styles() -> dict[str, tuple[float, float, int]]:
    """Agreement of judge and authors on what complies and on what is harm, and all answers, by part."""
    found: dict[str, list[tuple[bool, bool]]] = {}
    with OTHER_STYLES.open(newline="", encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            label = judge.classify(row["prompt"], row["completion"])
            complies = (label == "compliance") == (row["written_as"] == "compliance")
            harm = (label in HARMFUL_LABELS) == (row["written_as"] in HARMFUL_LABELS)
            found.setdefault(row["part"], []).append((complies, harm))
    return {
        part: (sum(a for a, _ in pairs) / len(pairs), sum(b for _, b in pairs) / len(pairs), len(pairs))
        for part, pairs in found.items()
    }


def time_thousand(rows: Rows) -> float:
    """Seconds to label 1,000 answers."""
    started = time.process_time()
    for row in rows:
        judge.classify(row["prompt"], row["completion"])
    return (time.process_time() - started) * 1000 / len(rows)


def write_package(rows: Rows) -> None:
    """Fit on everything, and write weights and calibration record beside the judge."""
    target = PACKAGE / "judge_weights.json"
    target.write_text(json.dumps(fit_weights(rows), indent=1, sort_keys=True) + "\n")
    for cached in (judge.load_weights, judge.digest_rules):
        cached.cache_clear()
    records = [calibrate_judge(own, rows).model_dump() for own in (judge.OfflineJudge(), KeywordJudge())]
    text = json.dumps(records, indent=1, sort_keys=True)
    (PACKAGE / "judge_calibrations.json").write_text(text + "\n")


def calibrate_judge(own: Judge, rows: Rows) -> Calibration:
    """A judge's counts on human labels; half an answer is harm, as it is in a run."""
    findings = own.judge(Exchange(row["prompt"], row["completion"]) for row in rows)
    return calibrate(
        [row["final_label"] != "2_full_refusal" for row in rows],
        [finding.harmful is True for finding in findings],
        judge=own.digest,
        reference_set=REFERENCE_SET,
        date=datetime.now(tz=UTC).strftime("%Y-%m-%d"),
    )


def _measure(row: dict[str, str]) -> dict[str, float]:
    read = read_answer(row["completion"])
    return find_cues(normalise(row["prompt"]), read.sentences, items=read.items)


def main() -> None:
    """Print agreement both ways, within all, and the time."""
    sets = {model: read_completions(model) for model in MODELS}
    everything = [row for rows in sets.values() for row in rows]
    if "--write" in sys.argv[1:]:
        write_package(everything)
    by_hand = {"weights": dict(load_lexicon().weights), "intercept": load_lexicon().intercept}
    for tested, rows in sets.items():
        others = [row for model, own in sets.items() if model != tested for row in own]
        for name, weights in (("trained on the other", fit_weights(others)), ("weights by hand", by_hand)):
            found, labels = compare_with_people(rows, weights)
            refused = [row["final_label"] == "2_full_refusal" for row in rows]
            wrong = sum(label in HARMFUL_LABELS for label, was in zip(labels, refused, strict=True) if was)
            print(
                f"{tested:12} {name:22} agreement {found.agreement:.4f} kappa {found.kappa:.3f} n {found.n}; "
                "full refusals called harmful "
                f"{wrong}/{sum(refused)}, incoherent {labels.count('incoherent')}"
            )
    shipped, _ = compare_with_people(everything, json.loads((PACKAGE / "judge_weights.json").read_text()))
    print(
        f"as shipped, on what it was fitted to: agreement {shipped.agreement:.4f} kappa {shipped.kappa:.3f}"
    )
    for part, (complies, harm, n) in compare_other_styles().items():
        print(f"other styles, {part:8} agreement on compliance {complies:.3f}, on harm {harm:.3f}, n {n}")
    print(f"{time_thousand(everything):.2f} s per 1,000 answers on one core")


if __name__ == "__main__":
    main()
