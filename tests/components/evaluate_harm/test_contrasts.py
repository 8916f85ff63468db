"""Paired differences against base, control and champion, as the report and the statistics hold them."""

from __future__ import annotations

from typing import Any

import pytest

from secvec.components.evaluate_harm.contrasts import summarise_contrasts
from secvec.components.evaluate_harm.outcomes import Outcome


def make(arm: Any, bad: int, n: int = 200, kind: Any = "harm", **fields: Any) -> list[Outcome]:
    """`n` answers of which the first `bad` are bad."""
    defaults: dict[str, Any] = {"category": "", "language": "", "prompt": "p", "answer": "a", "label": None}
    score = (lambda i: float(i < bad)) if kind == "harm" else (lambda i: float(i >= bad))
    return [
        Outcome(arm=arm, id=f"{kind}{i}", kind=kind, score=score(i), **{**defaults, **fields})
        for i in range(n)
    ]


def find(found: list[dict[str, Any]], against: str, measure: str) -> dict[str, Any]:
    (one,) = [entry for entry in found if (entry["against"], entry["measure"]) == (against, measure)]
    return one


def test_every_reference_and_measure_that_both_were_asked() -> None:
    outcomes = [*make("guarded", 2), *make("base", 0), *make("unguarded", 180)]
    outcomes += [*make("guarded", 10, kind="skill"), *make("base", 200, kind="skill")]
    found = summarise_contrasts(outcomes, champion=make("guarded", 2), margin=0.05)
    assert [(one["against"], one["measure"]) for one in found] == [
        ("base", "harm"),
        ("base", "skill"),
        ("unguarded", "harm"),
        ("champion", "harm"),
    ]
    base = find(found, "base", "harm")
    assert base["difference"] == 0.01
    assert base["lower95"] < 0.01 < base["upper95"] < 0.05
    assert base["non_inferior"]
    assert find(found, "base", "skill")["difference"] == -0.95
    assert find(found, "champion", "harm")["difference"] == 0.0


@pytest.mark.parametrize(("bad", "passes"), [(0, True), (2, True), (8, False), (30, False)])
def test_a_worse_model_is_not_shown_to_be_no_worse(bad: int, passes: bool) -> None:
    found = summarise_contrasts([*make("guarded", bad), *make("base", 0)], margin=0.05)
    assert find(found, "base", "harm")["non_inferior"] == passes


def test_only_what_both_were_asked_is_compared() -> None:
    champion = [*make("guarded", 0, n=150), *make("guarded", 150, n=150, attack="prefill")]
    found = summarise_contrasts(make("guarded", 0), champion=champion, margin=0.05)
    assert (find(found, "champion", "harm")["n_prompts"], find(found, "champion", "harm")["difference"]) == (
        150,
        0,
    )


def test_answers_to_one_prompt_are_one_draw() -> None:
    guarded = [o for sample in range(5) for o in make("guarded", 20, n=40, sample=sample)]
    base = [o for sample in range(5) for o in make("base", 0, n=40, sample=sample)]
    found = find(summarise_contrasts([*guarded, *base], margin=0.05), "base", "harm")
    assert (found["n_prompts"], found["n_effective"], found["difference"]) == (40, 40, 0.5)


def test_the_category_in_which_a_model_is_worse_is_named() -> None:
    outcomes = [
        *make("guarded", 12, n=100, category="theft"),
        *make("base", 0, n=100, category="theft"),
    ]
    for arm in ("guarded", "base"):
        outcomes += [Outcome(**{**vars(o), "id": f"f{o.id}"}) for o in make(arm, 0, n=100, category="fraud")]
    found = find(summarise_contrasts(outcomes, margin=0.05), "base", "harm")
    assert list(found["worse_categories"]) == ["theft"]
    assert found["worse_categories"]["theft"] < 0.01


def test_loss_has_no_right_and_wrong() -> None:
    outcomes = [*make("guarded", 0, kind="skill", answer=""), *make("base", 0, kind="skill", answer="")]
    assert summarise_contrasts(outcomes, margin=0.05) == []
