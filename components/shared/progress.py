"""Progress of a step, for whoever watches: a terminal, a pod's log, or the command that runs the pipeline.

A step reports to the file named by ``SECVEC_EVENTS`` (one JSON object per line) when a local run set it,
and to the log otherwise, so that the same code shows a live bar on a laptop and readable lines in a pod.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from secvec.components.shared.errors import SecvecError, Terminated

EVENTS_VARIABLE = "SECVEC_EVENTS"
_LOG_EVERY_SECONDS = 10.0
_TERMINATED = Terminated.status


def report(event: str, **fields: Any) -> None:
    """Append one event to the events file; without one, print a line."""
    target = os.environ.get(EVENTS_VARIABLE)
    if target:
        with Path(target).open("a") as stream:
            stream.write(json.dumps({"time": time.time(), "event": event, **fields}) + "\n")
    else:
        shown = " ".join(f"{key}={value}" for key, value in fields.items())
        print(f"secvec {event} {shown}", flush=True)


@contextmanager
def running_step(name: str) -> Iterator[None]:
    """Frame a step: report its start and end, and end the process with one line on a user's error.

    SIGTERM ends it in order too, so that what it was building is removed; a training takes it for itself.

    Raises:
        SystemExit: With the error's status, after the one line of a `SecvecError` went to standard error.
    """
    report("step_started", step=name)
    started = time.monotonic()
    in_main_thread = threading.current_thread() is threading.main_thread()
    if in_main_thread and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _end)
    try:
        yield
    except SecvecError as error:
        report("step_failed", step=name, error=str(error), status=error.status)
        # Whoever reads it may have been asked to end as well, and be gone.
        with suppress(BrokenPipeError):
            print(f"secvec {name}: error: {error}", file=sys.stderr, flush=True)
        raise SystemExit(error.status) from None
    except _Ended:
        report("step_failed", step=name, error="was asked to end (SIGTERM)", status=_TERMINATED)
        raise
    except BaseException as error:
        report("step_failed", step=name, error=f"{type(error).__name__}: {error}")
        raise
    report("step_done", step=name, seconds=round(time.monotonic() - started, 3))


class _Ended(SystemExit):
    pass


def _end(*_: Any) -> None:
    raise _Ended(_TERMINATED)


class Progress:
    """Counts work done towards a total and reports it a few times a second, with rate and time left.

    Args:
        task: What is being counted, for example ``fine-tune guarded``.
        total: How many units there are.
    """

    def __init__(self, task: str, total: int) -> None:
        self.task = task
        self.total = total
        self.done = 0
        self._started = time.monotonic()
        self._reported = 0.0

    def advance(self, by: int = 1) -> None:
        """Count more units as done."""
        self.move_to(self.done + by)

    def move_to(self, done: int) -> None:
        """Set how many units are done."""
        self.done = done
        now = time.monotonic()
        quiet = 0.2 if os.environ.get(EVENTS_VARIABLE) else _LOG_EVERY_SECONDS
        if done >= self.total or now - self._reported >= quiet:
            self._reported = now
            rate = done / max(now - self._started, 1e-9)
            report(
                "progress",
                task=self.task,
                done=done,
                total=self.total,
                per_second=round(rate, 2),
                seconds_left=round((self.total - done) / rate, 1) if rate else None,
            )
