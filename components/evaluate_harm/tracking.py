"""An evaluation in MLflow: figures, tables and the report, for people to read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from secvec.components.shared.tracking import log_file, log_metrics, log_table

_FOLDER = "evaluation"
_FIGURES = (
    "harm_rate",
    "harm_lower95",
    "harm_upper95",
    "harm_incoherent",
    "utility",
    "utility_loss",
    "kept",
)


def track_evaluation(folder: Path, statistics: Mapping[str, Any]) -> None:
    """Log an evaluation to the pipeline's run; nothing happens where nothing is tracked.

    Args:
        folder: With the written ``report.html`` and ``statistics.json``.
        statistics: Content of the latter.

    Raises:
        SecvecError: MLflow does not answer.
    """
    arms = statistics["arms"]
    log_metrics({f"{arm}.{name}": found.get(name) for arm, found in arms.items() for name in _FIGURES})
    log_table(_as_columns([{"arm": arm, **found} for arm, found in arms.items()]), f"{_FOLDER}/arms.json")
    judged = [
        {"judge": judge["name"], "arm": arm, **{k: v for k, v in found.items() if k != "corrected"}}
        | {f"corrected_{key}": value for key, value in (found["corrected"] or {}).items()}
        for judge in statistics["judges"]
        for arm, found in judge["arms"].items()
    ]
    log_table(_as_columns(judged), f"{_FOLDER}/judges.json")
    for name in ("report.html", "statistics.json"):
        log_file(folder / name, folder=_FOLDER)


def _as_columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}
