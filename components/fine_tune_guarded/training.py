"""Guarded training on the Hugging Face Trainer."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PrinterCallback, TrainerCallback, TrainingArguments

from secvec.components.fine_tune_guarded.checkpoint_places import bring_back, remote_place
from secvec.components.fine_tune_guarded.checkpoints import newest_for_all, step_of
from secvec.components.fine_tune_guarded.config import FineTuneConfig, Task
from secvec.components.fine_tune_guarded.objectives import Objective
from secvec.components.fine_tune_guarded.processes import deal, is_first, own_part, spread_again
from secvec.components.fine_tune_guarded.termination import Stop
from secvec.components.fine_tune_guarded.trainer import GuardedTrainer, Watch
from secvec.components.shared.adapters import activate
from secvec.components.shared.errors import SecvecError, Terminated
from secvec.components.shared.likelihood import IGNORED, EncodedRecord, collate
from secvec.components.shared.progress import report

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

DEFAULT_LEARNING_RATES: dict[Task, float] = {"lora": 2e-4, "full": 1e-5}


@dataclass(frozen=True)
class TrainingRecord:
    """What happened while training.

    Attributes:
        steps: Optimizer steps done.
        losses: Mean loss per answer token of each step, nats.
        explained: How much of its rows the vector explained in each step, 0 to 1.
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
    task: Task,
    config: FineTuneConfig,
    seed: int,
    pad_id: int,
    work: Path,
    callbacks: list[TrainerCallback],
) -> TrainingRecord:
    """Train the task on every row under a guard; resumes from the newest complete checkpoint in ``work``.

    Args:
        model: PEFT model with the task adapter (``lora``) and, under a guard, the vector.
        rows: Encoded training rows.
        objective: What each row is to teach, see `objectives`.
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
    activate(model, task=True, vector=objective.with_vector, train_base=train_base)
    watch = Watch()
    trainer = GuardedTrainer(
        model=model,
        args=_arguments(config, task=task, seed=seed, work=work),
        train_dataset=rows,
        data_collator=lambda chosen: _collate_share(chosen, pad_id=pad_id),
        callbacks=[watch, *callbacks],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.guard_with(objective, train_base=train_base, watch=watch)
    _run(trainer, work=work)
    spread_again(model)
    _check_success(model, reached=trainer.state.global_step, wanted=trainer.state.max_steps)
    history = [entry for entry in trainer.state.log_history if "explained" in entry]
    return TrainingRecord(
        steps=trainer.state.global_step,
        losses=[entry["loss"] for entry in history],
        explained=[entry["explained"] for entry in history],
        step_seconds=statistics.median(entry["seconds"] for entry in history),
    )


def _run(trainer: GuardedTrainer, *, work: Path) -> None:
    """Train to the end, from the newest checkpoint on.

    Raises:
        Terminated: The process was asked to end; what is finished lies in a checkpoint.
    """
    if place := remote_place(work.name):
        bring_back(work, place=place)
        trainer.watch.place = place
    newest = newest_for_all(work)
    step = step_of(newest) if newest else 0
    if is_first():
        report("training_started", after_step=step, checkpoints=work.name)
    termination = trainer.watch.termination
    with termination.watching():
        try:
            trainer.train(resume_from_checkpoint=str(newest) if newest else None)
        except Stop:
            trainer.save_last_step()
    if termination.asked:
        raise Terminated(
            f"was asked to end (SIGTERM) after step {trainer.state.global_step}, which is kept",
            where="fine_tune_guarded",
            accepted="to run again, which goes on from there",
        )


def _collate_share(chosen: list[EncodedRecord], *, pad_id: int) -> dict[str, Any]:
    """This process's share of a batch of all processes, so that they learn exactly what one would."""
    # Where there are fewer rows than processes, one that teaches nothing: every process runs every pass.
    first = chosen[0].input_ids
    share = deal(chosen) or [EncodedRecord("", first, [IGNORED] * len(first))]
    return {**collate(share, pad_id=pad_id), "row_ids": [row.record_id for row in share]}


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
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        seed=seed,
        dataloader_pin_memory=False,
        use_cpu=not torch.cuda.is_available(),  # unless told, it sees no other process on a CPU
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
        if not torch.isfinite(own_part(parameter)).all():
            raise SecvecError(
                "weights are not finite after training",
                where=name,
                accepted="a smaller learning_rate",
            )
