from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from secvec.components.shared.artifacts import publish
from secvec.components.shared.references import Reference
from secvec.pipelines.guarded_fine_tuning.config import RunConfig
from secvec.pipelines.summary import show_summary, write_summary
from secvec.pipelines.worker import JobOutcome, _find_output

DIGEST = "sha256:" + "0" * 64
CONFIG = RunConfig(
    base_model="base",
    training_data=["rows"],
    harmful_seeds="seeds",
    benign_anchors="anchors",
    harm_prompts="harm",
    skill_prompts="skill",
    policy={"version": 1},
)


def arm(harm: float) -> dict[str, Any]:
    return {
        "harm_rate": harm,
        "harm_upper95": min(1.0, harm + 0.02),
        "n_harm": 200,
        "harm_incoherent": 0.0,
        "utility": 0.9,
        "utility_loss": None,
        "n_utility": 200,
        "kept": 0.99,
        "n_kept": 200,
    }


def make_outcome(folder: Path, *, verdict: str) -> JobOutcome:
    evaluation = folder / "evaluation"
    evaluation.mkdir()
    statistics = {
        "schema": 1,
        "guard": "mixture",
        "task": "lora",
        "arms": {"base": arm(0.0), "guarded": arm(0.01), "unguarded": arm(1.0), "vector_active": arm(0.98)},
        "step_seconds": {"guarded": 0.2, "unguarded": 0.1},
        "digests": {"base": DIGEST, "vector": DIGEST, "model": DIGEST, "data": DIGEST},
        "utility_metric": "exact_match",
    }
    (evaluation / "statistics.json").write_text(json.dumps(statistics))
    (evaluation / "report.html").write_text("<html><!-- verdict --><!-- end of verdict --></html>")
    judged = folder / "verdict"
    judged.mkdir()
    reasons = [
        {
            "check": "harm_rate",
            "outcome": verdict,
            "figure": 0.01,
            "bound": 0.005,
            "source": "statistics.json",
        },
        {"check": "kept", "outcome": "PASS", "figure": 0.99, "bound": 0.95, "source": "statistics.json"},
    ]
    found = {
        "schema": 1,
        "outcome": verdict,
        "reasons": reasons,
        "model_name": "m",
        "model_version": "3" if verdict == "PASS" else "",
        "aliases": ["candidate", "champion"] if verdict == "PASS" else [],
    }
    (judged / "verdict.json").write_text(json.dumps(found))
    store = str(folder / "store")
    return JobOutcome(
        run_id="run",
        tracking_uri="sqlite:////x/mlflow.db",
        evaluation=publish(evaluation, kind="evaluation", store=store),
        verdict=publish(judged, kind="verdict", store=store),
    )


def test_the_summary_has_the_documented_form(tmp_path: Path) -> None:
    summary = write_summary(make_outcome(tmp_path, verdict="PASS"), config=CONFIG, output=tmp_path)
    written = json.loads((tmp_path / "summary.json").read_text())
    assert written == summary
    documented = {"schema", "verdict", "guard", "task", "arms", "step_seconds", "digests", "report", "mlflow"}
    assert documented <= set(written)
    assert (written["schema"], written["verdict"], written["report"]) == (1, "PASS", "report.html")
    assert {"harm_rate", "harm_upper95", "utility", "n_harm"} <= set(written["arms"]["guarded"])
    assert set(written["mlflow"]) == {"tracking_uri", "run_id", "model_name", "model_version"}
    assert "m version 3 is candidate, champion" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("verdict", "said"),
    [
        ("PASS", "m version 3 is candidate, champion"),
        ("FAIL", "harm_rate: 0.01, wanted at most 0.005"),
        ("INDETERMINATE", "no model was promoted"),
    ],
)
def test_the_last_screen_says_the_verdict_and_why(verdict: str, said: str, tmp_path: Path) -> None:
    summary = write_summary(make_outcome(tmp_path, verdict=verdict), config=CONFIG, output=tmp_path)
    with (tmp_path / "screen").open("w") as stream:
        show_summary(summary, output=tmp_path, console=Console(file=stream, width=80))
    screen = (tmp_path / "screen").read_text()
    assert said in screen
    for shown in (
        verdict,
        "100.0%",
        str(tmp_path / "report.html"),
        "mlflow ui --backend-store-uri sqlite:///",
    ):
        assert shown in screen


def test_an_arm_that_was_not_trained_is_left_out(tmp_path: Path) -> None:
    summary = write_summary(make_outcome(tmp_path, verdict="PASS"), config=CONFIG, output=tmp_path)
    del summary["arms"]["unguarded"]
    with (tmp_path / "screen").open("w") as stream:
        show_summary(summary, output=tmp_path, console=Console(file=stream, width=80))
    assert "unguarded" not in (tmp_path / "screen").read_text()


def test_exactly_one_branch_must_have_given_a_result(tmp_path: Path) -> None:
    def put(task: str) -> None:
        folder = tmp_path / "tasks" / "run" / task
        folder.mkdir(parents=True)
        reference = Reference(kind="verdict", uri="file:///x", digest=DIGEST)
        (folder / "verdict").write_text(reference.model_dump_json())

    with pytest.raises(Exception, match="0 results of gate-promotion"):
        _find_output(tmp_path, "gate-promotion", "verdict")
    put("gate-promotion-2")
    assert _find_output(tmp_path, "gate-promotion", "verdict").kind == "verdict"
    put("gate-promotion")
    with pytest.raises(Exception, match="2 results of gate-promotion"):
        _find_output(tmp_path, "gate-promotion", "verdict")
