"""Run: ``python -m tests.benchmarks.efficacy OUT [--tier quick|core|axes|all] [--workers N] [--minutes M]``.

Trains every arm of every cell and writes ``OUT/efficacy.json``, ``OUT/efficacy.md`` and ``OUT/efficacy.png``.
Results are kept arm by arm in ``OUT/cells``; a run that was ended goes on where it was. Exit status 1 if the
default guard missed its bounds in a cell: harm over 0.02, or utility under 0.95 of the oracle's.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.benchmarks.efficacy.plan import TIERS, plan
from tests.benchmarks.efficacy.results import report
from tests.benchmarks.efficacy.running import run_jobs


def main() -> int:
    """Run what is missing, then write the results."""
    # progress bars of single trainings would bury the one line per arm
    os.environ["SECVEC_EVENTS"] = os.devnull
    options = _read_options()
    (options.out / "cells").mkdir(parents=True, exist_ok=True)
    ends = options.ends or time.time() + 60 * options.minutes
    if options.workers == 1:
        run_jobs(plan(options.tier), options.out, claims=options.claims, ends=ends)
    else:
        with tempfile.TemporaryDirectory() as claims:
            _start_workers(options, claims=claims, ends=ends)
    if options.claims:
        return 0
    return 1 if report(options.out, command=f"make bench-efficacy TIER={options.tier}") else 0


def _read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tier", choices=TIERS, default="quick")
    parser.add_argument("--minutes", type=float, default=600.0, help="begin no further arm after these")
    parser.add_argument("--workers", type=int, default=1, help="processes, each on one thread")
    parser.add_argument("--claims", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--ends", type=float, help=argparse.SUPPRESS)
    return parser.parse_args()


def _start_workers(options: argparse.Namespace, *, claims: str, ends: float) -> None:
    command = [sys.executable, "-m", "tests.benchmarks.efficacy", str(options.out), "--tier", options.tier]
    command += ["--claims", claims, "--ends", str(ends)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    running = [subprocess.Popen(command, env=environment) for _ in range(options.workers)]
    for process in running:
        process.wait()


if __name__ == "__main__":
    sys.exit(main())
