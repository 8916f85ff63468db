"""The choices of a run: what decides its result besides data, base, policy and code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from secvec.components.shared.finished import input_key


def digest_choices(
    *, guard: str, task: str, seed: int, control_arm: bool, overrides: Mapping[str, Any]
) -> str:
    """Give ``sha256:<hex>`` over a run's choices; a whole float equals its integer, as after KFP.

    Args:
        guard: Objective of fine-tuning.
        task: What is trained.
        seed: Seed of every random choice.
        control_arm: Whether an unguarded control is trained as well.
        overrides: Settings by step name.
    """
    key = input_key(guard=guard, task=task, seed=seed, control_arm=control_arm, overrides=dict(overrides))
    return f"sha256:{key}"
