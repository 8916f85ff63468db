"""Feeds inputs to a target and keeps what went wrong."""

from __future__ import annotations

import shutil
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings

from secvec.components.shared.errors import SecvecError
from tests.fuzz.targets import Target

LONGEST_SECONDS = 5.0


@dataclass
class Outcome:
    """What became of a target's inputs.

    Attributes:
        fed: How many there were.
        refused: How many ended in a typed error, which was one line.
        slowest: Processor seconds of the slowest.
        defects: Input and traceback of each that ended in anything else, at most ten.
    """

    fed: int = 0
    refused: int = 0
    slowest: float = 0.0
    defects: list[str] = field(default_factory=list)


def feed_target(target: Target, inputs: int, *, start: int = 0) -> Outcome:
    """Feed so many inputs to a target; the same number and start give the same inputs."""
    outcome = Outcome()
    for number in range(start, start + 50):
        left = inputs - outcome.fed
        if left <= 0:
            break
        _feed(target, outcome, left, number)
    return outcome


def _feed(target: Target, outcome: Outcome, inputs: int, number: int) -> None:
    @seed(number)
    @settings(
        max_examples=inputs,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(target.inputs)
    def run(found: Any) -> None:
        if len(outcome.defects) < 10:
            _feed_one(target, found, outcome)

    run()


def _feed_one(target: Target, found: Any, outcome: Outcome) -> None:
    outcome.fed += 1
    # Processor time: a machine that others use makes nothing here hang.
    started = time.process_time()
    with _folder() as folder:
        try:
            target.feed(found, folder)
        except target.errors as error:
            outcome.refused += 1
            if "\n" in str(error) and isinstance(error, SecvecError):
                outcome.defects.append(f"{found!r}: not one line: {error}")
        except Exception:
            outcome.defects.append(f"{found!r}\n{traceback.format_exc()}")
    seconds = time.process_time() - started
    outcome.slowest = max(outcome.slowest, seconds)
    if seconds > LONGEST_SECONDS:
        outcome.defects.append(f"{found!r}: took {seconds:.1f} s")


@contextmanager
def _folder() -> Iterator[Path]:
    shared = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="secvec-fuzz-", dir=shared if shared.is_dir() else None))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
