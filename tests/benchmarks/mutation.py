"""Run: ``python -m tests.benchmarks.mutation OUT [AREA ...] [--workers N] [--minutes M] [--sample N]``.

Do the tests notice when the code is wrong? mutmut changes one thing at a time in the gate, the audit log and
the absence proof, and runs the tests that reach it. OUT/<area> is a copy of the tree, laid out as mutmut
wants it (``src/secvec/...``); a run that was ended goes on where it was. Writes OUT/<area>.json with every
survivor's diff. Exit status 1 if an area is done and fewer than 90% of its mutants were killed. All areas
take some 700 minutes of a processor; `--sample` tests so many of each, drawn at random, and the interval of
the share (95%, Clopper and Pearson) says what that is worth.

Left alone are the words of errors and reports: lines that say ``accepted=`` or ``where=``.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from scipy.stats import binomtest

ROOT = Path(__file__).parents[2]
WANTED = 0.9
OLD_SECONDS = 900
KILLED = {"killed", "timeout", "caught by type check"}


@dataclass(frozen=True)
class Area:
    """What is mutated, and the tests that must notice.

    Attributes:
        code: Modules, as paths under ``components`` without ``.py``; globs.
        tests: Paths under ``tests/components``.
        without: Tests that `pytest -k` leaves out: slow ones of what others reach as well.
        seconds: How long a test may take before it counts as failed; a mutant may wait for ever.
    """

    code: tuple[str, ...]
    tests: tuple[str, ...]
    without: str = ""
    seconds: int = 30


def _gate(names: str) -> tuple[str, ...]:
    return tuple(f"gate_promotion/{name}" for name in names.split())


AREAS = {
    "judgement": Area(
        code=_gate("attempts chain evidence figures judges noninferiority policy statement suites verdict"),
        tests=_gate(
            "test_reasons.py test_tampers.py test_judges.py test_noninferiority.py test_policy.py "
            "test_step.py"
        ),
        without="covers_the_truth",
    ),
    "promotion": Area(
        code=_gate(
            "approvals champion intents ledger promoting promotion reconciliation step turns "
            "verdict_artifact verification_summary"
        ),
        tests=_gate("test_promoting.py test_step.py test_approvals.py test_verified_model.py"),
        without="racing or on_s3",
    ),
    "audit": Area(
        code=("shared/audit*",),
        tests=tuple(f"shared/test_audit{name}.py" for name in ("", "_chain", "_checkpoints", "_tampers")),
    ),
    "absence": Area(
        code=("remove_security_vector/proof", "remove_security_vector/expectation"),
        tests=("remove_security_vector/test_proof.py", "remove_security_vector/test_architectures.py"),
        seconds=120,
    ),
}


def stage(area: Area, folder: Path) -> None:
    """Copy the tree to where mutmut finds ``secvec`` as a package; only what changed is copied again."""
    for source, target in {"components": "src/secvec", "pipelines": "src/secvec", "tests": "."}.items():
        for path in (ROOT / source).rglob("*"):
            copy = folder / target / path.relative_to(ROOT)
            if path.is_file() and "__pycache__" not in path.parts and not _is_same(path, copy):
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, copy)
    shutil.copy2(ROOT / "pyproject.toml", folder)
    settings = {
        "source_paths": ["src"],
        "only_mutate": [f"src/secvec/components/{glob}.py" for glob in area.code],
        "do_not_mutate_patterns": ["accepted=", "where="],
        "pytest_add_cli_args_test_selection": [f"tests/components/{path}" for path in area.tests],
        "pytest_add_cli_args": [
            "-m",
            "not slow",
            "-p",
            "no:cacheprovider",
            "-o",
            "tmp_path_retention_policy=all",
            f"--timeout={area.seconds}",
        ],
        "track_dependencies": ["false"],
        "timeout_multiplier": ["4"],
        "timeout_constant": ["10"],
    }
    if area.without:
        settings["pytest_add_cli_args"] += ["-k", f"not ({area.without})"]
    lines = [
        f"{name} =\n    " + "\n    ".join(values) for name, values in settings.items() if len(values) > 1
    ]
    lines += [f"{name} = {values[0]}" for name, values in settings.items() if len(values) == 1]
    (folder / "setup.cfg").write_text("[mutmut]\n" + "\n".join(lines) + "\n")


def _is_same(path: Path, copy: Path) -> bool:
    return copy.is_file() and copy.stat().st_mtime_ns == path.stat().st_mtime_ns


def run_mutmut(folder: Path, *, workers: int, seconds: float, names: Sequence[str] = ()) -> None:
    """Let mutmut go on for a while.

    Args:
        folder: What `stage` made.
        workers: Processes.
        seconds: When to end it.
        names: Mutants to test; by default all that have no result yet.
    """
    scratch, code = folder / "tmp", folder / "mutants" / "src"
    scratch.mkdir(exist_ok=True)
    code.mkdir(parents=True, exist_ok=True)  # a path that is not there at the start is never searched again
    environment = {
        **os.environ,
        "PYTHONPATH": str(code),
        "PYTEST_DEBUG_TEMPROOT": str(scratch),
        "SECVEC_TEST_REGISTRY": str(folder / "registry"),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "mutmut", "run", "--max-children", str(workers), *names]
    with (folder / "mutmut.log").open("ab") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
        )
        ends = time.monotonic() + seconds
        while process.poll() is None and time.monotonic() < ends:
            time.sleep(min(20, max(0.1, ends - time.monotonic())))
            clear(scratch)
        if process.poll() is None:
            os.killpg(process.pid, 15)
            process.wait()
    shutil.rmtree(scratch, ignore_errors=True)


def clear(scratch: Path) -> None:
    """Remove what ended sessions left, but for the newest: MLflow keeps files open by name."""
    folders = sorted(scratch.glob("pytest-of-*/pytest-[0-9]*"), key=lambda one: one.stat().st_mtime)
    for folder in folders[:-50]:
        if time.time() - folder.stat().st_mtime > OLD_SECONDS:
            shutil.rmtree(folder, ignore_errors=True)


def draw_sample(folder: Path, size: int, *, workers: int, seconds: float) -> list[str]:
    """The names of so many mutants, always the same ones of the same code."""
    if not read_results(folder):
        run_mutmut(folder, workers=workers, seconds=seconds, names=["none of them"])
    names = sorted(read_results(folder))
    return Random(0).sample(names, min(size, len(names)))


def forget_survivors(folder: Path) -> None:
    """Have those tested again that were not killed: there may be new tests."""
    for meta in (folder / "mutants").rglob("*.py.meta"):
        content = json.loads(meta.read_text())
        codes = content["exit_code_by_key"]
        kept = {name: code if _status(code) in KILLED else None for name, code in codes.items()}
        meta.write_text(json.dumps({**content, "exit_code_by_key": kept}))


def _status(code: int | None) -> str:
    from mutmut.stats import status_by_exit_code

    return str(status_by_exit_code[code])


def read_results(folder: Path) -> dict[str, str]:
    """What became of every mutant, by its name."""
    found: dict[str, str] = {}
    for meta in sorted((folder / "mutants").rglob("*.py.meta")):
        codes = json.loads(meta.read_text())["exit_code_by_key"]
        found |= {name: _status(code) for name, code in codes.items()}
    return found


def summarise(folder: Path, found: dict[str, str]) -> dict[str, Any]:
    """Score and survivors of one area."""
    counts = Counter(found.values())
    tested = len(found) - counts["not checked"]
    killed = sum(counts[status] for status in KILLED)
    survivors = [name for name, status in found.items() if status not in KILLED | {"not checked"}]
    interval = binomtest(killed, tested).proportion_ci(method="exact") if tested else ()
    return {
        "mutants": len(found),
        "tested": tested,
        "score": round(killed / tested, 4) if tested else None,
        "interval": [round(float(bound), 4) for bound in interval],
        "counts": dict(counts),
        "survivors": {name: f"{found[name]}\n{show(folder, name)}" for name in survivors},
    }


def show(folder: Path, name: str) -> str:
    """The changed lines of a mutant."""
    done = subprocess.run(
        [sys.executable, "-m", "mutmut", "show", name],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = done.stdout.splitlines()
    return "\n".join(line for line in lines if line[:1] in "+-" and line[:3] not in ("+++", "---"))


def main() -> int:
    """Mutate what is left of each area, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("areas", nargs="*", default=list(AREAS), metavar="AREA", help=", ".join(AREAS))
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--minutes", type=float, default=600.0, help="of each area, at most")
    parser.add_argument("--again", action="store_true", help="test survivors once more")
    parser.add_argument("--sample", type=int, help="mutants of each area to test, drawn at random")
    options = parser.parse_args()
    failed = False
    for name in options.areas:
        folder = (options.out / name).resolve()
        stage(AREAS[name], folder)
        if options.again:
            forget_survivors(folder)
        limits = {"workers": options.workers, "seconds": 60 * options.minutes}
        chosen = draw_sample(folder, options.sample, **limits) if options.sample else []
        results = read_results(folder)
        missing = [mutant for mutant in chosen if results[mutant] == "not checked"]
        if missing or not chosen:
            run_mutmut(folder, **limits, names=missing)
        results = read_results(folder)
        found = summarise(folder, {mutant: results[mutant] for mutant in chosen or results})
        (options.out / f"{name}.json").write_text(json.dumps(found, indent=2) + "\n")
        print(name, {key: value for key, value in found.items() if key != "survivors"}, flush=True)
        failed = failed or (found["tested"] == found["mutants"] and (found["score"] or 0) < WANTED)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
