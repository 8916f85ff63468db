"""What tests of `secvec submit` share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Command = Callable[..., Any]
WRITES_OF_A_FIRST_SUBMIT = [
    "ExperimentService_CreateExperiment",
    "PipelineService_CreatePipeline",
    "UploadPipelineVersion",
    "RunService_CreateRun",
]


def the_line(done: Any, status: int = 1) -> str:
    assert done.status == status, done
    (line,) = done.err.splitlines()
    assert line.startswith("secvec: ")
    return str(line)


def task(name: str, state: str, *, ended: bool = False) -> dict[str, Any]:
    """A task as Kubeflow gives it: what has not happened yet happened in 1970."""
    return {
        "display_name": name,
        "state": state,
        "start_time": "2026-01-01T00:00:05Z",
        "end_time": "2026-01-01T00:01:10Z" if ended else "1970-01-01T00:00:00Z",
    }


def frame(state: str, *tasks: dict[str, Any]) -> dict[str, Any]:
    return {"state": state, "run_details": {"task_details": list(tasks)}}
