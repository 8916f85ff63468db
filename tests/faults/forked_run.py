"""Runs ``secvec run`` as the processes that it is, each forked from one that has imported everything.

A run starts a dozen interpreters, and most of its time goes into their imports: forks leave the work.
What runs in them is the command, the worker and the steps as they are; only how they start is replaced.
"""

from __future__ import annotations

import atexit
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.faults.write_points import install

_PRELOADED = [
    "matplotlib.pyplot",
    "mlflow",
    "peft",
    "sqlalchemy",
    "torch",
    "transformers",
    "kfp.local",
    "kfp.dsl.executor_main",
    "mlflow.store.tracking.sqlalchemy_store",
    "mlflow.store.model_registry.sqlalchemy_store",
    "boto3",
    "accelerate",
    "securesystemslib.signer",
    "scipy.stats",
    "statsmodels.stats.multitest",
    "jinja2",
    "pyarrow.parquet",
    "secvec.components.compare_champion.step",
    "secvec.components.evaluate_harm.step",
    "secvec.components.fine_tune_guarded.step",
    "secvec.components.gate_promotion.step",
    "secvec.components.ingest_data.step",
    "secvec.components.record_outcome.step",
    "secvec.components.remove_security_vector.step",
    "secvec.components.train_security_vector.step",
    "secvec.pipelines.command",
    "secvec.pipelines.local",
    "secvec.pipelines.summary",
    "secvec.pipelines.worker",
    "secvec.pipelines.guarded_fine_tuning.pipeline",
]


def preload() -> None:
    """Import once what all processes of a run need."""
    import importlib

    for name in _PRELOADED:
        importlib.import_module(name)
    import torch

    torch.set_num_threads(1)


def start_command(arguments: list[str], *, environment: Mapping[str, str], log: Path) -> ForkedProcess:
    """Start ``secvec`` with arguments in a process and session of its own."""

    def command() -> None:
        from secvec.pipelines import command, local

        install("command")
        local.subprocess = SimpleNamespace(**vars(subprocess) | {"Popen": _start_worker})  # type: ignore
        sys.argv = ["secvec", *arguments]
        command.main()

    with log.open("ab") as stream:
        return ForkedProcess(command, environment=environment, output=stream.fileno(), new_session=True)


def _start_worker(command: list[str], *, env: Mapping[str, str], stdout: Any, **_: Any) -> ForkedProcess:
    def work() -> None:
        from kfp.local import subprocess_task_handler

        from secvec.pipelines import worker

        install("worker")
        subprocess_task_handler.run_local_subprocess = _run_step
        sys.argv = ["worker", command[-1]]
        worker.main()

    return ForkedProcess(work, environment=env, output=stdout.fileno(), new_session=True, piped=True)


def _run_step(full_command: list[str], env_vars: Mapping[str, str] | None = None) -> int:
    """What KFP's subprocess runner does with a lightweight component: its source, its input, its name."""
    source, arguments = full_command[3], full_command[4:]

    def step() -> None:
        from kfp.dsl.executor_main import executor_main

        install(name_step(arguments))
        folder = Path(tempfile.mkdtemp())
        (folder / "ephemeral_component.py").write_text(source)
        sys.argv = [
            "executor", "--component_module_path", str(folder / "ephemeral_component.py"), *arguments
        ]  # fmt: skip
        executor_main()

    environment = {**os.environ, **(env_vars or {}), "_KFP_RUNTIME": "true"}
    return ForkedProcess(step, environment=environment).wait()


def name_step(arguments: list[str]) -> str:
    """The step's name, with its arm where there are two."""
    name = arguments[arguments.index("--function_to_execute") + 1]
    text = arguments[arguments.index("--executor_input") + 1]
    arm = next((arm for arm in ("unguarded", "guarded") if f'"arm": "{arm}"' in text), "")
    return f"{name} ({arm})" if arm else name


class ForkedProcess:
    """What `subprocess.Popen` is, for a function of this interpreter in place of a program."""

    def __init__(
        self,
        work: Callable[[], None],
        *,
        environment: Mapping[str, str],
        output: int = -1,
        new_session: bool = False,
        piped: bool = False,
    ) -> None:
        self.returncode: int | None = None
        self.stdin, reading = (os.pipe()[::-1]) if piped else (-1, -1)
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            if piped:
                os.dup2(reading, 0)
                os.close(self.stdin)
            _be(work, environment=environment, output=output, new_session=new_session)
        # Popen, too, gives a process that has its session already.
        while new_session and self.poll() is None and os.getpgid(self.pid) != self.pid:
            time.sleep(0.001)

    def poll(self) -> int | None:
        """The exit status, if it has ended."""
        if self.returncode is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            if ended:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end."""
        until = time.monotonic() + timeout if timeout is not None else None
        while self.poll() is None:
            if until is not None and time.monotonic() > until:
                raise subprocess.TimeoutExpired("forked", timeout or 0)
            time.sleep(0.005)
        assert self.returncode is not None
        return self.returncode


def _be(work: Callable[[], None], *, environment: Mapping[str, str], output: int, new_session: bool) -> None:
    status = 1
    try:
        # A program begins with these.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if new_session:
            os.setsid()
        if output >= 0:
            os.dup2(output, 1)
            os.dup2(output, 2)
        os.environ.clear()
        os.environ.update(environment)
        tempfile.tempdir = None  # is remembered from the first call on
        work()
        status = 0
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)
