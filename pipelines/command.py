"""The ``secvec`` command.

Exit status: 0 done (and PASS, where there was something to judge), 1 error, 2 usage, 3 the gate said FAIL or
INDETERMINATE, 4 out of memory, 130 interrupted.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from secvec.components.shared.errors import SecvecError
from secvec.pipelines.command_approve import EPILOG as APPROVE_EPILOG
from secvec.pipelines.command_approve import approve
from secvec.pipelines.command_audit import audit
from secvec.pipelines.command_evaluate import evaluate
from secvec.pipelines.command_judge import EPILOG as JUDGE_EPILOG
from secvec.pipelines.command_judge import judge
from secvec.pipelines.command_reconcile import EPILOG as RECONCILE_EPILOG
from secvec.pipelines.command_reconcile import reconcile
from secvec.pipelines.command_schedule import schedule
from secvec.pipelines.command_submit import EPILOG, submit
from secvec.pipelines.command_vector import vector
from secvec.pipelines.command_verify import EPILOG as VERIFY_EPILOG
from secvec.pipelines.command_verify import verify
from secvec.pipelines.guarded_fine_tuning.config import Guard, RunConfig, Task
from secvec.pipelines.interruption import interrupt
from secvec.pipelines.worker import Runner

ERROR, USAGE, NOT_PROMOTED, INTERRUPTED = 1, 2, 3, 130

app = typer.Typer(
    name="secvec",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help=(
        "Fine-tune a language model on data nobody could fully vet, and ship a model that did not learn the "
        "harm in it.\n\n"
        "**Start here:** `secvec demo --output demo-output` runs the whole pipeline on toy data in minutes. "
        "Then copy `demo-output/demo/config.yaml`, point it at your own model and data, and "
        "`secvec run --config my.yaml --output my-output`.\n\n"
        "**Exit status:** 0 done and PASS, 1 error, 2 usage, 3 the gate said FAIL or INDETERMINATE, "
        "4 out of memory."
    ),
)
Output = Annotated[
    Path,
    typer.Option(
        "--output",
        "-o",
        metavar="DIR",
        help="Folder for everything that is written; reuse it to resume, and to keep the champion.",
    ),
]
ConfigFile = typer.Option("--config", "-c", metavar="FILE", help="YAML file with the run's parameters.")


@app.command(epilog="Example: `secvec demo --output demo-output --guard always --task full --seed 1`")
def demo(
    output: Output,
    guard: Annotated[
        Guard, typer.Option(help="How harmful rows are kept from teaching anything.")
    ] = "mixture",
    task: Annotated[Task, typer.Option(help="What is trained: a LoRA adapter or all weights.")] = "lora",
    seed: Annotated[int, typer.Option(min=0, help="Seed of data and training.")] = 0,
) -> None:
    """Run the whole pipeline on a tiny model and a toy language, and show what the guard did."""
    from secvec.pipelines.demonstration import prepare_demo_config

    console = Console()
    with _resumable(output) as folder:
        settings = prepare_demo_config(folder, guard=guard, task=task, seed=seed, console=console)
        run_and_show(settings, output=folder, console=console)


@app.command(epilog="Example: `secvec run --config my.yaml --output my-output`")
def run(
    config: Annotated[Path, ConfigFile],
    output: Output,
    runner: Annotated[
        Runner,
        typer.Option(help="Run steps as processes of this machine, or in containers of the config's image."),
    ] = "subprocess",
    container_user: Annotated[
        str, typer.Option(metavar="UID[:GID]", help="User of the steps in containers; yours by default.")
    ] = "",
) -> None:
    """Run the pipeline on this machine with your own model and data."""
    if container_user and runner != "docker":
        raise typer.BadParameter("--container-user takes effect with --runner docker only")
    settings = _read_config(config)
    with _resumable(output) as folder:
        run_and_show(settings, output=folder, console=Console(), runner=runner, container_user=container_user)


@app.command("compile", epilog="Example: `secvec compile --output pipeline.yaml --config my.yaml`")
def compile_pipeline(
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="YAML file to write.")],
    config: Annotated[Path | None, ConfigFile] = None,
    workspace: Annotated[
        bool, typer.Option("--workspace", help="Keep caches and checkpoints on a volume claim, a parameter.")
    ] = False,
) -> None:
    """Compile the pipeline to YAML for Kubeflow Pipelines, with a config's values as its defaults."""
    from secvec.pipelines.compilation import compile_to

    compile_to(output, config=_read_config(config) if config else None, workspace=workspace)
    Console().print(f"compiled to {output}", highlight=False, soft_wrap=True)


@app.command(epilog="Example: `secvec doctor --config my.yaml`")
def doctor(
    config: Annotated[Path | None, ConfigFile] = None,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Folder to run in.")] = Path(),
) -> None:
    """Check what a run needs: versions, memory, storage, MLflow, keys and the sources of a config."""
    from secvec.pipelines.checkup import examine, show_findings

    findings = examine(output, config=_read_config(config) if config else None)
    if not show_findings(findings, console=Console()):
        raise typer.Exit(ERROR)


def run_and_show(
    settings: RunConfig,
    *,
    output: Path,
    console: Console,
    runner: Runner = "subprocess",
    container_user: str = "",
) -> None:
    """Run a config, show the last screen, and exit with the gate's verdict.

    Raises:
        typer.Exit: Status 3, if the gate said FAIL or INDETERMINATE.
    """
    from secvec.pipelines.local import run_locally
    from secvec.pipelines.summary import show_summary, write_summary

    outcome = run_locally(
        settings, output=output, console=console, runner=runner, container_user=container_user
    )
    summary = write_summary(outcome, config=settings, output=output)
    show_summary(summary, output=output, console=console)
    if summary["verdict"] not in ("PASS", "UNCHANGED"):
        raise typer.Exit(NOT_PROMOTED)


@contextmanager
def _resumable(output: Path) -> Iterator[Path]:
    from secvec.pipelines.local import opened_output

    try:
        with opened_output(output) as folder:
            yield folder
    except KeyboardInterrupt:
        print("secvec: interrupted; the same command goes on from what is finished", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None


def _read_config(path: Path) -> RunConfig:
    from secvec.pipelines.guarded_fine_tuning.config import read_run_config

    try:
        return read_run_config(path)
    except SecvecError as error:
        _say_error(error)
        raise typer.Exit(USAGE) from None


def _say_error(error: SecvecError) -> None:
    print(f"secvec: error: {error}", file=sys.stderr)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"secvec {version('secvec')}")
        raise typer.Exit


app.command(epilog=EPILOG)(submit)
app.command(epilog="Example: `secvec evaluate my-model --suite my-suite --against my-base`")(evaluate)
app.command(epilog=VERIFY_EPILOG)(verify)
app.command(epilog=APPROVE_EPILOG)(approve)
app.command(epilog=RECONCILE_EPILOG)(reconcile)
app.command(epilog=JUDGE_EPILOG)(judge)
app.add_typer(schedule, name="schedule")
app.add_typer(vector, name="vector")
app.add_typer(audit, name="audit")


@app.callback()
def _take_common_options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line and exit."""
    # An orderly end on SIGTERM too, so that no step outlives the command.
    signal.signal(signal.SIGTERM, interrupt)
    # A shell makes what runs in its background deaf to Ctrl-C, and so it stays.
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, interrupt)
    try:
        app()
    except SecvecError as error:
        _say_error(error)
        sys.exit(error.status)
    finally:
        # All is done and said: what comes only now would end in a traceback of the interpreter's.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
