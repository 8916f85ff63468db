"""Measure ingestion: ``make bench-ingest OUT=folder`` or ``python -m tests.benchmarks.ingest OUT --rows N``.

Writes ``results.jsonl``, one line a run as it ends, and ``summary.json``. Rows and datasets lie below the
folder and are removed when they are no longer needed; at 10 million rows this takes up to 35 GB for a while.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil

from tests.benchmarks.ingest.rows import write_rows

_COUNTS = ("rows", "duplicates", "training", "held_out", "quarantine")


class _Watch(threading.Thread):
    """Samples the memory of a process and of all its children, ten times a second."""

    def __init__(self, process: int) -> None:
        super().__init__(daemon=True)
        self.peak = 0
        self._process = psutil.Process(process)
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.wait(0.1):
            self.peak = max(self.peak, self._measure())

    def _measure(self) -> int:
        total = 0
        try:
            for one in (self._process, *self._process.children(recursive=True)):
                total += one.memory_info().rss
        except psutil.Error:
            return 0
        return total

    def stop(self) -> int:
        self._over.set()
        self.join()
        return self.peak


def measure(arm: str, rows: Path, work: Path, *, workers: int, shuffle: int = 0) -> dict[str, Any]:
    """Run one arm in a process of its own and return its figures."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    module = {"secvec": "tests.benchmarks.ingest.ours", "datasets": "tests.benchmarks.ingest.rival"}[arm]
    command = [sys.executable, "-m", module, str(rows), str(work), str(workers), str(shuffle)]
    before = os.times()
    started = time.monotonic()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        watch = _Watch(process.pid)
        watch.start()
        output, _ = process.communicate()
        peak = watch.stop()
    seconds = time.monotonic() - started
    after = os.times()
    if process.returncode:
        raise SystemExit(f"{arm} ended with status {process.returncode}")
    shutil.rmtree(work)
    found = json.loads(output.decode().strip().splitlines()[-1])
    processor = after.children_user + after.children_system - before.children_user - before.children_system
    return {
        "arm": arm,
        "workers": workers,
        "shuffle": shuffle,
        **found,
        "seconds": round(seconds, 2),
        "processor_seconds": round(processor, 2),
        "rows_per_second": round(found["rows"] / seconds),
        "peak_bytes": peak,
    }


def main() -> None:
    """Run all sizes and the comparison, and write what was found."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--rounds", type=int, default=2, help="of the comparison at full size")
    parser.add_argument("--processors", type=int, default=2, help="that all runs are confined to")
    given = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: given.processors])
    given.out.mkdir(parents=True, exist_ok=True)
    work, results = given.out / "work", []
    sizes = sorted({given.rows // 100, given.rows // 10, given.rows})
    with (given.out / "results.jsonl").open("a", encoding="utf-8") as log:

        def note(run: dict[str, Any]) -> None:
            results.append(run)
            log.write(json.dumps(run) + "\n")
            log.flush()
            print(json.dumps(run), flush=True)

        for size in sizes:
            rows = given.out / f"rows-{size}"
            write_rows(rows, size, files=max(1, size // 500_000))
            about = {"bytes": sum(path.stat().st_size for path in rows.iterdir())}
            for turn in range(given.rounds):
                note({**about, **measure("secvec", rows, work, workers=2, shuffle=turn)})
                note({**about, **measure("datasets", rows, work, workers=2)})
            note({**about, **measure("secvec", rows, work, workers=1)})
            shutil.rmtree(rows)
    (given.out / "summary.json").write_text(json.dumps(summarise(results), indent=2) + "\n", encoding="utf-8")


def summarise(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Give the pace beside `datasets`, the growth, the memory, and whether all digests and counts agree."""
    found: dict[str, Any] = {"sizes": {}}
    for size in sorted({run["rows"] for run in results}):
        runs = [run for run in results if run["rows"] == size]
        ours = [run for run in runs if run["arm"] == "secvec" and run["workers"] == 2]
        theirs = [run for run in runs if run["arm"] == "datasets"]
        found["sizes"][size] = {
            "bytes": runs[0]["bytes"],
            "seconds": sorted(run["seconds"] for run in ours),
            "datasets_seconds": sorted(run["seconds"] for run in theirs),
            "ratios": [round(b["seconds"] / a["seconds"], 2) for a, b in zip(ours, theirs, strict=True)],
            "processor_ratios": [
                round(b["processor_seconds"] / a["processor_seconds"], 2)
                for a, b in zip(ours, theirs, strict=True)
            ],
            "peak_bytes": max(run["peak_bytes"] for run in runs if run["arm"] == "secvec"),
            "datasets_peak_bytes": max(run["peak_bytes"] for run in theirs),
            "one_digest": len({run["digest"] for run in runs if run["arm"] == "secvec"}) == 1,
            "same_counts": len({tuple(run[key] for key in _COUNTS) for run in runs}) == 1,
        }
    sizes = list(found["sizes"])
    if len(sizes) > 1:
        small, large = (found["sizes"][size]["seconds"][0] for size in (sizes[0], sizes[-1]))
        found["exponent"] = round(math.log(large / small) / math.log(sizes[-1] / sizes[0]), 3)
        middle = found["sizes"][sizes[-2]]["seconds"][0]
        found["exponent_of_the_last_tenfold"] = round(
            math.log(large / middle) / math.log(sizes[-1] / sizes[-2]), 3
        )
    return found


if __name__ == "__main__":
    main()
