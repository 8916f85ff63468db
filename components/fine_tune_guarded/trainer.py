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

from secvec.components.fine_tune_guarded.checkpoint_places import keep
from secvec.components.fine_tune_guarded.checkpoints import (
    OBJECTIVE,
    checkpoint_room,
    complete,
    forget_older,
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
    spread_again,
    wait_for_all,
)
from secvec.components.fine_tune_guarded.termination import LONG_STEP_SECONDS, RandomState, Termination
from secvec.components.shared.adapters import activate, check_vector_frozen
from secvec.components.shared.errors import SecvecError
from secvec.components.shared.progress import Progress

if TYPE_CHECKING:
    from torch import nn

    from secvec.components.shared.likelihood import EncodedRecord


class Watch(TrainerCallback):
    """Times steps, holds the vector to its rule after each, and completes checkpoints.

    Attributes:
        objective: The training's.
        termination: Whether the training was asked to end.
        finished: What a checkpoint of the last step needs besides weights and moments, if steps are so long
            that the next one may be cut short.
        place: URI under which checkpoints are kept as well, or nothing.
    """

    objective: Objective

    def __init__(self) -> None:
        self.loss = self.explained = self.rows = 0.0
        self.row_ids: list[str] = []
        self.termination = Termination()
        self.finished: tuple[RandomState, dict[str, Any]] | None = None
        self.begun_at = 0
        self.place = ""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin to count."""
        self.begun_at = state.global_step
        self.progress = Progress("fine-tune", state.max_steps)
        self._show(state.global_step)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin to time a step."""
        self.started = time.perf_counter()
        self.loss = self.explained = self.rows = 0.0
        self.row_ids = []

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Hold the vector to its rule, note loss and time, and end if asked."""
        check_vector_frozen(model)
        seconds = time.perf_counter() - self.started
        # The Trainer keeps log_history in its checkpoints: the curve survives a resume.
        state.log_history.append(
            {
                "step": state.global_step,
                "loss": self.loss,
                "explained": self.explained / self.rows,
                "seconds": seconds,
            }
        )
        self._show(state.global_step)
        self.finished = None
        if seconds > LONG_STEP_SECONDS:
            self.finished = RandomState.take(), self.objective.state()
        if self.termination.asked_anywhere(next(model.parameters()).device):
            control.should_save = control.should_training_stop = True

    def _show(self, step: int) -> None:
        if is_first():
            self.progress.move_to(step)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Complete a checkpoint once every process has written its part."""
        wait_for_all()
        if is_first():
            complete(Path(args.output_dir) / f"checkpoint-{state.global_step}")
            if self.place:
                keep(Path(args.output_dir) / f"checkpoint-{state.global_step}", place=self.place)
            forget_older(Path(args.output_dir))


class GuardedTrainer(Trainer):
    """A Trainer whose step minimises what an objective gives; its checkpoints hold the task only."""

    objective: Objective
    train_base: bool
    watch: Watch

    def guard_with(self, objective: Objective, *, train_base: bool, watch: Watch) -> None:
        """Set the objective."""
        self.objective, self.train_base, self.watch = objective, train_base, watch
        watch.objective = objective
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
        # Weights and moments are those of the last step until the optimizer moves them.
        may_stop = self.watch.finished is not None or self.state.global_step == self.watch.begun_at
        with self.watch.termination.interruptible(may_stop):
            return self._learn(model, inputs, num_items_in_batch)

    def _learn(self, model: Any, inputs: Any, num_items_in_batch: Any) -> torch.Tensor:
        row_ids = inputs.pop("row_ids")
        self.watch.row_ids += row_ids
        batch = self._prepare_inputs(inputs)
        # Whoever looked at the model between steps may have left it otherwise.
        activate(model, task=True, vector=self.objective.with_vector, train_base=self.train_base)
        found = self.objective.compute(model, batch, row_ids)
        if found.loss is None:
            loss = torch.zeros((), device=found.explained.device)
        else:
            loss = found.loss / float(num_items_in_batch)
            self._refuse_non_finite("loss", float(loss.detach()), row_ids)
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

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """The gradient's norm; one that is not finite would make every weight so in this very step."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if norm is not None:
            self._refuse_non_finite("gradient's norm", float(norm), self.watch.row_ids)
        return norm

    def _refuse_non_finite(self, what: str, value: float, row_ids: list[str]) -> None:
        if not math.isfinite(value):
            raise SecvecError(
                f"the {what} is {value} at step {self.state.global_step + 1} (rows {self._places(row_ids)})",
                where="fine_tune_guarded",
                accepted="a smaller learning_rate, or rows and a base that give a finite loss",
            )

    def _places(self, row_ids: list[str]) -> str:
        """Where the rows of a batch come from, ``file:line,line``."""
        wanted = set(row_ids)
        lines: dict[str, list[int]] = {}
        for row in cast("list[EncodedRecord]", self.train_dataset):
            if row.record_id in wanted:
                lines.setdefault(row.source or row.record_id, []).append(row.line)
        found = (f"{source}:{','.join(map(str, sorted(own)))}" for source, own in lines.items())
        return "; ".join(found).replace(":0", "")

    def save_last_step(self) -> None:
        """Write the checkpoint of the last finished step, also in the middle of the next."""
        if self.watch.finished is None:
            return  # the loop has saved it, or there is none since the one that the training began from
        random, objective = self.watch.finished
        random.restore()
        self.objective.restore(objective)
        self._save_checkpoint(self.model, trial=None)
        self.control = self.callback_handler.on_save(self.args, self.state, self.control)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
        spread_again(cast("nn.Module", self.model))
        if is_first():
            with checkpoint_room(folder, cast("nn.Module", self.model)):
                super()._save_checkpoint(model, trial)
        else:
            super()._save_checkpoint(model, trial)

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
