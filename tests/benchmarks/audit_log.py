"""The audit log's pace: durable appends one by one and in batches, and the time to verify a long log.

Run: ``python -m tests.benchmarks.audit_log [EVENTS] [FOLDER]``; 1,000,000 events by default, in a temporary
folder of the disk that counts. Prints one JSON object; exit status 1 if batched appends are below 5,000 a
second, or verifying takes over 60 seconds per million events.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from secvec.components.shared import audit
from secvec.components.shared.audit_checkpoints import verify_log, write_checkpoint
from secvec.components.shared.signing_keys import ensure_signing_key

BATCH, WANTED_RATE, WANTED_SECONDS = 100, 5_000.0, 60.0
EVENT = {"opened_by": "fine_tune_guarded", "sealed_digest": "sha256:" + "a" * 64, "run": "run-1"}


def measure(events: int, folder: Path) -> dict[str, Any]:
    """Write a log of `events` lines in three ways and verify it."""
    os.environ["SECVEC_AUDIT_LOG"] = str(folder / "log.jsonl")
    os.environ["SECVEC_SIGNING_KEY"] = str(ensure_signing_key(folder / "signing"))
    for name in ("SECVEC_TRUSTED_KEYS", "SECVEC_AUDIT_PIN", "MLFLOW_TRACKING_URI"):
        os.environ.pop(name, None)
    single = min(2_000, events // 4)
    batch = [("vector_opened", EVENT)] * BATCH
    rates = {
        "append, waiting for each": _rate(lambda: audit.append("vector_opened", **EVENT), single, 1),
        "note, not waiting": _rate(lambda: audit.note("vector_opened", **EVENT), single, 1),
        f"append_all, waiting for each {BATCH}": _rate(
            lambda: audit.append_all(batch), events - 2 * single, BATCH
        ),
    }
    write_checkpoint()
    started, cpu = time.perf_counter(), _cpu()
    found = verify_log()
    seconds = time.perf_counter() - started
    return {
        "events": found.state.size,
        "covered": found.covered,
        "appends_per_second": {name: round(wall) for name, (wall, _) in rates.items()},
        "appends_per_cpu_second": {name: round(cpu) for name, (_, cpu) in rates.items()},
        "verify_seconds": round(seconds, 2),
        "verify_cpu_seconds": round(_cpu() - cpu, 2),
        "passed": rates[f"append_all, waiting for each {BATCH}"][0] >= WANTED_RATE
        and seconds / found.state.size * 1e6 <= WANTED_SECONDS,
    }


def _rate(append: Callable[[], object], events: int, each: int) -> tuple[float, float]:
    """Appends per second by the clock, and per second of this process's CPU time."""
    calls = max(1, events // each)
    started, cpu = time.perf_counter(), _cpu()
    for _ in range(calls):
        append()
    return calls * each / (time.perf_counter() - started), calls * each / (_cpu() - cpu)


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(dir=sys.argv[2] if len(sys.argv) > 2 else None) as scratch:
        result = measure(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000, Path(scratch))
    print(json.dumps(result, indent=2))
    sys.exit(0 if result["passed"] else 1)
