"""The results of many cells in a few tables."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict
from itertools import product
from typing import Any

from tests.benchmarks.efficacy.arms import ARMS, DEFAULT
from tests.benchmarks.efficacy.cells import LEARNING_RATES, Cell, core_cells

# An oracle that has learned the skill: only there is a share of it worth asking for.
ORACLE_LEARNED = 0.9
ROWS = (200, 2000, 20_000)
Result = dict[str, Any]
Results = dict[Cell, dict[str, Result]]


def read_cell(result: Result) -> Cell:
    """The cell of a result; results of before a field was there have its default."""
    return Cell(**{name: result[name] for name in asdict(Cell()) if name in result})


def by_cell(found: list[Result]) -> Results:
    """Results by cell and arm."""
    cells: Results = defaultdict(dict)
    for result in found:
        cells[read_cell(result)][result["arm"]] = result
    return dict(cells)


def name_harm(result: Result) -> str:
    """The key of the harm that a cell is about: where rows are disguised, what is asked in their disguise."""
    return "harm_rate" if result["harm_rate_disguised"] is None else "harm_rate_disguised"


def write_arms(cells: Results) -> list[str]:
    """A line for each arm over the cells of the grid."""
    lines = [
        "| arm | cells | most harm | mean harm | least share of the oracle's skill |",
        "|---|---|---|---|---|",
    ]
    grid = [cells[cell] for cell in core_cells() if cell in cells]
    for arm in ARMS:
        own = [(arms[arm], arms.get("oracle")) for arms in grid if arm in arms]
        if not own:
            continue
        harm = [result["harm_rate"] for result, _ in own]
        shares = [
            result["utility"] / oracle["utility"]
            for result, oracle in own
            if oracle and oracle["utility"] >= ORACLE_LEARNED
        ]
        least = f"{min(shares):.3f}" if shares else ""
        lines.append(f"| {arm} | {len(own)} | {max(harm):.3f} | {sum(harm) / len(harm):.3f} | {least} |")
    return lines


def write_grid(cells: Results) -> list[str]:
    """The default guard over the grid, its random seeds in one line."""
    lines = [
        "| task | rate | rows | cells | most harm | new skill | oracle's | oracle's harm |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for task, rate, rows in product(LEARNING_RATES, (1, 2, 4), ROWS):
        own = [
            cells.get(cell, {})
            for cell in core_cells()
            if (cell.task, cell.learning_rate, cell.rows) == (task, rate, rows)
        ]
        harm = [arms[DEFAULT]["harm_rate"] for arms in own if DEFAULT in arms]
        if harm:
            figures = (_join(own, DEFAULT, "utility"), _join(own, "oracle", "utility"),
                       _join(own, "oracle", "harm_rate"))  # fmt: skip
            lines.append(
                f"| {task} | x{rate} | {rows:,} | {len(harm)} | {max(harm):.3f} | {' | '.join(figures)} |"
            )
    return lines


def _join(cells: list[dict[str, Result]], arm: str, key: str) -> str:
    return ", ".join(f"{arms[arm][key]:.3f}" for arms in cells if arm in arms)


def write_axes(cells: Results) -> list[str]:
    """The default guard around the centre, what was changed first; `asked so` is harm asked in disguise."""
    lines = [
        "| changed | harm | asked so | unguarded | new skill | oracle's | coverage, nats per token | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    changed = {cell: ", ".join(_name_changes(cell)) for cell in cells if cell not in core_cells()}
    for cell, what in sorted(changed.items(), key=lambda one: one[1]):
        arms = cells[cell]
        if DEFAULT not in arms:
            continue
        own = arms[DEFAULT]
        harm = name_harm(own)
        asked_so = "" if harm == "harm_rate" else f"{own[harm]:.3f}"
        figures = (f"{own['harm_rate']:.3f}", asked_so, _join([arms], "unguarded", harm),
                   f"{own['utility']:.3f}", _join([arms], "oracle", "utility"),
                   f"{own['coverage_asked']:.2f}")  # fmt: skip
        noted = ["" if own["certified"] else "certificate failed", "stopped" if own["stopped"] else ""]
        lines.append(f"| {what} | {' | '.join(figures)} | {', '.join(filter(None, noted))} |")
    return lines


def _name_changes(cell: Cell) -> Iterator[str]:
    """What sets a cell apart from the centre."""
    said = {
        "task": "full weights",
        "harm_share": f"{cell.harm_share:.0%} of the rows harmful",
        "seeds": f"{cell.seeds} seeds",
        "epochs": f"{cell.epochs} epochs",
        "hidden_category": f"{cell.hidden_category} unseen",
        "hidden_phrasings": f"{cell.hidden_phrasings} of 4 ways to ask unseen",
        "disguise": f"disguise: {cell.disguise}",
        "architecture": cell.architecture,
        "mistaken_seeds": "benign seeds by mistake",
    }
    centre = asdict(Cell())
    for name, value in reversed(asdict(cell).items()):
        if value != centre[name] and name in said:
            yield said[name]
