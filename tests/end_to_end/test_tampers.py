"""Random tampering with everything that a promotion leaves behind, in the benchmark's own process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TARGETS = 14


@pytest.mark.parametrize(
    ("tampers", "clean"), [(280, 4), pytest.param(10_000, 1_000, marks=pytest.mark.slow)], ids=["few", "all"]
)
@pytest.mark.timeout(3600)
def test_every_tamper_is_refused_and_nothing_else(tampers: int, clean: int) -> None:
    command = [sys.executable, "-m", "tests.benchmarks.tampers", "--workers", "1" if tampers < 1000 else "2"]
    done = subprocess.run(
        [*command, "--count", str(tampers), "--clean", str(clean)],
        cwd=ROOT,
        env={**os.environ, "SECVEC_EVENTS": os.devnull},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout, done.stderr
    found = json.loads(done.stdout)
    assert (done.returncode, found["taken"], found["false_alarms"]) == (0, [], [])
    assert (found["refused"], found["clean_runs"]) == (tampers, clean)
    assert len(found["refused_by_target"]) == TARGETS
    assert min(found["refused_by_target"].values()) >= tampers // TARGETS
