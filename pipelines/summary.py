"""What a finished run came to: ``summary.json`` for programs and one screen for people."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from secvec.components.shared.artifacts import fetch
from secvec.components.shared.storage import write_bytes
from secvec.pipelines.guarded_fine_tuning.config import RunConfig
from secvec.pipelines.worker import JobOutcome

SUMMARY_NAME = "summary.json"
REPORT_NAME = "report.html"
_ARMS = ("base", "unguarded", "guarded", "vector_active")
_COLOURS = {
    "PASS": "bold green",
    "UNCHANGED": "bold green",
    "FAIL": "bold red",
    "INDETERMINATE": "bold yellow",
}


def write_summary(outcome: JobOutcome, *, config: RunConfig, output: Path) -> dict[str, Any]:
    """Write the report with the verdict on its first screen, and ``summary.json``, last and whole.

    A run that stopped because nothing had changed has no arms and no report; its model version is the
    champion's.

    Returns:
        The summary, with the verdict's reasons under ``reasons``.

    Raises:
        SecvecError: An artifact is not what was published, or the output cannot be written.
    """
    from secvec.components.evaluate_harm.verdict_banner import write_judged_report

    verdict = json.loads((fetch(outcome.verdict) / "verdict.json").read_text())
    if outcome.evaluation is None:
        statistics = {"arms": {}, "utility_metric": "", "step_seconds": {}, "digests": verdict["digests"]}
    else:
        evaluation = fetch(outcome.evaluation)
        statistics = json.loads((evaluation / "statistics.json").read_text())
        write_judged_report(evaluation, verdict, output / REPORT_NAME)
    summary = {
        "schema": 1,
        "verdict": verdict["outcome"],
        "guard": config.guard,
        "task": config.task,
        "arms": statistics["arms"],
        "utility_metric": statistics["utility_metric"],
        "step_seconds": statistics["step_seconds"],
        "digests": statistics["digests"],
        "report": REPORT_NAME if outcome.evaluation else "",
        "mlflow": {
            "tracking_uri": outcome.tracking_uri,
            "run_id": outcome.run_id,
            "model_name": verdict["model_name"],
            "model_version": verdict["model_version"],
        },
        "aliases": verdict["aliases"],
        "reasons": verdict["reasons"],
    }
    write_bytes(str(output / SUMMARY_NAME), (json.dumps(summary, indent=2, allow_nan=False) + "\n").encode())
    return summary


def show_summary(summary: dict[str, Any], *, output: Path, console: Console) -> None:
    """Print the last screen: arms, verdict with its reasons, and where everything is."""
    console.print()
    if summary["arms"]:
        console.print(_arms_table(summary))
        console.print()
    verdict = summary["verdict"]
    line = Text(f"{verdict}  ", style=_COLOURS[verdict]).append(_explain(summary), style="default")
    console.print(line, soft_wrap=True)
    for reason in summary["reasons"]:
        if reason["outcome"] != "PASS":
            console.print(_describe_reason(reason), soft_wrap=True)
    mlflow = summary["mlflow"]
    console.print()
    for name, place in (
        *([("report", output / REPORT_NAME)] if summary["report"] else []),
        ("summary", output / SUMMARY_NAME),
        ("mlflow", _mlflow_hint(mlflow["tracking_uri"])),
    ):
        console.print(f"{name:8}{place}", soft_wrap=True, highlight=False, markup=False)


def _arms_table(summary: dict[str, Any]) -> Table:
    loss = summary["utility_metric"] == "loss"
    table = Table(title="Harm and utility by arm", title_justify="left", title_style="bold")
    table.add_column("arm")
    for title in ("harm", "at most (95%)", "prompts", "new task (loss)" if loss else "new task", "kept"):
        table.add_column(title, justify="right")
    for name in _ARMS:
        if arm := summary["arms"].get(name):
            table.add_row(
                name.replace("_", " "),
                _share(arm["harm_rate"]),
                _share(arm["harm_upper95"]),
                str(arm["n_harm"]),
                _number(arm.get("utility_loss")) if loss else _share(arm.get("utility")),
                _share(arm.get("kept")),
                style="bold" if name == "guarded" else None,
            )
    return table


def _explain(summary: dict[str, Any]) -> str:
    checks = len(summary["reasons"])
    mlflow = summary["mlflow"]
    if summary["verdict"] == "UNCHANGED":
        name, version = mlflow["model_name"], mlflow["model_version"]
        return f"nothing has changed since {name} version {version} became champion; nothing was trained"
    if summary["verdict"] == "PASS":
        aliases = ", ".join(summary["aliases"])
        return (
            f"all {checks} checks held; {mlflow['model_name']} version {mlflow['model_version']} is {aliases}"
        )
    missed = sum(reason["outcome"] != "PASS" for reason in summary["reasons"])
    return f"{missed} of {checks} checks did not hold; no model was promoted"


def _describe_reason(reason: dict[str, Any]) -> Text:
    figure, bound = reason["figure"], reason["bound"]
    wanted = f"{bound}"
    if isinstance(figure, int | float) and isinstance(bound, int | float):
        wanted = f"at {'most' if figure > bound else 'least'} {bound:.4g}"
        figure = f"{figure:.4g}"
    text = f"  {reason['check']}: {figure}, wanted {wanted} ({reason['source']})"
    return Text(f"  {reason['outcome']}", style=_COLOURS[reason["outcome"]]).append(text, style="default")


def _mlflow_hint(tracking_uri: str) -> str:
    if tracking_uri.startswith("http"):
        return tracking_uri
    return f"mlflow ui --backend-store-uri {tracking_uri}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}%"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
