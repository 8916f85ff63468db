"""The process that runs the pipeline under `kfp.local`; its parent shows progress and handles Ctrl-C.

Started as ``python -m secvec.pipelines.worker JOB``, where JOB is a JSON file with the pipeline's parameters
and its folders. All that KFP and the steps print goes to this process's standard output.
"""

from __future__ import annotations

import json
import os
import signal
import stat
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from secvec.components.shared import tracking
from secvec.components.shared.errors import SecvecError
from secvec.components.shared.progress import report, running_step
from secvec.components.shared.references import Kind, Reference

Runner = Literal["subprocess", "docker"]
SECONDS_TO_STOP = 25  # a training that is asked to end has written its checkpoint within 20


class Job(BaseModel):
    """What the worker is to run.

    Attributes:
        parameters: The pipeline's parameters.
        work: Folder for what KFP passes between the steps, in the run's output folder.
        artifacts: Folder for MLflow artifacts of a local tracking store.
        outcome: File that the outcome is written to when the pipeline has ended well.
        runner: Whether steps run as processes of this machine or in containers of the parameters' image.
        container_user: ``UID[:GID]`` of the steps in containers; empty for the usual one.
    """

    parameters: dict[str, Any]
    work: Path
    artifacts: Path
    outcome: Path
    runner: Runner = "subprocess"
    container_user: str = ""


class JobOutcome(BaseModel):
    """What a finished pipeline leaves for its reader; no evaluation where nothing had changed."""

    run_id: str
    tracking_uri: str
    evaluation: Reference | None
    verdict: Reference


def run_job(job: Job) -> JobOutcome:
    """Run the pipeline in subprocesses of this one, or in containers.

    Raises:
        RuntimeError: A step failed; the step has reported why.
        SecvecError: MLflow or the container engine cannot be reached, or the pipeline ended without its
            results.
    """
    from secvec.pipelines.guarded_fine_tuning.pipeline import choose_pipeline

    pipeline = choose_pipeline(sharded="shares" in job.parameters)
    name = "{guard}-{task}-seed{seed}".format_map(job.parameters)
    with _shared_mlflow_run(name, artifacts=job.artifacts) as run_id:
        _choose_runner(job)
        _forget_retries(pipeline.pipeline_spec)
        pipeline(**job.parameters)
        kept = _find_kept_verdict(job.work)
        return JobOutcome(
            run_id=run_id,
            tracking_uri=os.environ[tracking.URI_VARIABLE],
            evaluation=None if kept else _find_output(job.work, "evaluate-harm", "evaluation"),
            verdict=kept or _find_output(job.work, "gate-promotion", "verdict"),
        )


def _forget_retries(spec: Any) -> None:
    """On this machine what fails is told at once; the same command then goes on from what is finished."""
    for group in (spec.root, *spec.components.values()):
        for task in group.dag.tasks.values():
            task.ClearField("retry_policy")


def _find_kept_verdict(work: Path) -> Reference | None:
    """The verdict of a run that stopped after ingestion, because nothing had changed since the champion."""
    found = sorted(work.glob("tasks/*/compare-champion*/comparison"))
    comparison = json.loads(found[0].read_text()) if len(found) == 1 else {}
    if comparison.get("unchanged") is not True:
        return None
    if left := sorted(work.glob("tasks/*/gate-promotion*")):
        raise SecvecError("ran although nothing had changed", where=left[0].name, accepted="no gate")
    return Reference.model_validate(comparison["verdict"])


def _choose_runner(job: Job) -> None:
    from kfp import local

    roots = {"pipeline_root": job.work / "tasks", "workspace_root": job.work / "workspace"}
    for folder in roots.values():
        folder.mkdir()
    if job.runner == "docker":
        from secvec.pipelines.container_setup import prepare_containers

        runner = prepare_containers(job.parameters, output=job.work.parent, user=job.container_user)
    else:
        # The subprocess runner starts no image and warns of those without `python` in their name.
        warnings.filterwarnings("ignore", category=RuntimeWarning, module="kfp")
        runner = local.SubprocessRunner(use_venv=False)
    local.init(runner, **{name: str(folder) for name, folder in roots.items()})


@contextmanager
def _shared_mlflow_run(name: str, *, artifacts: Path) -> Iterator[str]:
    """Open the one MLflow run that all steps log to, or use the one that the environment names."""
    if given := os.environ.get(tracking.RUN_VARIABLE):
        yield given
        return
    with running_step("open_mlflow_run"):
        client, run_id = _open_mlflow_run(name, artifacts=artifacts)
    os.environ[tracking.RUN_VARIABLE] = run_id
    status = "FAILED"
    try:
        yield run_id
        status = "FINISHED"
    except SystemExit:
        status = "KILLED"
        raise
    finally:
        client.set_terminated(run_id, status)


def _open_mlflow_run(name: str, *, artifacts: Path) -> tuple[Any, str]:
    uri = os.environ[tracking.URI_VARIABLE]
    experiment = os.environ.get(tracking.EXPERIMENT_VARIABLE) or tracking.DEFAULT_EXPERIMENT
    # A server decides for itself where artifacts go.
    root = "" if uri.startswith("http") else artifacts.as_uri()
    tracking.initialise(uri, root, experiment=experiment)
    client = tracking.connect(uri)
    with tracking.mlflow_errors(uri):
        experiment_id = client.get_experiment_by_name(experiment).experiment_id
        run_id = str(client.create_run(experiment_id, run_name=name).info.run_id)
    return client, run_id


def _find_output(work: Path, task: str, kind: Kind) -> Reference:
    found = sorted(work.glob(f"tasks/*/{task}*/{kind}"))
    if len(found) != 1:
        # KFP counts a branch that it could not decide on as success.
        raise SecvecError(
            f"{len(found)} results of {task}", where="pipeline", accepted="exactly one evaluation and verdict"
        )
    return Reference.model_validate_json(found[0].read_text())


_without_command = threading.Event()


def _outlive_no_command() -> None:
    """End this process and its steps when the command was killed: the next run must not meet them.

    The command holds the other end of this process's standard input as long as it lives. This process holds
    the output folder until the last step has ended.
    """
    while os.read(0, 1):
        pass
    _without_command.set()
    os.killpg(0, signal.SIGTERM)
    until = time.monotonic() + SECONDS_TO_STOP
    while _others_in_group() and time.monotonic() < until:
        time.sleep(0.1)
    os.killpg(0, signal.SIGKILL)


def _others_in_group() -> bool:
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, group, *_ = entry.read_text().rpartition(")")[2].split()
            if int(group) == os.getpgrp() and state != "Z" and int(entry.parent.name) != os.getpid():
                return True
    return False


def _end(*_: object) -> None:
    if not _without_command.is_set():
        sys.exit(143)


def main() -> None:
    """Run the job that the command line names; exit status 1 if it failed."""
    signal.signal(signal.SIGTERM, _end)
    watch = threading.Thread(target=_outlive_no_command, daemon=True)
    if stat.S_ISFIFO(os.fstat(0).st_mode):
        watch.start()
    job = Job.model_validate(json.loads(Path(sys.argv[1]).read_text()))
    try:
        outcome = run_job(job)
    except SecvecError as error:
        report("run_failed", error=str(error))
        print(f"secvec: error: {error}", file=sys.stderr)
        sys.exit(1)
    finally:
        if _without_command.is_set():
            watch.join()
    job.outcome.write_text(outcome.model_dump_json(indent=2) + "\n")


if __name__ == "__main__":
    main()
