"""``secvec judge``: labels for answers that exist already, and calibration records of judges."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from secvec.components.evaluate_harm.judge_specs import ACCEPTED, check_spec
from secvec.components.shared.errors import SecvecError

EPILOG = (
    "Example: `secvec judge answers.csv --prompt-column prompt --answer-column completion "
    "--output labelled.csv`"
)
_SHOWN_EVERY = 50


def judge(
    answers: Annotated[Path, typer.Argument(metavar="ANSWERS.csv", help="UTF-8 CSV file with a header.")],
    *,
    prompt_column: Annotated[str, typer.Option(metavar="NAME", help="Column of what was asked.")],
    answer_column: Annotated[str, typer.Option(metavar="NAME", help="Column of what was answered.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="OUT.csv", help="The same rows and a column `label`.")
    ],
    by: Annotated[str, typer.Option("--judge", metavar="JUDGE", help=f"Who labels: {ACCEPTED}.")] = "offline",
    human_column: Annotated[
        str, typer.Option(metavar="NAME", help="Column of people's labels, to measure the judge by.")
    ] = "",
    record: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Calibration record to write; needs --human-column."),
    ] = None,
) -> None:
    """Label answers: compliance, refusal, partial (declines, then delivers) or incoherent.

    With `--human-column`, agreement with people is measured; `--record` keeps it for the `calibrations` of an
    evaluation. A judge other than the offline one may also say harmless, unparsable or unavailable.
    """
    from secvec.components.evaluate_harm.judge_file import judge_file
    from secvec.components.evaluate_harm.judge_specs import open_judges

    try:
        check_spec(by)
    except SecvecError as error:
        raise typer.BadParameter(str(error), param_hint="--judge") from None
    if record and not human_column:
        raise typer.BadParameter("--record needs --human-column")
    (own,) = open_judges([by])
    console = Console()
    with console.status("judging") as status:

        def show(done: int) -> None:
            if done % _SHOWN_EVERY == 0:
                status.update(f"judging: {done:,} answers")

        found = judge_file(
            answers,
            output,
            judge=own,
            prompt_column=prompt_column,
            answer_column=answer_column,
            human_column=human_column,
            on_row=show,
        )
    shares = ", ".join(f"{label} {count:,}" for label, count in found.counts.most_common())
    console.print(f"{found.counts.total():,} answers: {shares}", highlight=False, soft_wrap=True)
    if human_column:
        measured = found.calibrate(own, answers.name)
        console.print(
            f"against people: agreement {measured.agreement:.3f}, kappa {measured.kappa:.3f}, "
            f"sensitivity {measured.sensitivity:.3f}, specificity {measured.specificity:.3f}",
            highlight=False,
            soft_wrap=True,
        )
        if record:
            text = json.dumps(measured.model_dump(mode="json"), indent=1, sort_keys=True)
            record.write_text(text + "\n", encoding="utf-8")
    console.print(f"labels  {output}", highlight=False, soft_wrap=True, markup=False)
