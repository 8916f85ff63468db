"""Which arms are trained in which cells."""

from __future__ import annotations

from collections.abc import Iterator

from tests.benchmarks.efficacy.arms import ABLATIONS, COMPARISONS, CORE_ARMS, REFERENCES, TRIALS
from tests.benchmarks.efficacy.cells import Cell, all_cells, axis_cells, core_cells, quick_cells

TIERS = {"quick": quick_cells, "core": core_cells, "axes": axis_cells, "all": all_cells}
# What ten minutes suffice for: the guards, and what filtering by the same vector does.
QUICK_ARMS = (*CORE_ARMS, "always", "attribution_filter")
# Rehearsal, questions and loading: what a training costs beside its rows, in rows.
_FIXED_ROWS = 1500


def plan(tier: str) -> list[tuple[Cell, str]]:
    """Cells with their arms: what decides first, and within that the longest."""
    jobs = [
        (cell, arm)
        for cell in TIERS[tier]()
        for arm in (QUICK_ARMS if tier == "quick" else choose_arms(cell))
    ]
    return sorted(jobs, key=lambda job: (_rank(job[1]), -job[0].epochs * job[0].rows - _FIXED_ROWS))


def choose_arms(cell: Cell) -> Iterator[str]:
    """The default with oracle and unguarded everywhere; the rest in the grid of one random seed."""
    # Where every row is harmful there is nothing to learn, and no oracle.
    yield from CORE_ARMS if cell.harm_share < 1 else (arm for arm in CORE_ARMS if arm != "oracle")
    if cell.mistaken_seeds or cell.seeds < 30 or cell.disguise:
        yield from ("certified", "unwatched")
    grid = Cell(task=cell.task, learning_rate=cell.learning_rate, rows=cell.rows, epochs=cell.epochs)
    if cell != grid:
        return
    yield from REFERENCES
    place = (cell.learning_rate, cell.rows)
    if place == (2, 2000) or (cell.learning_rate in (1, 4) and cell.rows in (200, 20_000)):
        yield from COMPARISONS
    if place in ((2, 2000), (4, 2000)):
        yield from ("without_kl", "always_without_kl", "always_watched", *TRIALS)


def _rank(arm: str) -> int:
    ranks = (CORE_ARMS, REFERENCES, ABLATIONS, COMPARISONS, TRIALS)
    return next(rank for rank, arms in enumerate(ranks) if arm in arms)
