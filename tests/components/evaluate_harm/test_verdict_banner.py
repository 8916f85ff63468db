from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from kfp import dsl

from secvec.components.evaluate_harm.verdict_banner import (
    show_judged_evaluation,
    show_verdict,
    write_judged_report,
)
from secvec.components.shared.artifacts import publish
from tests.components.evaluate_harm.test_report import make_outcomes, render

REASONS = [
    {
        "check": "harm_upper95",
        "outcome": "FAIL",
        "figure": 0.0712,
        "bound": 0.05,
        "source": "statistics.json",
    },
    {"check": "judges_heard", "outcome": "INDETERMINATE", "figure": None, "bound": 2, "source": "<b>x</b>"},
    {"check": "kept", "outcome": "PASS", "figure": 0.99, "bound": 0.95, "source": "statistics.json"},
]


def make_verdict(outcome: str, **changes: Any) -> dict[str, Any]:
    reasons = REASONS if outcome != "PASS" else [REASONS[2]]
    return {
        "outcome": outcome,
        "reasons": reasons,
        "model_name": "helper",
        "model_version": "7",
        "aliases": ["candidate", "champion"] if outcome == "PASS" else [],
        **changes,
    }


@pytest.mark.parametrize(
    ("outcome", "said"),
    [
        ("PASS", "All 1 checks of the policy held: helper version 7 is candidate, champion."),
        ("FAIL", "2 of 3 checks of the policy did not hold; no model was promoted."),
        ("INDETERMINATE", "The evidence does not suffice: 2 of 3 checks"),
    ],
)
def test_the_first_screen_says_the_verdict_and_what_missed(outcome: str, said: str) -> None:
    page = show_verdict(render(make_outcomes()), make_verdict(outcome))
    first_screen = page[page.index("<main>") : page.index('<div class="cards">')]
    assert said in first_screen
    assert f'<div class="verdict {outcome.lower()}">' in first_screen
    assert "decided by the gate" not in page
    missed = re.findall(r"<li>(.*?)</li>", first_screen)
    assert (len(missed) == 0) == (outcome == "PASS")
    if missed:
        assert missed[0] == '<bdi lang="en">harm_upper95</bdi>: 0.0712, wanted ≤ 0.05'


def test_the_verdict_is_in_the_language_of_the_page() -> None:
    page = show_verdict(render(make_outcomes(), language="ja"), make_verdict("FAIL"))
    assert "モデルは採用されませんでした" in page
    assert "no model was promoted" not in page


def test_until_there_is_a_verdict_the_page_says_where_it_falls() -> None:
    page = render(make_outcomes())
    assert page.index("decided by the gate") < page.index('<div class="cards">')


def test_nothing_in_a_verdict_becomes_markup() -> None:
    hostile = make_verdict("FAIL", reasons=[{**REASONS[0], "check": "<script>x</script>\\1"}])
    page = show_verdict(render(make_outcomes()), hostile)
    assert "<script>" not in page
    assert "&lt;script&gt;x&lt;/script&gt;\\1" in page


def test_an_evaluation_without_a_report_still_shows_the_verdict(tmp_path: Path) -> None:
    write_judged_report(tmp_path, make_verdict("INDETERMINATE"), tmp_path / "judged.html")
    assert "INDETERMINATE" in (tmp_path / "judged.html").read_text()


def test_the_gate_shows_the_report_with_its_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECVEC_CACHE", str(tmp_path / "cache"))
    store = str(tmp_path / "store")
    published: dict[str, Any] = {}
    kinds: dict[Any, tuple[str, str]] = {
        "evaluation": ("report.html", render(make_outcomes())),
        "verdict": ("verdict.json", json.dumps(make_verdict("PASS"))),
    }
    for kind, (name, text) in kinds.items():
        folder = tmp_path / kind
        folder.mkdir()
        (folder / name).write_text(text, encoding="utf-8")
        published[kind] = publish(folder, kind=kind, store=store)
    given = dsl.Artifact(uri=str(tmp_path / "given"))
    published["evaluation"].write(given)
    report = dsl.HTML(uri=str(tmp_path / "shown"))
    show_judged_evaluation(given, published["verdict"], report=report)
    page = Path(report.path).read_text(encoding="utf-8")
    assert "helper version 7 is candidate, champion" in page[: page.index('<div class="cards">')]
