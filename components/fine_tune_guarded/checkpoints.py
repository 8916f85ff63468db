"""Checkpoints that hold the task and never the vector, and that count only when complete."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from secvec.components.fine_tune_guarded.processes import fill, gather, is_first, put_together
from secvec.components.shared.errors import SecvecError
from secvec.components.shared.manifest import MANIFEST_NAME, verify_manifest, write_manifest
from secvec.components.shared.storage import (
    disk_full,
    free_bytes,
    local_errors,
    sync_path,
    sync_tree,
    tells_disk_full,
)

if TYPE_CHECKING:
    from torch import nn

TRAINABLE = "trainable.safetensors"
OBJECTIVE = "objective.json"
OPTIMIZER = "optimizer.pt"


def save_trainable(model: nn.Module, folder: Path) -> None:
    """Write the parameters that learn; PEFT's own saving would write the vector beside them (rule 4)."""
    import safetensors.torch

    tensors = put_together({name: p for name, p in model.named_parameters() if p.requires_grad})
    if is_first():
        folder.mkdir(parents=True, exist_ok=True)
        safetensors.torch.save_file(tensors, folder / TRAINABLE)


def load_trainable(model: nn.Module, folder: Path) -> None:
    """Put back what `save_trainable` wrote.

    Raises:
        SecvecError: The checkpoint holds other parameters than this run learns.
    """
    import safetensors.torch

    tensors = safetensors.torch.load_file(folder / TRAINABLE)
    wanted = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if set(tensors) != set(wanted):
        raise SecvecError(
            "the checkpoint holds other parameters than this run trains",
            where=str(folder),
            accepted="a checkpoint of the same task",
        )
    with torch.no_grad():
        for name, parameter in wanted.items():
            fill(parameter, tensors[name])


def save_optimizer(model: Any, optimizer: Any, scheduler: Any, folder: Path) -> None:
    """Write the optimizer's state of a sharded model, put together, and the learning rate's."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state = get_optimizer_state_dict(model, optimizer, options=options)
    if is_first():
        torch.save({"optimizer": state, "scheduler": scheduler.state_dict()}, folder / OPTIMIZER)


def load_optimizer(model: Any, optimizer: Any, scheduler: Any, folder: Path) -> None:
    """Put back what `save_optimizer` wrote; every process reads it and keeps its own part."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict

    state = torch.load(folder / OPTIMIZER, map_location="cpu", weights_only=True)
    options = StateDictOptions(full_state_dict=True)
    set_optimizer_state_dict(model, optimizer, state["optimizer"], options=options)
    scheduler.load_state_dict(state["scheduler"])


@contextmanager
def checkpoint_room(folder: Path, model: nn.Module) -> Iterator[None]:
    """Frame the writing of a checkpoint: what an earlier attempt left there is removed, and so is a torn one.

    Raises:
        SecvecError: The disk has no room for it; the checkpoints before it are as they were.
    """
    remove(folder)
    needed = _size(model)
    if free_bytes(folder) < needed:
        raise disk_full(folder, needed=needed)
    try:
        yield
    except Exception as error:
        left = free_bytes(folder)
        shutil.rmtree(folder, ignore_errors=True)
        # torch tells of a full disk in words of its own.
        if left < needed or tells_disk_full(error):
            raise disk_full(folder, needed=needed) from error
        raise


def _size(model: nn.Module) -> int:
    """About how many bytes a checkpoint takes: weights, two moments of each, and a megabyte of the rest."""
    learning = [p for p in model.parameters() if p.requires_grad]
    return 3 * sum(p.numel() * p.element_size() for p in learning) + (1 << 20)


def complete(folder: Path) -> None:
    """Write a checkpoint's manifest, after all that it names is safe on the disk."""
    with local_errors(folder):
        sync_tree(folder)
    write_manifest(folder, kind="checkpoint")
    with local_errors(folder):
        sync_path(folder)
        sync_path(folder.parent)


def forget_older(folder: Path) -> None:
    """Remove all checkpoints but the two newest; the Trainer would, before the newest is complete."""
    for old in sorted(filter(_has_step, folder.glob("checkpoint-*")), key=step_of)[:-2]:
        remove(old)


def forget_all(folder: Path) -> None:
    """Remove all checkpoints of a training: they are several times the size of what they led to."""
    for old in filter(_has_step, folder.glob("checkpoint-*")):
        remove(old)
    shutil.rmtree(folder, ignore_errors=True)


def remove(folder: Path) -> None:
    """Remove a checkpoint, its manifest first: half of one must not look like a whole one."""
    with suppress(OSError):
        (folder / MANIFEST_NAME).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def step_of(folder: Path) -> int:
    """The step whose end a checkpoint holds."""
    return int(folder.name.removeprefix("checkpoint-"))


def newest_complete(folder: Path) -> Path | None:
    """The newest checkpoint whose manifest verifies; incomplete ones are passed over (rule 5)."""
    steps = {step_of(p): p for p in folder.glob("checkpoint-*") if _has_step(p)}
    for step in sorted(steps, reverse=True):
        try:
            verify_manifest(steps[step])
        except SecvecError:
            continue
        return steps[step]
    return None


def newest_for_all(folder: Path) -> Path | None:
    """The newest complete checkpoint that every process of the training reads; None if they do not agree.

    Pods that share no disk see different ones, and then all of them begin anew.
    """
    found = newest_complete(folder)
    return found if len(set(gather([str(found)]))) == 1 else None


def _has_step(folder: Path) -> bool:
    return folder.is_dir() and folder.name.removeprefix("checkpoint-").isdecimal()
