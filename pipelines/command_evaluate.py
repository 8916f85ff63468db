"""``secvec evaluate``: any model on any suites, pipeline or not."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from secvec.components.evaluate_harm.config import EvaluationConfig, Language
from secvec.components.evaluate_harm.judge_specs import ACCEPTED
from secvec.components.shared.errors import SecvecError
from secvec.components.shared.progress import EVENTS_VARIABLE

STEP = "evaluate"
OVER_THE_BOUND = 3


def evaluate(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="Model folder, s3:// URI, hub id, or URL of an endpoint."),
    ],
    *,
    suite: Annotated[list[str], typer.Option(metavar="DIR", help="Suite folder or URI; may be repeated.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Folder for report and figures.")
    ] = Path("evaluation"),
    against: Annotated[str, typer.Option(metavar="BASE", help="Model to compare with.")] = "",
    attack: Annotated[
        list[str] | None, typer.Option(metavar="FORM", help="Form of harm prompts; may be repeated.")
    ] = None,
    judge: Annotated[
        list[str] | None,
        typer.Option(
            metavar="JUDGE",
            help=f"Who judges, at least two, the deciding one first: {ACCEPTED}. By default the first two.",
        ),
    ] = None,
    calibration: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE", help="Calibration record of a judge, as `secvec judge --record` writes it."
        ),
    ] = None,
    training_rows: Annotated[
        Path | None, typer.Option(metavar="FILE", help="JSONL of chat records that prompts are dressed like.")
    ] = None,
    served_model: Annotated[str, typer.Option(metavar="NAME", help="Name of the model at an endpoint.")] = "",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 64,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts at once.")] = 32,
    samples: Annotated[int, typer.Option(min=1, help="Answers to every harm prompt.")] = 1,
    temperature: Annotated[float, typer.Option(min=0, help="Temperature of answers to harm prompts.")] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of sampled answers.")] = 0,
    language: Annotated[Language, typer.Option(help="Language of the report.")] = "en",
    max_harm: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Exit with status 3 if the upper 95% bound of harm is above this, or a judge was absent.",
        ),
    ] = None,
) -> None:
    """Ask a model the prompts of suites and report harm, over-refusal and utility."""
    values: dict[str, Any] = {
        "attacks": attack or ["direct"],
        "max_new_tokens": max_new_tokens,
        "batch_size": batch_size,
        "samples": samples,
        "temperature": temperature,
        "language": language,
        "judges": judge or EvaluationConfig.model_fields["judges"].default,
        "calibrations": [str(path.absolute()) for path in calibration or []],
    }
    try:
        config = EvaluationConfig.read(values, where="options")
    except SecvecError as error:
        raise typer.BadParameter(str(error)) from None
    job = {
        "model": model,
        "against": against,
        "suites": suite,
        "training_rows": str(training_rows) if training_rows else "",
        "served_model": served_model,
        "seed": seed,
        "output": str(output.absolute()),
        "max_harm": max_harm,
        "config": config.model_dump(mode="json"),
    }
    console = Console()
    _say_power(suite, margin=config.margin, console=console)
    statistics = _run(job, output=output, console=console)
    if not statistics["arms"]:
        reason = statistics["limit"]["reason"]
        console.print(f"INDETERMINATE  {reason}", highlight=False, soft_wrap=True, markup=False)
        raise typer.Exit(OVER_THE_BOUND)
    _show(statistics, output=output, console=console)
    _show_judges(statistics, console=console)
    if limit := statistics["limit"]:
        upper = "unknown" if limit["upper95"] is None else f"{100 * limit['upper95']:.2g}%"
        console.print(
            f"{limit['outcome']}  harm at most {upper} (95%), allowed {100 * limit['max_harm']:.3g}%",
            highlight=False,
            soft_wrap=True,
        )
        if limit["outcome"] != "PASS":
            raise typer.Exit(OVER_THE_BOUND)


def _say_power(suites: list[str], *, margin: float, console: Console) -> None:
    """Say what the run can show before it starts."""
    from secvec.components.evaluate_harm.power import foresee
    from secvec.components.evaluate_harm.suites import open_suite

    # a remote suite is opened by the run alone
    probes = [probe for uri in suites if not uri.startswith("s3://") for probe in open_suite(uri).probes]
    n = len({probe.record.id for probe in probes if probe.kind == "harm"})
    if n:
        found = foresee(n, margin=margin)
        console.print(
            f"{n} harmful prompts: without one harmful answer the upper bound is "
            f"{100 * found['bound_without_harm']:.2g}%; an equal model is shown to be no worse by "
            f"{100 * margin:.3g} points with a chance of {100 * found['power']:.0f}% "
            f"({found['needed']} prompts would give 90%)",
            highlight=False,
        )


def _show_judges(statistics: dict[str, Any], *, console: Console) -> None:
    """Say what each judge found, and which of them was not to be had."""
    for judge in statistics["judges"]:
        found = judge["arms"].get("guarded")
        if not found:
            continue
        rate = "–" if found["harm_rate"] is None else f"{100 * found['harm_rate']:.1f}%"
        corrected = found["corrected"]
        more = f", corrected {100 * corrected['rate']:.1f}%" if corrected else ", not calibrated"
        more += f", {found['unparsable']} unreadable" if found["unparsable"] else ""
        console.print(f"judge   {judge['name']}: {rate} harmful{more}", highlight=False, soft_wrap=True)
        if any(own["unavailable"] for own in judge["arms"].values()):
            reason = "; ".join(judge["reasons"])
            console.print(f"INDETERMINATE: {judge['name']}: {reason}", style="yellow", soft_wrap=True)


def _run(job: dict[str, Any], *, output: Path, console: Console) -> dict[str, Any]:
    """Evaluate in a process of its own, for torch, and show progress meanwhile."""
    from secvec.pipelines.local import follow, opened_output

    with opened_output(output) as folder:
        path = folder / "job.json"
        path.write_text(json.dumps(job, indent=2) + "\n", encoding="utf-8")
        follow(
            [sys.executable, "-m", "secvec.components.evaluate_harm.standalone", str(path)],
            steps=[STEP],
            environment={
                **os.environ,
                EVENTS_VARIABLE: str(folder / "events.jsonl"),
                "HF_HUB_DISABLE_TELEMETRY": "1",
                "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            },
            output=folder,
            console=console,
        )
        return dict(json.loads((folder / "statistics.json").read_text(encoding="utf-8")))


def _show(statistics: dict[str, Any], *, output: Path, console: Console) -> None:
    table = Table(title="Rates by suite (upper 95% bound)", title_justify="left", title_style="bold")
    for title in ("suite", "measures", "prompts", "model", "compared"):
        table.add_column(title, justify="left" if title in ("suite", "measures") else "right")
    for found in statistics["suites"].values():
        arms = found["arms"]
        cells = [_share(arms.get(arm)) for arm in ("guarded", "base")]
        table.add_row(found["suite"], found["kind"].replace("_", "-"), str(arms["guarded"]["n"]), *cells)
    console.print(table)
    console.print(f"report  {output / 'report.html'}", soft_wrap=True, highlight=False, markup=False)


def _share(figures: dict[str, Any] | None) -> str:
    if figures is None:
        return "–"
    bound = "" if figures["upper95"] is None else f" ({100 * figures['upper95']:.1f}%)"
    return f"{100 * figures['rate']:.1f}%{bound}"
