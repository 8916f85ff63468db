"""What every judge found, how far its finding can be believed, and how far the judges agree."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from secvec.components.evaluate_harm.bounds import bound_clustered_rate, count_effective
from secvec.components.evaluate_harm.calibration import Calibration
from secvec.components.evaluate_harm.correction import correct_rate
from secvec.components.evaluate_harm.judgements import Judge, Judgement
from secvec.components.evaluate_harm.outcomes import Outcome

_REASONS = 3


def summarise_judges(outcomes: Sequence[Outcome], judges: Sequence[Judge]) -> dict[str, Any]:
    """What ``statistics.json`` says of the judges.

    The unit here is the answer, for it is answers that a judge was calibrated on; answers to one prompt are
    taken as one cluster.

    Args:
        outcomes: Of all arms, judged.
        judges: Of the run, the deciding one first.

    Returns:
        ``judges``: of every judge, in order, its name, its digest, its calibration and per arm its rate of
        harm with bounds, the rate corrected for the judge's errors with theirs, and how many answers were
        unparsable or not judged;
        ``judge_agreement``: per pair of judges the share of answers on whose harm they agree, and kappa.
    """
    harm = [outcome for outcome in outcomes if outcome.kind == "harm"]
    return {
        "judges": [_summarise(judge, harm) for judge in judges],
        "judge_agreement": [
            _compare(first.name, second.name, harm) for first, second in combinations(judges, 2)
        ],
    }


def _summarise(judge: Judge, harm: Sequence[Outcome]) -> dict[str, Any]:
    record = judge.calibration
    arms = dict.fromkeys(outcome.arm for outcome in harm)
    reasons = (
        outcome.remarks[judge.name]
        for outcome in harm
        if outcome.findings[judge.name] in ("unparsable", "unavailable") and judge.name in outcome.remarks
    )
    return {
        "name": judge.name,
        "digest": judge.digest,
        "calibration": _describe(record) if record else None,
        "arms": {
            arm: _rate([outcome for outcome in harm if outcome.arm == arm], judge.name, record)
            for arm in arms
        },
        "reasons": list(dict.fromkeys(reasons))[:_REASONS],
    }


def _describe(record: Calibration) -> dict[str, Any]:
    figures = {name: getattr(record, name) for name in ("sensitivity", "specificity", "agreement", "kappa")}
    return record.model_dump(mode="json", exclude={"judge"}) | figures


def _rate(outcomes: Sequence[Outcome], name: str, record: Calibration | None) -> dict[str, Any]:
    """One judge on one arm; a rate of nothing is None."""
    findings = [outcome.findings[name] for outcome in outcomes]
    counts: dict[str, Any] = {
        "n": len(findings),
        "unparsable": findings.count("unparsable"),
        "unavailable": findings.count("unavailable"),
    }
    shares = _share_by_prompt(outcomes, name)
    if not shares:
        return {**counts, "harm_rate": None, "harm_lower95": None, "harm_upper95": None, "corrected": None}
    samples = min(len(own) for own in shares.values())
    means = [float(np.mean(own)) for own in shares.values()]
    lower, upper = bound_clustered_rate(means, samples=samples)
    rate = float(np.mean(means))
    return {
        **counts,
        "harm_rate": rate,
        "harm_lower95": lower,
        "harm_upper95": upper,
        "corrected": _correct(means, samples=samples, record=record) if record else None,
    }


def _correct(means: Sequence[float], *, samples: int, record: Calibration) -> dict[str, float]:
    values, rate = np.asarray(means), float(np.mean(means))
    events = int(min(np.count_nonzero(values > 0), np.count_nonzero(values < 1)))
    n = count_effective(values, single=rate * (1 - rate), samples=samples, events=events)
    found = correct_rate(round(rate * n, 9), n, record)
    return {"rate": found.rate, "lower95": found.lower95, "upper95": found.upper95}


def _share_by_prompt(outcomes: Iterable[Outcome], name: str) -> dict[str, list[bool]]:
    """Per prompt whether each of its answers is harmful, without those that were not judged."""
    shares: dict[str, list[bool]] = {}
    for outcome in outcomes:
        harmful = is_harmful(outcome.findings, name)
        if harmful is not None:
            shares.setdefault(outcome.id, []).append(harmful)
    return shares


def is_harmful(findings: Mapping[str, Any], name: str) -> bool | None:
    """Whether a judge called an answer harmful; None where it was not to be had."""
    return Judgement(finding=findings[name]).harmful


def _compare(first: str, second: str, harm: Sequence[Outcome]) -> dict[str, Any]:
    pairs = [(is_harmful(o.findings, first), is_harmful(o.findings, second)) for o in harm]
    both = [(a, b) for a, b in pairs if a is not None and b is not None]
    found: dict[str, Any] = {"judges": [first, second], "n": len(both), "agreement": None, "kappa": None}
    if both:
        same = sum(a == b for a, b in both) / len(both)
        one, other = (sum(column) / len(both) for column in zip(*both, strict=True))
        chance = one * other + (1 - one) * (1 - other)
        found["agreement"] = same
        # of two judges that say the same of everything, chance explains it all
        found["kappa"] = (same - chance) / (1 - chance) if chance < 1 else None
    return found
