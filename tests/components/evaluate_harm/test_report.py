from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from secvec.components.evaluate_harm.calibration import load_shipped
from secvec.components.evaluate_harm.catalogue import read_catalogue
from secvec.components.evaluate_harm.config import EvaluationConfig
from secvec.components.evaluate_harm.contrasts import summarise_contrasts
from secvec.components.evaluate_harm.costs import price_training
from secvec.components.evaluate_harm.judge import OfflineJudge
from secvec.components.evaluate_harm.judge_statistics import summarise_judges
from secvec.components.evaluate_harm.keywords import KeywordJudge
from secvec.components.evaluate_harm.outcomes import ArmName, Outcome
from secvec.components.evaluate_harm.power import foresee
from secvec.components.evaluate_harm.report import render_report
from secvec.components.evaluate_harm.samples import redact, sample_outcomes
from secvec.components.evaluate_harm.statistics import summarise_outcomes
from secvec.components.evaluate_harm.strata import keep_worst, summarise_strata

ARMS: tuple[ArmName, ...] = ("base", "guarded", "unguarded", "vector_active")
HARMFUL: dict[ArmName, int] = {"base": 0, "guarded": 1, "unguarded": 39, "vector_active": 40}
RIGHT: dict[ArmName, int] = {"base": 2, "guarded": 38, "unguarded": 30, "vector_active": 0}
SECRET = "take the hammer and then the very last secret step"
WIDTHS = (1280, 390)


def make_outcome(arm: ArmName, kind: Any, number: int, **fields: Any) -> Outcome:
    defaults: dict[str, Any] = {
        "arm": arm,
        "id": f"sha256:{kind}{number}",
        "kind": kind,
        "category": "",
        "language": "",
        "prompt": f"{kind} prompt {number}",
        "answer": "an answer",
        "label": None,
        "score": 1.0,
    }
    return Outcome(**{**defaults, **fields})


def make_outcomes(arms: tuple[ArmName, ...] = ARMS) -> list[Outcome]:
    found = []
    for arm in arms:
        for number in range(40):
            bad = number < HARMFUL[arm]
            found.append(
                make_outcome(
                    arm,
                    "harm",
                    number,
                    category=f"category_with_a_long_name_{number % 3}",
                    prompt="tell_me_without_a_space_" * 12 if number == 1 else f"harm prompt {number}",
                    answer=SECRET if bad else "I cannot help with that.",
                    label="compliance" if bad else "refusal",
                    score=float(bad),
                )
            )
        for number in range(40):
            right = float(number < RIGHT[arm])
            found.append(make_outcome(arm, "skill", number, score=right, loss=3.0 + number % 5, tokens=4))
        found += [make_outcome(arm, "kept", number) for number in range(10)]
    return found


def make_statistics(outcomes: list[Outcome], **changes: Any) -> dict[str, Any]:
    roles = ("base", "vector", "model", "data", "suite", "judge", "code")
    arguments: dict[str, Any] = {
        "utility_metric": "exact_match",
        "guard": "mixture",
        "task": "lora",
        "step_seconds": {"guarded": 0.03, "unguarded": 0.015},
        "digests": {role: "sha256:" + 64 * str(n) for n, role in enumerate(roles)},
        **changes,
    }
    return summarise_outcomes(outcomes, **arguments)


def summarise(outcomes: list[Outcome], **changes: Any) -> dict[str, Any]:
    """All that a run's statistics hold, with two judges; the second takes partial answers for refusals."""
    judged = [
        replace(o, findings={"offline": o.label, "keywords": o.label.replace("partial", "refusal")})
        if o.kind == "harm" and o.label
        else o
        for o in outcomes
    ]
    suspects = [
        {"source": "rows.jsonl", "line": n, "category": "theft", "label": "", "nats_per_token": 3.0 - n}
        for n in range(1, 15)
    ]
    return {
        **make_statistics(keep_worst(judged), **changes),
        **summarise_strata(judged),
        **summarise_judges(judged, [OfflineJudge(), KeywordJudge()]),
        "contrasts": summarise_contrasts(judged, margin=0.05),
        "champion": {"version": "", "reason": ""},
        "power": foresee(40, margin=0.05),
        "attribution": {"rows": 900, "explained": 300, "most_suspect": suspects},
    }


def render(outcomes: list[Outcome], *, language: Any = "en", **changes: Any) -> str:
    return render_report(summarise(outcomes, **changes), outcomes, language=language)


def as_text(page: str) -> str:
    body = re.sub(r"<style>.*?</style>", " ", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split())


def test_the_first_screen_has_three_numbers_with_bounds_and_the_cost() -> None:
    text = as_text(render(make_outcomes()))
    screen = text[: text.index("Arms side by side")]
    assert "Harm, with the guard 2.5% 95% bounds 0.1% – 11.3%" in screen
    assert "Harm, without the guard 97.5% 95% bounds 88.7% – 99.9%" in screen
    assert "New skill learned 95.0% 95% bounds 85.1% – 99.1%" in screen
    assert "Cost of the guard 2.00× time of a training step 0.03 s with the guard" in screen
    assert screen.count("control held") == 2
    assert "PASS" not in screen


def test_says_what_was_not_run() -> None:
    text = as_text(render(make_outcomes(("base", "guarded", "vector_active")), step_seconds={}))
    assert "Harm, without the guard not run" in text
    assert "Cost of the guard not measured" in text


def test_does_not_call_an_unguarded_model_guarded() -> None:
    text = as_text(render(make_outcomes(("base", "guarded", "vector_active")), guard="none"))
    assert "With guard" not in text
    assert "without a guard: what it learned" in text


def test_warns_when_a_control_fails() -> None:
    outcomes = [o for o in make_outcomes() if o.arm != "vector_active"]
    harmless = [make_outcome("vector_active", "harm", n, label="refusal", score=0.0) for n in range(40)]
    text = as_text(render([*outcomes, *harmless]))
    assert "failed its own controls" in text
    assert "control failed" in text


def test_loss_is_reported_in_nats() -> None:
    text = as_text(render(make_outcomes(), utility_metric="loss"))
    assert "New skill learned 1.250 95% bounds" in text
    assert "loss (nats per token, less is better)" in text


def test_the_page_speaks_japanese_and_nothing_else() -> None:
    text = as_text(render(make_outcomes(), language="ja"))
    assert "有害率（保護あり） 2.5% 95%信頼限界 0.1% – 11.3%" in text
    assert "学習1ステップの時間 保護あり0.03秒" in text
    own = re.sub(
        r"harm prompt|skill prompt|kept prompt|sha256:\w+|category_with_a_long_name|tell_me\S*", " ", text
    )
    own = own.replace("take the hammer and", " ").replace("I cannot help with", " ").replace("an answer", " ")
    names = {"secvec", "mixture", "LoRA", "nat", "dressed", "outcomes", "jsonl", "Clopper", "Pearson"}
    names |= {"Tango", "Holm", "offline", "keywords", "attribution", "parquet", "rows", "theft"}
    names |= set(re.findall(r"[A-Za-z]{3,}", str(load_shipped()[0].reference_set)))
    roles = {"base", "vector", "model", "data", "suite", "judge", "code"}
    assert set(re.findall(r"[A-Za-z]{3,}", own)) <= names | roles


def test_every_text_is_in_both_languages_with_the_same_names() -> None:
    fields = re.compile(r"\{(\w+)\}")
    for key, texts in read_catalogue().items():
        assert set(texts) == {"en", "ja"}, key
        assert set(fields.findall(texts["en"])) == set(fields.findall(texts["ja"])), key


def test_no_text_stands_in_the_template_itself() -> None:
    template = (files("secvec.components.evaluate_harm") / "report.html.j2").read_text(encoding="utf-8")
    body = re.sub(r"<style>.*?</style>|\{%.*?%\}|\{\{.*?\}\}|<[^>]*>", " ", template, flags=re.DOTALL)
    assert re.findall(r"[^\W\d_]{2,}", body) == []


def test_says_which_forms_were_asked() -> None:
    assert "Only the direct form was asked" in as_text(render(make_outcomes()))
    dressed = [make_outcome("guarded", "harm", 39, attack="dressed", label="compliance")]
    text = as_text(render([*make_outcomes(), *dressed]))
    assert "Only the direct form" not in text
    assert "dressed like training rows 1 – 100.0%" in text
    assert "Harm, with the guard 5.0%" in text


def test_prices_the_training() -> None:
    config = EvaluationConfig(price_per_hour=3.0, currency="EUR")
    cost = price_training({"guarded": 2.0, "unguarded": 1.0}, {"guarded": 3600}, config)
    assert cost["arms"] == {"guarded": {"seconds": 7200.0, "device_hours": 2.0, "price": 6.0}}
    page = render_report({**make_statistics(make_outcomes()), "cost": cost}, make_outcomes())
    assert "Whole training: 2 h 0 min, 2 device hours, 6.00 EUR." in as_text(page)


def test_every_judge_is_shown_with_its_errors_taken_out() -> None:
    half = [make_outcome("guarded", "harm", 2, label="partial", attack="prefill")]
    text = as_text(render([*make_outcomes(), *half]))
    judges = text[text.index("Judges Every judge") :]
    assert "offline decides" in judges
    assert "offline and keywords agree on 99.4% of 161 answers" in judges
    records = json.loads((files("secvec.components.evaluate_harm") / "judge_calibrations.json").read_text())
    for known in records:
        found, cleared = (known[f"found_{kind}"] / known[f"n_{kind}"] for kind in ("harmful", "harmless"))
        assert f"finds {found:.1%} of harmful answers and clears {cleared:.1%} of harmless ones" in judges
    assert "keywords 2.5%" in judges
    assert "offline decides 3.8%" in judges


def test_comparisons_say_what_is_shown_and_what_is_not() -> None:
    text = as_text(render(make_outcomes()))
    table = text[text.index("Against the other models") :]
    assert "harm: Base 40 +2.5" in table
    assert "✗ not shown" in table
    assert "harm: Without guard 40 -95.0" in table
    assert "There was no champion to compare with." in table
    assert "What 40 harmful prompts can show: without one harmful answer, an upper bound of 7.2%" in text


def test_suspect_rows_are_named_by_place() -> None:
    text = as_text(render(make_outcomes()))
    assert "300 of 900 rows are likelier with it" in text
    assert "rows.jsonl:1 +2.000 theft" in text
    assert "rows.jsonl:11" not in text


def test_answers_are_redacted() -> None:
    page = render(make_outcomes())
    assert "last secret step" not in page
    assert "take the hammer and …" in page
    assert redact("one two three four five") == "one two three four …"
    assert "50 characters" in page


def test_the_worst_prompts_come_first() -> None:
    samples = sample_outcomes(list(reversed(make_outcomes())))
    assert samples[0].prompt == "harm prompt 0"
    assert [sample.is_bad for sample in samples if sample.kind == "harm"] == [True, *[False] * 7]


def test_model_output_cannot_act_on_the_page() -> None:
    hostile = "<script>alert(1)</script><img src=x onerror=alert(1)>\u202e\x00"
    outcomes = make_outcomes()
    outcomes[40] = make_outcome("guarded", "harm", 0, prompt=hostile, answer=hostile, label="compliance")
    page = render(outcomes)
    assert "<script" not in page
    assert "<img" not in page
    assert not set("\u202e\x00") & set(page)


def test_asks_for_nothing_outside_itself() -> None:
    page = render(make_outcomes())
    assert not re.search(r"https?:|//[\w.]+/|@import|<link|<script|url\(|\bsrc=", page)
    assert "default-src 'none'" in page


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(
    ("metric", "language"), [("exact_match", "en"), ("exact_match", "ja"), ("loss", "ja")]
)
def test_nothing_overflows(width: int, metric: str, language: str, tmp_path: Path) -> None:
    dressed = [make_outcome(arm, "harm", 1, attack="dressed", label="refusal", score=0.0) for arm in ARMS]
    safe = [make_outcome(arm, "over_refusal", n, suite="s" * 40, score=0.0) for arm in ARMS for n in (1, 2)]
    outcomes = [*make_outcomes(), *dressed, *safe]
    page = render(outcomes, utility_metric=metric, language=language)
    page = page.replace("<details>", "<details open>")
    measured = measure_in_chromium(page, width=width, folder=tmp_path)
    assert measured["inner"] == width
    assert measured["scroll"] <= width
    assert measured["smallest_text"] >= 9
    assert measured["svg_overflow"] == []


MEASURE = """
const page = document.querySelector('iframe').contentDocument;
const texts = [...page.querySelectorAll('svg text')];
const outside = texts.filter(text => {
  const box = text.getBoundingClientRect(), frame = text.ownerSVGElement.getBoundingClientRect();
  return box.left < frame.left - 1 || box.right > frame.right + 1 || box.bottom > frame.bottom + 1;
});
const scale = matrix => Math.hypot(matrix.a, matrix.b);
const sizes = texts.map(text => scale(text.getScreenCTM()) * parseFloat(getComputedStyle(text).fontSize));
document.title = JSON.stringify({
  inner: document.querySelector('iframe').contentWindow.innerWidth,
  scroll: page.documentElement.scrollWidth,
  smallest_text: Math.min(...sizes),
  svg_overflow: outside.map(text => text.textContent),
});
"""


def measure_in_chromium(page: str, *, width: int, folder: Path) -> dict[str, Any]:
    """Lay the page out in a frame (a headless window is never narrower than 500 pixels) and measure it."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not chromium:
        pytest.skip("no Chromium on the PATH")
    wrapper = folder / "wrapper.html"
    wrapper.write_text(
        f'<!doctype html><iframe style="border:0" width="{width}" height="900" srcdoc="{html.escape(page)}">'
        f"</iframe><script>onload = () => {{ {MEASURE} }}</script>"
    )
    flags = """
        --headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
        --disable-component-update --disable-sync --virtual-time-budget=5000 --dump-dom
    """
    command = [chromium, *flags.split(), f"--user-data-dir={folder / 'profile'}", wrapper.as_uri()]
    dumped = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True).stdout
    title = re.search(r"<title>(\{.*?\})</title>", dumped)
    assert title, dumped[-2000:]
    return dict(json.loads(html.unescape(title.group(1))))
