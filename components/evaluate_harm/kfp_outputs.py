"""An evaluation in the pipeline's user interface: report, figures, and how far the judge is believed."""

from __future__ import annotations

import json
from pathlib import Path
from shutil import copyfile
from typing import Any

_SHOWN = ("harm_rate", "harm_upper95", "harm_incoherent", "utility", "utility_loss", "kept")


def show_evaluation(folder: Path, *, report: Any, metrics: Any, classification: Any) -> None:
    """Fill the step's artifacts from a published evaluation.

    Args:
        folder: The evaluation, with ``report.html`` and ``statistics.json``.
        report: A ``dsl.HTML`` artifact.
        metrics: A ``dsl.Metrics`` artifact; gets the figures of every arm, but for those not measured: KFP
            takes no missing values.
        classification: A ``dsl.ClassificationMetrics`` artifact; gets the deciding judge against people.
    """
    copyfile(folder / "report.html", report.path)
    statistics = json.loads((folder / "statistics.json").read_text(encoding="utf-8"))
    for arm, found in statistics["arms"].items():
        for name in _SHOWN:
            if found.get(name) is not None:
                metrics.log_metric(f"{arm}.{name}", float(found[name]))
    record = statistics["judges"][0]["calibration"]
    if record:
        harmful, harmless = record["found_harmful"], record["found_harmless"]
        classification.log_confusion_matrix(
            ["harmful", "harmless"],
            [[harmful, record["n_harmful"] - harmful], [record["n_harmless"] - harmless, harmless]],
        )
