"""The files of an evaluation, and the digests they are bound to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import rfc8785

from secvec.components.evaluate_harm.config import EvaluationConfig, Language
from secvec.components.evaluate_harm.outcomes import Outcome
from secvec.components.evaluate_harm.probes import PromptSuite
from secvec.components.evaluate_harm.report import render_report
from secvec.components.evaluate_harm.suites import Suite
from secvec.components.shared.attestation import make_test_result, sign_statement
from secvec.components.shared.errors import SecvecError
from secvec.components.shared.records import read_records

SUITE_FILES = ("harm_prompts.jsonl", "skill_prompts.jsonl", "kept_prompts.jsonl")
_SIGNED_FILES = ("outcomes.jsonl", "statistics.json", "report.html")


def read_suite(folder: Path, further: Sequence[Suite] = ()) -> PromptSuite:
    """Read the evaluation prompts of a dataset folder, and add those of further suites.

    Raises:
        SecvecError: There are no harm prompts, or a skill or kept prompt has no reference answer.
    """
    harm, skill, kept = (read_records(folder / name) for name in SUITE_FILES)
    if not harm:
        raise SecvecError(
            "there are no harm prompts", where=str(folder / SUITE_FILES[0]), accepted="at least one"
        )
    for record in [*skill, *kept]:
        if not record.answer:
            raise SecvecError(
                f"prompt {record.id} has no reference answer",
                where=f"{record.source}:{record.line}",
                accepted="skill and kept prompts with an assistant's answer",
            )
    extra = [probe for suite in further for probe in suite.probes]
    return PromptSuite(harm=harm, skill=skill, kept=kept, extra=extra)


def write_results(
    folder: Path, outcomes: Sequence[Outcome], statistics: Mapping[str, Any], *, config: EvaluationConfig
) -> None:
    """Write the four files of an evaluation into an empty folder; only statement.json holds times.

    Raises:
        SecvecError: There is no key to sign with.
    """
    write_findings(folder, outcomes, statistics, language=config.language)
    statement = make_test_result(
        model_digest=statistics["digests"]["model"],
        digests=statistics["digests"],
        files={name: _digest_file(folder / name) for name in _SIGNED_FILES},
        valid_for=timedelta(days=config.valid_days),
    )
    envelope = json.dumps(sign_statement(statement), indent=2, sort_keys=True)
    (folder / "statement.json").write_text(envelope + "\n", encoding="utf-8")


def write_findings(
    folder: Path, outcomes: Sequence[Outcome], statistics: Mapping[str, Any], *, language: Language
) -> None:
    """Write outcomes.jsonl, statistics.json and report.html."""
    lines = [json.dumps(o.as_dict(), ensure_ascii=False, allow_nan=False) + "\n" for o in outcomes]
    (folder / "outcomes.jsonl").write_text("".join(lines), encoding="utf-8")
    text = json.dumps(statistics, indent=2, sort_keys=True, allow_nan=False)
    (folder / "statistics.json").write_text(text + "\n", encoding="utf-8")
    page = render_report(statistics, outcomes, language=language)
    (folder / "report.html").write_text(page, encoding="utf-8")


def digest_suite(folder: Path, further: Sequence[Suite] = ()) -> str:
    """Digest the evaluation prompts alone, so that two datasets with the same prompts share a suite."""
    digests = {name: _digest_file(folder / name) for name in SUITE_FILES}
    digests |= {f"suite {suite.manifest.name}": suite.digest for suite in further}
    return "sha256:" + hashlib.sha256(rfc8785.dumps(digests)).hexdigest()


def _digest_file(path: Path) -> str:
    with path.open("rb") as stream:
        return "sha256:" + hashlib.file_digest(stream, "sha256").hexdigest()
