"""The rank correlation of coverage with protection that the efficacy benchmark reports."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import spearmanr

from tests.benchmarks import coverage_predicts
from tests.benchmarks.coverage_predicts import correlate, pair_cells


def cell(number: int, arm: str, harm: float, coverage: Any = None, **more: Any) -> dict[str, Any]:
    return {
        "task": "lora", "learning_rate": number, "random_seed": 1, "arm": arm, "harm_rate": harm,
        "harm_upper95": 1.0, "utility": 1.0, "step_seconds": 0.1 * number, "coverage": coverage, **more,
    }  # fmt: skip


def test_cells_are_paired_with_their_own_unguarded_arm() -> None:
    results = [
        cell(1, "mixture", 0.1, {"hexes": 1.0, "poxes": 3.0}),
        cell(1, "unguarded", 0.9, {"hexes": 1.0, "poxes": 3.0}),
        cell(2, "mixture", 0.0, 4.0),
        cell(2, "unguarded", 1.0, 4.0),
        cell(3, "mixture", 0.0, 4.0),  # nothing to compare with
        cell(4, "mixture", 0.0, None),  # nobody measured
        cell(4, "unguarded", 1.0, None),
        cell(2, "always", 0.5, 4.0),
    ]
    assert pair_cells(results, arm="mixture") == [(2.0, pytest.approx(0.8)), (4.0, 1.0)]


def test_the_correlation_is_spearmans() -> None:
    draw = random.Random(0)
    pairs = [(x, x + draw.gauss(0, 0.5)) for x in (draw.random() for _ in range(30))]
    found = correlate(pairs)
    assert found["spearman"] == pytest.approx(spearmanr(*zip(*pairs, strict=True)).statistic)
    assert -1 <= found["lower"] < found["spearman"] < found["upper"] <= 1
    assert found == correlate(pairs)


@pytest.mark.parametrize(
    "pairs", [[], [(1.0, 1.0)] * 9, [(1.0, float(n)) for n in range(9)], [(1.0, 2.0)] * 3]
)
def test_where_all_cells_are_alike_nothing_is_claimed(pairs: list[tuple[float, float]]) -> None:
    found = correlate(pairs)
    assert (found["spearman"], found["lower"], found["upper"]) == (None, None, None)
    assert found["cells"] == len(pairs)


def test_the_command_reads_what_the_benchmark_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results = []
    for number in range(6):
        results += [cell(number, "mixture", 0.5 - number / 10, float(number)), cell(number, "unguarded", 1.0)]
    (tmp_path / "efficacy.json").write_text(json.dumps(results))
    monkeypatch.setattr(sys, "argv", ["coverage_predicts", str(tmp_path)])
    assert coverage_predicts.main() == 0
    assert capsys.readouterr().out.startswith("6 cells: Spearman +1.00 (95%: +1.00 to +1.00)")
    assert json.loads((tmp_path / "coverage_predicts.json").read_text())["cells"] == 6
