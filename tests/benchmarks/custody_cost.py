"""Run: ``python -m tests.benchmarks.custody_cost OUT``.

What custody, the log, the evidence and the gate add to the demo: runs it into OUT with a stopwatch around
every outermost call of what they consist of, in every process. Imports that such a call brings about count.

Prints one JSON object; exit status 1 when it is more than 10 s by the clock, or the demo did not pass.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

WANTED_SECONDS = 10.0
TIMED = {
    "secvec.components.shared.audit": ["append", "append_all", "note", "verify"],
    "secvec.components.shared.audit_checkpoints": ["write_checkpoint", "verify_log"],
    "secvec.components.shared.custody": ["ensure_custody_key", "seal", "open_sealed"],
    "secvec.components.shared.signing_keys": ["ensure_signing_key"],
    "secvec.components.shared.attestation": ["sign_statement", "verify_statement"],
    "secvec.components.shared.provenance": ["attest", "find_provenance"],
    "secvec.components.shared.vectors": ["publish_vector", "open_vector", "read_certificate"],
    "secvec.components.gate_promotion.step": ["gate_promotion"],
}
# What every Python process of the demo runs at its start.
HOOK = """
import functools, importlib.abc, importlib.machinery, json, os, sys, time
TIMED, PLACE, inside = json.loads(os.environ["TIMED"]), os.environ["TIMED_INTO"], []
def timed(name, function):
    @functools.wraps(function)
    def call(*args, **kwargs):
        if inside:
            return function(*args, **kwargs)
        inside.append(name)
        clock, cpu = time.perf_counter(), time.process_time()
        try:
            return function(*args, **kwargs)
        finally:
            inside.pop()
            line = json.dumps([name, time.perf_counter() - clock, time.process_time() - cpu])
            with open(PLACE, "a") as stream:
                stream.write(line + "\\n")
    return call
class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name not in TIMED:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        execute = spec.loader.exec_module
        def exec_module(module):
            execute(module)
            for one in TIMED[name]:
                setattr(module, one, timed(name.rpartition(".")[2] + "." + one, getattr(module, one)))
        spec.loader.exec_module = exec_module
        return spec
sys.meta_path.insert(0, Finder())
"""


def main() -> int:
    """Run the demo once and add up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "sitecustomize.py").write_text(HOOK)
        notes = Path(scratch) / "calls.jsonl"
        notes.touch()
        paths = os.pathsep.join(filter(None, [scratch, os.environ.get("PYTHONPATH", "")]))
        environment = {
            **os.environ,
            "PYTHONPATH": paths,
            "TIMED": json.dumps(TIMED),
            "TIMED_INTO": str(notes),
        }
        command = "from secvec.pipelines.command import main; main()"
        started = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-c", command, "demo", "--output", str(out)],
            env=environment,
            stdout=sys.stderr,
            check=False,
        )
        total = time.monotonic() - started
        calls = [json.loads(line) for line in notes.read_text().splitlines()]
    clock, cpu, times = Counter[str](), Counter[str](), Counter[str]()
    for name, seconds, cpu_seconds in calls:
        clock[name] += seconds
        cpu[name] += cpu_seconds
        times[name] += 1
    by_call = {
        name: {"calls": times[name], "clock": round(clock[name], 2), "cpu": round(cpu[name], 2)}
        for name, _ in clock.most_common()
    }
    extra = sum(clock.values())
    summary = {
        "demo_seconds": round(total, 1),
        "extra_clock": round(extra, 2),
        "extra_cpu": round(sum(cpu.values()), 2),
    }
    print(json.dumps({**summary, "by_call": by_call, "demo_exit": done.returncode}, indent=2))
    return int(done.returncode != 0 or extra > WANTED_SECONDS or not calls)


if __name__ == "__main__":
    sys.exit(main())
