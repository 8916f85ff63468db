"""Does coverage predict protection? Run: ``python -m tests.benchmarks.coverage_predicts OUT [--arm ARM]``.

Reads ``OUT/efficacy.json`` and ranks its cells by what was known beforehand (coverage of the harm that is
asked for, in the disguise of the rows where they have one, nats per token) and by how much of that harm the
guard kept out (harm unguarded − harm guarded). Prints Spearman's rank correlation with a bootstrap interval
over cells, and writes it to ``OUT/coverage_predicts.json``.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy
from scipy.stats import rankdata

FEWEST_CELLS = 4
RESAMPLES = 2000
_NOT_CELL = {
    "arm", "harm_rate", "harm_upper95", "utility", "n_harm", "step_seconds", "coverage", "certified",
    "oracle_utility", "coverage_asked", "harm_rate_disguised", "stopped", "kept",
}  # fmt: skip


def pair_cells(results: list[dict[str, Any]], *, arm: str) -> list[tuple[float, float]]:
    """Coverage and protection of every cell that has the arm, its coverage and an unguarded arm.

    Args:
        results: Objects of ``efficacy.json``. ``coverage`` is a number or one per harm category; of those
            the mean counts.
        arm: The guard.
    """
    unguarded = {_cell(r): _harm(r) for r in results if r["arm"] == "unguarded"}
    pairs = []
    for result in results:
        asked = result.get("coverage_asked")
        known = _as_number(result.get("coverage") if asked is None else asked)
        if result["arm"] == arm and known is not None and _cell(result) in unguarded:
            pairs.append((known, unguarded[_cell(result)] - _harm(result)))
    return pairs


def _harm(result: dict[str, Any]) -> float:
    disguised = result.get("harm_rate_disguised")
    return float(result["harm_rate"] if disguised is None else disguised)


def _cell(result: dict[str, Any]) -> str:
    return json.dumps({k: v for k, v in result.items() if k not in _NOT_CELL}, sort_keys=True)


def _as_number(coverage: Any) -> float | None:
    if isinstance(coverage, dict):
        coverage = fmean(coverage.values()) if coverage else None
    return None if coverage is None or not math.isfinite(coverage) else float(coverage)


def correlate(pairs: list[tuple[float, float]], *, seed: int = 0) -> dict[str, Any]:
    """Spearman's ρ with its 95% percentile bootstrap interval over cells.

    Args:
        pairs: Coverage and protection by cell.
        seed: Seed of the bootstrap.

    Returns:
        ``cells``, ``spearman``, ``lower``, ``upper``; the last three are None where all cells are alike or
        too few. Resamples in which all are alike are left out of the interval and counted as ``constant``.
    """
    known: dict[str, Any] = {
        "cells": len(pairs),
        "spearman": None,
        "lower": None,
        "upper": None,
        "constant": 0,
    }
    if len(pairs) < FEWEST_CELLS:
        return known
    values = numpy.array(pairs)
    estimate = _spearman(values)
    if estimate is None:
        return known
    draw = numpy.random.default_rng(seed)
    drawn = [_spearman(values[draw.integers(len(values), size=len(values))]) for _ in range(RESAMPLES)]
    found = [one for one in drawn if one is not None]
    lower, upper = numpy.quantile(found, [0.025, 0.975]).tolist()
    return {
        **known,
        "spearman": estimate,
        "lower": lower,
        "upper": upper,
        "constant": len(drawn) - len(found),
    }


def _spearman(values: numpy.ndarray) -> float | None:
    ranks = [rankdata(values[:, column]) for column in (0, 1)]
    if any(numpy.ptp(rank) == 0 for rank in ranks):
        return None
    return float(numpy.corrcoef(*ranks)[0, 1])


def main() -> int:
    """Read, correlate, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--arm", default="mixture")
    options = parser.parse_args()
    results = json.loads((options.out / "efficacy.json").read_text())
    found = correlate(pair_cells(results, arm=options.arm))
    (options.out / "coverage_predicts.json").write_text(json.dumps(found, indent=1) + "\n")
    if found["spearman"] is None:
        print(f"{found['cells']} cells: too few, or all alike; no rank correlation")
        return 1
    print(
        f"{found['cells']} cells: Spearman {found['spearman']:+.2f} "
        f"(95%: {found['lower']:+.2f} to {found['upper']:+.2f})"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
