"""What is known about a run while it runs, from the events that its steps report."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

State = Literal["waiting", "running", "done", "failed"]


@dataclass
class StepProgress:
    """One step of the run.

    Attributes:
        name: The name under which the step reports.
        started: Seconds since the epoch, as are all times.
        task: What is being counted inside the step just now, with `done` of `total`.
    """

    name: str
    state: State = "waiting"
    started: float = 0.0
    ended: float = 0.0
    task: str = ""
    done: int = 0
    total: int = 0
    per_second: float = 0.0
    seconds_left: float | None = None

    def elapsed(self, now: float) -> float:
        """Seconds that the step has taken so far."""
        return (self.ended or now) - self.started if self.started else 0.0


@dataclass
class RunProgress:
    """All steps in the order they are expected, and the first error with the exit status of its kind."""

    steps: list[StepProgress]
    error: str = ""
    failed_step: str = ""
    status: int = 1
    _by_name: dict[str, StepProgress] = field(default_factory=dict)

    @classmethod
    def expecting(cls, names: Iterable[str]) -> RunProgress:
        """Start with every step waiting."""
        steps = [StepProgress(name) for name in names]
        return cls(steps=steps, _by_name={step.name: step for step in steps})

    def running(self) -> StepProgress | None:
        """Give the step that runs now; of several, the one that started last."""
        found = [step for step in self.steps if step.state == "running"]
        return max(found, key=lambda step: step.started) if found else None

    def take(self, event: Mapping[str, Any]) -> None:
        """Follow one event."""
        kind, now = event["event"], float(event["time"])
        if kind == "run_failed":
            self.error = self.error or str(event["error"])
        elif kind == "progress":
            self._count(event)
        elif kind in ("step_started", "step_done", "step_failed"):
            step = self._step(str(event["step"]))
            if kind == "step_started":
                step.state, step.started, step.ended = "running", now, 0.0
            else:
                step.state, step.ended, step.task = ("done" if kind == "step_done" else "failed"), now, ""
            if kind == "step_failed":
                self.failed_step = self.failed_step or step.name
                self.status = self.status if self.error else int(event.get("status", 1))
                self.error = self.error or str(event["error"])

    def _step(self, name: str) -> StepProgress:
        if name not in self._by_name:
            self._by_name[name] = StepProgress(name)
            self.steps.append(self._by_name[name])
        return self._by_name[name]

    def _count(self, event: Mapping[str, Any]) -> None:
        step = self.running()
        if step is not None:
            step.task, step.done, step.total = str(event["task"]), int(event["done"]), int(event["total"])
            step.per_second = float(event["per_second"])
            step.seconds_left = event["seconds_left"]


class EventReader:
    """Reads the events that were appended to a file since the last call."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def read(self) -> Iterator[dict[str, Any]]:
        """Yield new events; a line that is still being written waits for the next call."""
        if not self._path.exists():
            return
        with self._path.open("rb") as stream:
            stream.seek(self._offset)
            for line in stream:
                if not line.endswith(b"\n"):
                    return
                self._offset += len(line)
                yield json.loads(line)
