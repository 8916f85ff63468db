"""Runs the pipeline on this machine: no container engine, no server."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from rich.console import Console

from secvec.components.shared.artifacts import check_store
from secvec.components.shared.code_digest import code_digest
from secvec.components.shared.errors import OutOfMemory, SecvecError
from secvec.components.shared.storage import expand_user
from secvec.pipelines.display import showing
from secvec.pipelines.environment import step_environment
from secvec.pipelines.guarded_fine_tuning.config import RunConfig
from secvec.pipelines.inputs import check_inputs
from secvec.pipelines.interruption import check_interrupted
from secvec.pipelines.run_progress import EventReader, RunProgress
from secvec.pipelines.worker import SECONDS_TO_STOP, Job, JobOutcome, Runner


def run_locally(
    config: RunConfig,
    *,
    output: Path,
    console: Console,
    runner: Runner = "subprocess",
    container_user: str = "",
) -> JobOutcome:
    """Run the whole pipeline, one step after the other, each in its own process or container.

    A run that was interrupted goes on where it stopped when it is started again with the same output.

    Args:
        config: The run.
        output: Folder for everything that the run writes.
        console: Where progress is shown.
        runner: Whether steps run as processes of this machine or in containers of the config's image.
        container_user: ``UID[:GID]`` of the steps in containers; empty for the usual one.

    Raises:
        SecvecError: A step failed, named with its reason, or the run could not start.
        KeyboardInterrupt: The user stopped it; every process of the run has ended.
    """
    store = config.store or str(output / "store")
    check_store(store)
    check_inputs(config)
    job = Job(
        parameters=config.to_parameters(store=store, code_digest=code_digest()),
        work=output / "pipeline",
        artifacts=output / "mlartifacts",
        outcome=output / "pipeline" / "outcome.json",
        runner=runner,
        container_user=container_user,
    )
    # KFP starts every run in a new folder and never reads an old one: results lie in the store.
    shutil.rmtree(job.work, ignore_errors=True)
    job.work.mkdir()
    written = job.work / "job.json"
    written.write_text(job.model_dump_json(indent=2) + "\n")
    follow(
        [sys.executable, "-m", "secvec.pipelines.worker", str(written)],
        steps=expected_steps(control_arm=config.control_arm, shares=config.ingest_shares),
        environment=step_environment(output, base_model=config.base_model),
        output=output,
        console=console,
    )
    return JobOutcome.model_validate(json.loads(job.outcome.read_text()))


def expected_steps(*, control_arm: bool, shares: int = 1) -> list[str]:
    """Names under which the steps of a run report, in order."""
    arms = ["guarded", "unguarded"] if control_arm else ["guarded"]
    trained = [f"{step} ({arm})" for arm in arms for step in ("fine_tune_guarded", "remove_security_vector")]
    read = [f"read_share ({number} of {shares})" for number in range(1, shares + 1)] if shares > 1 else []
    return [
        "open_mlflow_run",
        *read,
        "ingest_data",
        "compare_champion",
        "train_security_vector",
        *trained,
        "evaluate_harm",
        "gate_promotion",
        "record_outcome",
    ]


@contextmanager
def opened_output(output: Path) -> Iterator[Path]:
    """Hold an output folder for one run, without the results of an earlier one.

    Raises:
        SecvecError: It cannot be written, or another run holds it.
    """
    output = expand_user(output).absolute()
    try:
        (output / "tmp").mkdir(parents=True, exist_ok=True)
        lock = (output / ".lock").open("w")
        os.set_inheritable(lock.fileno(), True)
    except OSError as error:
        raise SecvecError(
            f"output folder cannot be written ({error.strerror})",
            where=str(output),
            accepted="a folder that can be created or written",
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SecvecError(
                "another run is using this output folder", where=str(output), accepted="one run at a time"
            ) from None
        for name in ("summary.json", "report.html", "events.jsonl", "run.log"):
            (output / name).unlink(missing_ok=True)
        try:
            yield output
        finally:
            shutil.rmtree(output / "tmp", ignore_errors=True)


def follow(
    command: Sequence[str],
    *,
    steps: Sequence[str],
    environment: Mapping[str, str],
    output: Path,
    console: Console,
) -> None:
    """Run a command to its end while showing the progress that it reports.

    Args:
        command: What to run; all it prints goes to ``<output>/run.log``.
        steps: Names of the steps that it will report.
        environment: Its environment.
        output: The run's output folder, which holds the events file.
        console: Where progress is shown.

    Raises:
        SecvecError: It failed: the step, its reason and the log.
        KeyboardInterrupt: The user stopped it.
    """
    progress = RunProgress.expecting(steps)
    events = EventReader(output / "events.jsonl")
    log = output / "run.log"
    with log.open("ab") as stream:
        # A session of its own: a Ctrl-C reaches only this process, which then stops all the others in order.
        process = subprocess.Popen(
            command,
            env=dict(environment),
            stdin=subprocess.PIPE,  # its end tells the process that this one is gone
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            close_fds=False,  # it holds the output folder's lock as long as it lives
        )
    try:
        with showing(progress, console) as lines:
            while True:
                check_interrupted()
                ended = _wait(process, seconds=0.2)
                for event in events.read():
                    progress.take(event)
                if lines:
                    lines.refresh()
                if ended:
                    break
    finally:
        _stop(process)
    if process.returncode:
        raise _failure(progress, log=log, status=process.returncode)


def _wait(process: subprocess.Popen[bytes], *, seconds: float) -> bool:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End a process and all that it started: asked first, then killed."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        _wait_for_group(process, seconds=SECONDS_TO_STOP)
    try:
        # Also what the process left behind when it ended by itself.
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


def _wait_for_group(process: subprocess.Popen[bytes], *, seconds: float) -> None:
    """Wait for a process and all that it started: a step outlives the shell that KFP runs it in."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        process.poll()
        with suppress(ChildProcessError):
            # Orphans come to this process where it is a container's first.
            os.waitpid(-process.pid, os.WNOHANG)
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)


def _failure(progress: RunProgress, *, log: Path, status: int) -> SecvecError:
    running = progress.running()
    where = progress.failed_step or (running.name if running and not progress.error else "")
    if progress.error.startswith(f"{where.split(' ')[0]}: "):
        where = ""  # the step has named itself
    reason = progress.error or f"ended without a reason (status {status}; killed or out of memory?)"
    kind = OutOfMemory if progress.status == OutOfMemory.status else SecvecError
    return kind(f"{reason}; full log: {log}", where=where)
