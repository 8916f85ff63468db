"""Loss curves in MLflow while a task is trained."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from secvec.components.fine_tune_guarded.processes import is_first
from secvec.components.shared.tracking import log_metrics

_EVERY = 10


class TrackLoss(TrainerCallback):
    """Logs the loss and the share that the vector explains, every few steps.

    Args:
        arm: ``guarded`` or ``unguarded``, the metric's prefix.
    """

    def __init__(self, *, arm: str) -> None:
        self.arm = arm

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Send the newest entry of the Trainer's history."""
        if not is_first():
            return
        if state.global_step % _EVERY and state.global_step != state.max_steps:
            return
        newest = state.log_history[-1]
        figures = {f"{self.arm}/loss": newest["loss"], f"{self.arm}/explained": newest["explained"]}
        log_metrics(figures, step=state.global_step)
