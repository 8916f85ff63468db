"""The step: how the run ended in, one record of it in MLflow out."""

from __future__ import annotations

import json

from secvec.components.shared import tracking
from secvec.components.shared.artifacts import fetch
from secvec.components.shared.errors import SecvecError
from secvec.components.shared.progress import report
from secvec.components.shared.run_records import find_verdict


def record_outcome(*, state: str, error: str, store: str, run: str) -> None:
    """Write state, error and verdict on the pipeline's run in MLflow, and end that run if steps opened it.

    Args:
        state: KFP's final state of all other steps, such as ``SUCCEEDED`` or ``FAILED``.
        error: KFP's message, if any.
        store: Store of the run.
        run: The run's id in KFP.

    Raises:
        SecvecError: MLflow does not answer.
    """
    verdict = _find_outcome(store, run)
    report("run_ended", state=state, verdict=verdict, because=error)
    tracking.log_tags({"secvec.state": state, "secvec.error": error, "secvec.verdict": verdict})
    tracking.end_run(succeeded=state == "SUCCEEDED")


def _find_outcome(store: str, run: str) -> str:
    """The verdict's outcome; a store that cannot be read must not keep the failure from being recorded."""
    try:
        reference = find_verdict(store=store, run=run)
        return json.loads((fetch(reference) / "verdict.json").read_text())["outcome"] if reference else "none"
    except (SecvecError, KeyError, ValueError):
        return "unknown"
