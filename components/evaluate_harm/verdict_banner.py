"""The verdict on the report's first screen, put there once it has fallen: the measurement comes before it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from secvec.components.evaluate_harm.catalogue import Texts
from secvec.components.evaluate_harm.config import Language
from secvec.components.shared.artifacts import fetch
from secvec.components.shared.pages import page_templates
from secvec.components.shared.references import Reference

_SLOT = re.compile(r"<!-- verdict -->.*?<!-- end of verdict -->", re.DOTALL)
_LANGUAGE = re.compile(r'<html lang="(\w+)">')
_MOST_REASONS = 12


@dataclass(frozen=True)
class _Missed:
    """A check that did not hold, as a reader sees it."""

    check: str
    outcome: str
    figure: str
    bound: str


def write_judged_report(
    evaluation: Path, verdict: Mapping[str, Any], target: Path, *, language: Language = "en"
) -> None:
    """Write an evaluation's report with the gate's verdict on its first screen.

    Args:
        evaluation: Folder with ``report.html``; without one nothing but the verdict is written.
        verdict: Content of ``verdict.json``.
        target: File to write.
        language: Of a page that holds nothing but the verdict.
    """
    report = evaluation / "report.html"
    page = report.read_text(encoding="utf-8", errors="replace") if report.is_file() else ""
    target.write_text(show_verdict(page or _EMPTY.format(language), verdict), encoding="utf-8")


def show_judged_evaluation(evaluation: Any, verdict: Reference, *, report: Any) -> None:
    """Fill the gate's ``dsl.HTML`` artifact; `evaluation` is the KFP artifact that the gate was given."""
    found = json.loads((fetch(verdict) / "verdict.json").read_text(encoding="utf-8"))
    write_judged_report(fetch(Reference.read(evaluation, "evaluation")), found, Path(report.path))


def show_verdict(page: str, verdict: Mapping[str, Any]) -> str:
    """Put a verdict into the place that a report keeps for it; a page without such a place stays as it is."""
    found = _LANGUAGE.search(page)
    named = found.group(1) if found else ""
    language: Language = next((known for known in get_args(Language) if known == named), "en")
    banner = render_verdict(verdict, Texts(language))
    return _SLOT.sub(lambda _: banner, page, count=1)


def render_verdict(verdict: Mapping[str, Any], text: Texts) -> str:
    """The verdict in words, and the checks that did not hold."""
    reasons = [reason for reason in verdict.get("reasons", ()) if isinstance(reason, Mapping)]
    missed = [_describe(reason) for reason in reasons if reason.get("outcome") != "PASS"]
    outcome = str(verdict.get("outcome", ""))
    key = f"verdict_{outcome.lower()}" if text.has(f"verdict_{outcome.lower()}") else "verdict_indeterminate"
    environment = page_templates("secvec.components.evaluate_harm")
    return environment.get_template("verdict_banner.html.j2").render(
        t=text,
        kind=key.removeprefix("verdict_"),
        outcome=outcome,
        said=text(
            key,
            checks=len(reasons),
            missed=len(missed),
            name=verdict.get("model_name", ""),
            version=verdict.get("model_version", ""),
            aliases=", ".join(map(str, verdict.get("aliases", ()))),
        ),
        missed=missed[:_MOST_REASONS],
        more=len(missed[_MOST_REASONS:]),
    )


def _describe(reason: Mapping[str, Any]) -> _Missed:
    figure, bound = reason.get("figure"), reason.get("bound")
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (figure, bound))
    sign = ("≤ " if figure > bound else "≥ ") if numbers and figure != bound else ""  # type: ignore[operator]
    return _Missed(
        check=str(reason.get("check", "")),
        outcome=str(reason.get("outcome", "")),
        figure=_write(figure),
        bound=sign + _write(bound),
    )


def _write(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


_EMPTY = (
    '<!doctype html>\n<html lang="{}"><head><meta charset="utf-8"><title>secvec</title></head>'
    "<body><!-- verdict --><!-- end of verdict --></body></html>\n"
)
