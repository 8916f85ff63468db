"""Guarded training on the Hugging Face Trainer."""

from __future__ import annotations

import json
import math
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from secvec.components.fine_tune_guarded.checkpoints import (
    OBJECTIVE,
    load_trainable,
    newest_complete,
    save_trainable,
)
from secvec.components.fine_tune_guarded.config import FineTuneConfig, Task
from secvec.components.fine_tune_guarded.objectives import Objective
from secvec.components.shared.adapters import activate, check_vector_frozen
from secvec.components.shared.errors import SecvecError
from secvec.components.shared.likelihood import EncodedRecord, answer_log_probs, collate
from secvec.components.shared.manifest import write_manifest
from secvec.components.shared.progress import Progress

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import nn
    from transformers import PreTrainedModel

DEFAULT_LEARNING_RATES: dict[Task, float] = {"lora": 2e-4, "full": 1e-5}


@dataclass(frozen=True)
class TrainingRecord:
    """What happened while training.

    Attributes:
        steps: Optimizer steps done.
        losses: Mean loss per answer token of each step, nats.
        explained: Mean weight of the vector's branch in each step, 0 to 1.
        step_seconds: Median wall time of a step.
    """

    steps: int
    losses: list[float]
    explained: list[float]
    step_seconds: float


def train_task(
    model: PeftModel | PreTrainedModel,
    rows: list[EncodedRecord],
    *,
    objective: Objective,
    guarded: bool,
    task: Task,
    config: FineTuneConfig,
    seed: int,
    pad_id: int,
    work: Path,
    callbacks: list[TrainerCallback],
) -> TrainingRecord:
    """Train the task on every row under a guard; resumes from the newest complete checkpoint in ``work``.

    Args:
        model: PEFT model with the task adapter (``lora``) and, if ``guarded``, the vector.
        rows: Encoded training rows.
        objective: What each row is to teach, see `objectives`.
        guarded: Whether the model holds a vector.
        task: What learns: the adapter, or the base's own weights.
        config: Epochs, learning rate, batch.
        seed: Seed of the order of rows.
        pad_id: Token id that pads batches.
        work: Folder of the checkpoints of exactly this training.
        callbacks: More Trainer callbacks, for example tracking.

    Raises:
        SecvecError: A loss is not finite, the run stopped early, or weights are not finite (rule 5).
    """
    train_base = task == "full"
    activate(model, task=True, vector=guarded, train_base=train_base)
    watch = _Watch()
    trainer = GuardedTrainer(
        model=model,
        args=_arguments(config, task=task, seed=seed, work=work),
        train_dataset=rows,
        data_collator=lambda chosen: {
            **collate(chosen, pad_id=pad_id),
            "row_ids": [r.record_id for r in chosen],
        },
        callbacks=[watch, *callbacks],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.guard_with(objective, train_base=train_base, watch=watch)
    newest = newest_complete(work)
    trainer.train(resume_from_checkpoint=str(newest) if newest else None)
    _check_success(model, reached=trainer.state.global_step, wanted=trainer.state.max_steps)
    history = [entry for entry in trainer.state.log_history if "explained" in entry]
    return TrainingRecord(
        steps=trainer.state.global_step,
        losses=[entry["loss"] for entry in history],
        explained=[entry["explained"] for entry in history],
        step_seconds=statistics.median(entry["seconds"] for entry in history),
    )


def _arguments(config: FineTuneConfig, *, task: Task, seed: int, work: Path) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(work),
        num_train_epochs=config.epochs,
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.accumulation,
        learning_rate=config.learning_rate or DEFAULT_LEARNING_RATES[task],
        lr_scheduler_type="linear",
        warmup_steps=config.warmup_share,
        weight_decay=config.weight_decay,
        gradient_checkpointing=config.gradient_checkpointing,
        save_strategy="steps",
        save_steps=config.checkpoint_steps,
        save_total_limit=2,
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        seed=seed,
        dataloader_pin_memory=False,
    )


def _check_success(model: PeftModel | PreTrainedModel, *, reached: int, wanted: int) -> None:
    # The Trainer ends quietly on some stops: success is the step count and finite weights, not its return.
    if reached < wanted:
        raise SecvecError(
            f"training stopped at step {reached} of {wanted}",
            where="fine_tune_guarded",
            accepted="a run to the last step; run again to resume",
        )
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise SecvecError(
                "weights are not finite after training",
                where=name,
                accepted="a smaller learning_rate",
            )


class _Watch(TrainerCallback):
    """Times steps, holds the vector to its rule after each, and completes checkpoints."""

    def __init__(self) -> None:
        self.loss = 0.0
        self.explained: list[float] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.progress = Progress("fine-tune", state.max_steps)
        self.progress.move_to(state.global_step)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.started = time.perf_counter()
        self.loss, self.explained = 0.0, []

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        check_vector_frozen(model)
        # The Trainer keeps log_history in its checkpoints: the curve survives a resume.
        state.log_history.append(
            {
                "step": state.global_step,
                "loss": self.loss,
                "explained": sum(self.explained) / max(len(self.explained), 1),
                "seconds": time.perf_counter() - self.started,
            }
        )
        self.progress.move_to(state.global_step)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        write_manifest(folder, kind="checkpoint")


class GuardedTrainer(Trainer):
    """A Trainer whose step runs the branches that an objective weighs; its checkpoints hold the task only."""

    objective: Objective
    train_base: bool
    watch: _Watch

    def guard_with(self, objective: Objective, *, train_base: bool, watch: _Watch) -> None:
        """Set the objective."""
        self.objective, self.train_base, self.watch = objective, train_base, watch
        self.model_accepts_loss_kwargs = (
            True  # makes the Trainer count answer tokens over accumulated batches
        )

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """Backward passes of one batch; see `objectives` for the formula.

        The loss of a batch is the rows' loss summed and divided by the answer tokens of the whole optimizer
        step, so that ``none`` is exactly the usual mean cross-entropy.
        """
        model.train()
        row_ids = inputs.pop("row_ids")
        batch = self._prepare_inputs(inputs)
        tokens = float(num_items_in_batch)
        weights = self.objective.weigh(model, batch, row_ids)
        total = torch.zeros((), device=batch["labels"].device)
        for vector, weight in ((False, weights.without), (True, weights.with_vector)):
            chosen = weight.nonzero().flatten()
            if not len(chosen):
                continue
            activate(model, task=True, vector=vector, train_base=self.train_base)
            part = {name: tensor[chosen] for name, tensor in batch.items()}
            loss = -(weight[chosen] * answer_log_probs(model, part)).sum() / tokens
            self._refuse_non_finite(float(loss.detach()), row_ids)
            self.accelerator.backward(loss)
            total += loss.detach()
        self.watch.loss += float(total)
        self.watch.explained += weights.with_vector.tolist()
        return total

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
        (folder / OBJECTIVE).write_text(json.dumps(self.objective.state(), sort_keys=True))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        folder = Path(resume_from_checkpoint)
        load_trainable(cast("nn.Module", self.model), folder)
        self.objective.restore(json.loads((folder / OBJECTIVE).read_text()))
