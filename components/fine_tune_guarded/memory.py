"""Out of memory: one more try with smaller passes, which teach the same rows in the same steps."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any, TypeVar

from secvec.components.fine_tune_guarded.config import FineTuneConfig
from secvec.components.fine_tune_guarded.processes import is_joined
from secvec.components.shared.errors import OutOfMemory
from secvec.components.shared.progress import report

_T = TypeVar("_T")
# What torch says where the machine's own memory is meant; a device's has an exception of its own.
_CPU = ("can't allocate memory", "not enough memory")


def train_within_memory(train: Callable[[FineTuneConfig], _T], config: FineTuneConfig) -> _T:
    """Train, and where the memory does not suffice once more with half the rows a pass and twice the passes.

    A step then sees the same rows; sums are taken in another order, so that its bits may differ. That it was
    so is part of the config that `train` gets, and its to record.

    Raises:
        OutOfMemory: The memory did not suffice for that either, or there is nothing to halve.
    """
    # In a group of processes the others wait for the one that failed: there it ends all of them.
    smaller = None if is_joined() else halve(config)
    if smaller:
        found = _try(train, config)
        if not isinstance(found, _Failed):
            return found
        report("out_of_memory", retry=f"batch_size {smaller.batch_size}, accumulation {smaller.accumulation}")
        _let_go()
    last = smaller or config
    again = _try(train, last)
    if isinstance(again, _Failed):
        raise OutOfMemory(
            f"out of memory with batch_size = {last.batch_size}, accumulation = {last.accumulation}"
            + (f", after a first try with batch_size = {config.batch_size}" if smaller else "")
            + f": {again.reason}",
            where="fine_tune_guarded",
            accepted="a smaller batch_size or max_length, gradient_checkpointing: true, or more memory",
        )
    return again


def halve(config: FineTuneConfig) -> FineTuneConfig | None:
    """The config with half the rows a pass and twice the passes a step; None where it is none."""
    if config.batch_size % 2:
        return None
    changes = {"batch_size": config.batch_size // 2, "accumulation": config.accumulation * 2}
    return config.model_copy(update=changes)


def record_passes(wanted: FineTuneConfig, *, used: FineTuneConfig) -> dict[str, Any]:
    """What a training says of itself if it ran in smaller passes than its config asks for."""
    if wanted == used:
        return {}
    passes = {"batch_size": used.batch_size, "accumulation": used.accumulation}
    return {"after_out_of_memory": passes}


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory was wanting, of a device or of the machine."""
    import torch

    said = str(error)
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(words in said for words in _CPU)
    )


class _Failed:
    def __init__(self, reason: str) -> None:
        self.reason = reason


def _try(train: Callable[[FineTuneConfig], _T], config: FineTuneConfig) -> _T | _Failed:
    # The error itself would keep alive what it was raised in: the model and its gradients.
    try:
        return train(config)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return _Failed(" ".join(str(error).split())[:200])


def _let_go() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
