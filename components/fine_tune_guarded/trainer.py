"""A Trainer whose loss is an objective's, in one process or several."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer, TrainerCallback

from secvec.components.fine_tune_guarded.checkpoints import (
    OBJECTIVE,
    load_optimizer,
    load_trainable,
    save_optimizer,
    save_trainable,
)
from secvec.components.fine_tune_guarded.objectives import Objective
from secvec.components.fine_tune_guarded.processes import (
    add_up,
    count_processes,
    is_first,
    is_sharded,
    wait_for_all,
)
from secvec.components.shared.adapters import activate, check_vector_frozen
from secvec.components.shared.errors import SecvecError
from secvec.components.shared.manifest import write_manifest
from secvec.components.shared.progress import Progress

if TYPE_CHECKING:
    from torch import nn


class Watch(TrainerCallback):
    """Times steps, holds the vector to its rule after each, and completes checkpoints."""

    def __init__(self) -> None:
        self.loss = self.explained = self.rows = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin to count."""
        self.progress = Progress("fine-tune", state.max_steps)
        self._show(state.global_step)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin to time a step."""
        self.started = time.perf_counter()
        self.loss = self.explained = self.rows = 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Hold the vector to its rule, and note loss and time."""
        check_vector_frozen(model)
        # The Trainer keeps log_history in its checkpoints: the curve survives a resume.
        state.log_history.append(
            {
                "step": state.global_step,
                "loss": self.loss,
                "explained": self.explained / self.rows,
                "seconds": time.perf_counter() - self.started,
            }
        )
        self._show(state.global_step)

    def _show(self, step: int) -> None:
        if is_first():
            self.progress.move_to(step)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Complete a checkpoint once every process has written its part."""
        wait_for_all()
        if is_first():
            write_manifest(Path(args.output_dir) / f"checkpoint-{state.global_step}", kind="checkpoint")


class GuardedTrainer(Trainer):
    """A Trainer whose step minimises what an objective gives; its checkpoints hold the task only."""

    objective: Objective
    train_base: bool
    watch: Watch

    def guard_with(self, objective: Objective, *, train_base: bool, watch: Watch) -> None:
        """Set the objective."""
        self.objective, self.train_base, self.watch = objective, train_base, watch
        self.model_accepts_loss_kwargs = (
            True  # makes the Trainer count answer tokens over accumulated batches and processes
        )
        # The Trainer then leaves the model as it is, averages gradients of what is not sharded, and wraps it
        # in nothing, because a step may be without a backward pass. It is set here
        # because its constructor would refuse checkpoints of a sharded model; those are written below.
        self.is_distributed_loading_by_transformers = count_processes() > 1

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Batches of all processes together, in the same order for each; the collator deals them out."""
        loader: DataLoader[Any] = DataLoader(
            cast("Dataset[Any]", self.train_dataset),
            batch_size=self.args.train_batch_size * count_processes(),
            sampler=self._get_train_sampler(),
            collate_fn=self.data_collator,
        )
        return prepare_data_loader(loader, num_processes=1, process_index=0, use_seedable_sampler=True)

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """The backward pass of one batch; see `objectives` for the formula.

        The loss of a batch is the rows' loss summed and divided by the answer tokens of the whole optimizer
        step, so that ``none`` is exactly the usual mean cross-entropy. All processes run a pass or none does:
        a gradient is averaged over them as soon as it is there.
        """
        model.train()
        row_ids = inputs.pop("row_ids")
        batch = self._prepare_inputs(inputs)
        # Whoever looked at the model between steps may have left it otherwise.
        activate(model, task=True, vector=self.objective.with_vector, train_base=self.train_base)
        found = self.objective.compute(model, batch, row_ids)
        if found.loss is None:
            loss = torch.zeros((), device=found.explained.device)
        else:
            loss = found.loss / float(num_items_in_batch)
            self._refuse_non_finite(float(loss.detach()), row_ids)
            self.accelerator.backward(loss * count_processes())  # the average's divisor
        self._note(float(loss.detach()), found.explained, row_ids)
        return loss.detach()

    def _note(self, loss: float, explained: torch.Tensor, row_ids: list[str]) -> None:
        rows = len([row_id for row_id in row_ids if row_id])
        figures = [loss, float(explained[:rows].sum()), float(rows)]
        loss, share, counted = add_up(figures, device=explained.device)
        self.watch.loss += loss
        self.watch.explained += share
        self.watch.rows += counted

    def _refuse_non_finite(self, loss: float, row_ids: list[str]) -> None:
        if not math.isfinite(loss):
            shown = ", ".join(row_id[:19] for row_id in row_ids[:4])
            raise SecvecError(
                f"the loss is {loss} at step {self.state.global_step + 1} (rows {shown}, ...)",
                where="fine_tune_guarded",
                accepted="a smaller learning_rate, or rows and a base that give a finite loss",
            )

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        folder = Path(output_dir or str(self.args.output_dir))
        save_trainable(cast("nn.Module", self.model), folder)
        if is_first():
            (folder / OBJECTIVE).write_text(json.dumps(self.objective.state(), sort_keys=True))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not is_sharded(cast("nn.Module", self.model)):
            super()._save_optimizer_and_scheduler(output_dir)
        else:
            save_optimizer(self.model, self.optimizer, self.lr_scheduler, Path(output_dir))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or not is_sharded(cast("nn.Module", self.model)):
            super()._load_optimizer_and_scheduler(checkpoint)
        else:
            load_optimizer(self.model, self.optimizer, self.lr_scheduler, Path(checkpoint))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        folder = Path(resume_from_checkpoint)
        load_trainable(cast("nn.Module", self.model), folder)
        self.objective.restore(json.loads((folder / OBJECTIVE).read_text()))
