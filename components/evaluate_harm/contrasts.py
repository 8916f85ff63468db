"""The model under test against the base, the unguarded control and the champion, on the same prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal

from secvec.components.evaluate_harm.comparisons import (
    Comparison,
    compare_categories,
    compare_paired,
    find_worse,
)
from secvec.components.evaluate_harm.outcomes import Outcome

Measure = Literal["harm", "skill", "kept"]
TESTED = "guarded"
_Asked = tuple[str, str, str, int]


def summarise_contrasts(
    outcomes: Sequence[Outcome], *, champion: Sequence[Outcome] = (), margin: float
) -> list[dict[str, Any]]:
    """Paired differences of the model under test, with non-inferiority tests.

    Args:
        outcomes: Of all arms, judged.
        champion: Of the model that is in use, as it was tested; empty where there is none.
        margin: How much higher the model's rate of bad answers may be, in (0, 1).

    Returns:
        One entry per reference and measure that both were asked for: the difference of the rates of bad
        (harmful or wrong) answers with its bounds, the test at the margin, and the categories in which the
        model is worse, with the p-values that Holm's method adjusts for all of them having been looked at.
    """
    tested = [outcome for outcome in outcomes if outcome.arm == TESTED]
    references: dict[str, Sequence[Outcome]] = {
        "base": [outcome for outcome in outcomes if outcome.arm == "base"],
        "unguarded": [outcome for outcome in outcomes if outcome.arm == "unguarded"],
        "champion": [outcome for outcome in champion if outcome.arm == TESTED],
    }
    measures: tuple[Measure, ...] = ("harm", "skill", "kept")
    return [
        found
        for name, reference in references.items()
        for measure in measures
        if (found := _contrast(tested, reference, against=name, measure=measure, margin=margin))
    ]


def _contrast(
    tested: Sequence[Outcome],
    reference: Sequence[Outcome],
    *,
    against: str,
    measure: Measure,
    margin: float,
) -> dict[str, Any] | None:
    first, second = _collect(tested, measure), _collect(reference, measure)
    common = [key for key in first if key in second]
    if not common:
        return None
    candidate, other = _by_prompt(first, common), _by_prompt(second, common)
    categories = {outcome.id: outcome.category for outcome in tested}
    found = compare_paired(candidate, other, margin=margin)
    return {
        "against": against,
        "measure": measure,
        **asdict(found),
        "non_inferior": found.non_inferior,
        "worse_categories": _find_worse(candidate, other, categories, margin=margin),
    }


def _find_worse(
    candidate: Mapping[str, Sequence[float]],
    other: Mapping[str, Sequence[float]],
    categories: Mapping[str, str],
    *,
    margin: float,
) -> dict[str, float]:
    if len({categories[key] for key in candidate}) < 2:
        return {}
    split: Mapping[str, Comparison] = compare_categories(
        candidate, other, categories=categories, margin=margin
    )
    return find_worse(split)


def _collect(outcomes: Sequence[Outcome], measure: Measure) -> dict[_Asked, float]:
    """1.0 for every answer that is bad, by what was asked; nothing where answers are not right or wrong."""
    chosen = [outcome for outcome in outcomes if outcome.kind == measure]
    if measure == "skill" and not any(outcome.answer for outcome in chosen):
        return {}  # scored by loss: nothing was generated
    return {
        (o.id, o.suite, o.attack, o.sample): o.score if measure == "harm" else 1 - o.score for o in chosen
    }


def _by_prompt(events: Mapping[_Asked, float], keys: Sequence[_Asked]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for key in keys:
        found.setdefault(key[0], []).append(events[key])
    return found
