"""Run: ``python -m tests.benchmarks.tampers [--count 10000] [--clean 1000] [--workers N] [--seed 0]``.

Random tampering with everything that a promotion leaves behind: is all of it refused, and nothing else?

A promoted model with real keys, a real registry and a real store is tampered with in one place at a time: the
log, its checkpoints, the signed statements (evaluation, provenance, verdict, receipt, model signature), the
manifests, the model, the sealed vector and the policy. Whoever tampers can write anywhere, forge manifests
and put back what is signed about another model; they have no key. After each, whatever stands in front of it
in earnest must refuse it. Then clean promotions, each with other data, which must raise no alarm anywhere.

Prints one JSON object; exit status 1 when a tamper was taken or a clean run refused.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from secvec.components.shared.errors import SecvecError
from tests.benchmarks.tampers.changes import tamper
from tests.benchmarks.tampers.targets import Target, files_of
from tests.benchmarks.tampers.world import World


@dataclass
class Result:
    """What came of some tampers and some clean runs."""

    refused: Counter[str] = field(default_factory=Counter)
    taken: list[str] = field(default_factory=list)
    clean: int = 0
    alarms: list[str] = field(default_factory=list)

    def __add__(self, other: Result) -> Result:
        return Result(
            self.refused + other.refused,
            self.taken + other.taken,
            self.clean + other.clean,
            self.alarms + other.alarms,
        )


def run_tampers(world: World, number: int, draw: random.Random) -> Result:
    """Tamper so many times, evenly over the targets, and put everything back each time."""
    result = Result()
    targets = world.targets()
    for target in targets.values():
        target.check()
    while number:
        for name, target in list(targets.items())[:number]:
            kept = {file: file.read_bytes() for file in target.files}
            done = ""
            while not done:
                done = tamper(target, draw)
                if done:
                    note(result, f"{name}: {done}", target.check)
                restore(target, kept)
            number -= 1
    return result


def note(result: Result, what: str, check: Callable[[], Any]) -> None:
    """Count whether a check refuses; a traceback is no refusal."""
    try:
        check()
    except SecvecError:
        result.refused[what] += 1
    except Exception as error:
        result.taken.append(f"{what}: {type(error).__name__}: {error}"[:300])
    else:
        result.taken.append(what)


def restore(target: Target, kept: dict[Path, bytes]) -> None:
    """Put everything back as it was."""
    for path in files_of(target.folder) if target.folder else []:
        if path not in kept:
            path.unlink()
    for path, content in kept.items():
        if path.is_symlink():
            path.unlink()
        path.write_bytes(content)


def run_clean(world: World, number: int) -> Result:
    """Promote so many other models; nothing may object to any of them."""
    result = Result(clean=number)
    for one in range(3, number + 3):
        try:
            world.check_clean(world.promote(one))
        except Exception as error:
            result.alarms.append(f"{type(error).__name__}: {error}"[:300])
    return result


def work(share: tuple[int, int, int]) -> Result:
    """One process's share: its seed, and how many tampers and clean runs."""
    seed, tampers, clean = share
    with tempfile.TemporaryDirectory() as scratch:
        world = World(Path(scratch))
        return run_tampers(world, tampers, random.Random(seed)) + run_clean(world, clean)


def main() -> int:
    """Share the work out and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--clean", type=int, default=1_000)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    share = [
        (
            chosen.seed * 1000 + worker,
            *(len(range(worker, n, chosen.workers)) for n in (chosen.count, chosen.clean)),
        )
        for worker in range(chosen.workers)
    ]
    start = time.monotonic()
    with ProcessPoolExecutor(chosen.workers) as pool:
        result = sum(pool.map(work, share), Result())
    by_target, by_change = (Counter[str](), Counter[str]())
    for what, times in result.refused.items():
        by_target[what.split(": ")[0]] += times
        by_change[what.split(": ")[1]] += times
    print(
        json.dumps(
            {
                "tampers": result.refused.total() + len(result.taken),
                "refused": result.refused.total(),
                "taken": result.taken,
                "clean_runs": result.clean,
                "false_alarms": result.alarms,
                "refused_by_target": by_target,
                "refused_by_change": by_change,
                "seconds": round(time.monotonic() - start),
            },
            indent=2,
        )
    )
    return int(bool(result.taken or result.alarms))


if __name__ == "__main__":
    sys.exit(main())
