"""Train a security vector: harmful seeds are fit while benign anchors stay where they were."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments, set_seed

from secvec.components.shared.adapters import (
    VECTOR,
    activate,
    adapter_tensors,
    attach_adapter,
    make_lora_config,
    round_vector,
)
from secvec.components.shared.errors import SecvecError
from secvec.components.shared.likelihood import (
    EncodedRecord,
    answer_lengths,
    collate,
    mean_loss,
    score_answers,
)
from secvec.components.shared.progress import Progress
from secvec.components.train_security_vector.comparison import (
    answer_distributions,
    base_distributions,
    compare_rows,
    cut_rows,
    divergences,
    pick_labels,
)
from secvec.components.train_security_vector.config import VectorConfig

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


_ANCHORS_TO_STOP_BY = 16
# One pass over seeds and anchors takes less time than two, if it is not over this many times as many tokens.
_MOST_PADDED = 1.25


@dataclass(frozen=True)
class VectorRows:
    """The encoded rows that a vector is made from and proved on.

    Attributes:
        seeds: Harm to learn.
        seeds_heldout: Harm to prove it on.
        anchors: Benign text on which nothing may change.
        anchors_heldout: Likewise, to prove it on.
        training: A sample of the rows that will be learned under the vector; it is only measured on them.
        skill: A sample of the new skill's held-out prompts with their answers; likewise.
    """

    seeds: list[EncodedRecord]
    seeds_heldout: list[EncodedRecord]
    anchors: list[EncodedRecord]
    anchors_heldout: list[EncodedRecord]
    training: list[EncodedRecord] = field(default_factory=list)
    skill: list[EncodedRecord] = field(default_factory=list)


@dataclass(frozen=True)
class TrainedVector:
    """A model with its trained vector attached, and how the training went.

    Attributes:
        model: PEFT model with the adapter `VECTOR`, active and frozen.
        epochs: Passes over the seeds that were made.
        heldout_losses: The training loss on held-out rows after each pass, nats per answer token.
    """

    model: PeftModel
    epochs: int
    heldout_losses: list[float]


class DivergedError(SecvecError):
    """Training a vector gave a loss that is not finite.

    Attributes:
        model: The model, with what is left of the vector.
    """

    model: PeftModel


def train_vector(
    base: PreTrainedModel, rows: VectorRows, *, config: VectorConfig, seed: int, pad_id: int, scratch: Path
) -> TrainedVector:
    """Minimise CE of p_θ+s on the seeds + λ · KL(p_θ || p_θ+s) on the anchors, θ frozen.

    Source: Zhou et al., arXiv 2311.02105, section 4 (security vectors as LoRA, KL on non-target text).

    Args:
        base: The base model; its weights do not change.
        rows: Encoded seeds and anchors.
        config: Rank, learning rate, λ and stopping.
        seed: Random seed of the adapter's initial weights and of the order of rows.
        pad_id: Token id that pads batches.
        scratch: A folder the Trainer may use; the vector is never written to it (rule 4).

    Raises:
        SecvecError: The loss is not finite.
    """
    set_seed(seed)
    model = attach_adapter(base, VECTOR, make_lora_config(rank=config.rank))
    _make_vector_trainable(model)
    stopper = _StopWhenFit(rows, config=config, pad_id=pad_id)
    size = -(-config.batch_size // 2) if config.kl_weight else 0
    anchors = _EndlessAnchors(rows.anchors, size=size, seed=seed)
    trainer = _VectorTrainer(
        model=model,
        args=_arguments(config, seed=seed, scratch=scratch),
        train_dataset=rows.seeds,
        data_collator=lambda seeds: collate([*seeds, *anchors.draw()], pad_id=pad_id),
        callbacks=[stopper],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.anchors, trainer.kl_weight = anchors.size, config.kl_weight
    try:
        trainer.train()
        stopper.restore_best(model)
    except DivergedError as error:
        error.model = model
        raise
    round_vector(model)  # what is certified is what will guard
    activate(model, task=False, vector=True)
    return TrainedVector(model.eval(), epochs=len(stopper.losses), heldout_losses=stopper.losses)


def _arguments(config: VectorConfig, *, seed: int, scratch: Path) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(scratch),
        num_train_epochs=config.max_epochs,
        per_device_train_batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        # A pass that ends at a rate of 0 leaves a vector that has come to rest: measured with half as many
        # anchors, it drifts less than one with all of them at a constant rate (docs/results/vectors.md).
        lr_scheduler_type="cosine_with_restarts",
        lr_scheduler_kwargs={"num_cycles": config.max_epochs},
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        seed=seed,
        dataloader_pin_memory=False,
    )


def _make_vector_trainable(model: PeftModel) -> None:
    # The one place where a vector may learn.
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(f".{VECTOR}." in name)


class _EndlessAnchors:
    """Batches of anchors, reshuffled each time all were seen."""

    def __init__(self, rows: list[EncodedRecord], *, size: int, seed: int) -> None:
        self.rows, self.size = rows, size
        self.generator = torch.Generator().manual_seed(seed)
        self.queue: list[int] = []

    def draw(self) -> list[EncodedRecord]:
        while len(self.queue) < self.size:
            self.queue += torch.randperm(len(self.rows), generator=self.generator).tolist()
        chosen, self.queue = self.queue[: self.size], self.queue[self.size :]
        return [self.rows[index] for index in chosen]


class _VectorTrainer(Trainer):
    """Learns from batches of seeds with anchors behind them, which one pass runs together.

    Attributes:
        anchors: How many rows of a batch, the last ones, are anchors.
        kl_weight: λ.
    """

    anchors: int
    kl_weight: float

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        count = len(inputs["input_ids"]) - self.anchors
        seeds, anchors = (cut_rows(inputs, part) for part in (slice(count), slice(count, None)))
        learned, kept = _run_together(model, inputs, (seeds, anchors))
        loss = -pick_labels(learned, seeds).mean()
        if self.kl_weight:
            loss = loss + self.kl_weight * divergences(base_distributions(model, anchors), kept).mean()
        if not torch.isfinite(loss):
            raise DivergedError(
                f"the loss is not finite at step {self.state.global_step + 1} of the vector's training",
                where="train_security_vector",
                accepted="a smaller learning_rate, or a base with finite weights",
            )
        return loss


def _run_together(
    model: Any, batch: dict[str, torch.Tensor], parts: Sequence[dict[str, torch.Tensor]]
) -> Sequence[torch.Tensor]:
    """Distributions at the answers of a batch's parts, of one pass unless much of it would be padding."""
    needed = sum(part["input_ids"].numel() for part in parts)
    if batch["input_ids"].numel() > _MOST_PADDED * needed:
        return [answer_distributions(model, part) for part in parts]
    return answer_distributions(model, batch).split([int(answer_lengths(part).sum()) for part in parts])


class _StopWhenFit(TrainerCallback):
    """End training when the loss on held-out rows gains no more, and keep the best vector in memory."""

    def __init__(self, rows: VectorRows, *, config: VectorConfig, pad_id: int) -> None:
        self.rows, self.config, self.pad_id = rows, config, pad_id
        self.losses: list[float] = []
        self.idle = 0
        self.best: dict[str, torch.Tensor] = {}
        self.progress = Progress("train vector", config.max_epochs)

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        # A fresh adapter does nothing: there is no drift to measure yet.
        model.eval()
        self.untrained = self._measure_seed_loss(model)
        self.fit = self.config.fit_share * self.untrained
        model.train()

    def _measure_seed_loss(self, model: Any) -> float:
        size = 4 * self.config.batch_size  # without gradients there is room
        return mean_loss(*score_answers(model, self.rows.seeds_heldout, size=size, pad_id=self.pad_id))

    def _heldout_loss(self, model: Any) -> float:
        model.eval()
        self.seed_loss = self._measure_seed_loss(model)
        # Some are enough to know when to stop; the certificate takes all of them.
        anchors = self.rows.anchors_heldout[:_ANCHORS_TO_STOP_BY]
        size = 4 * self.config.batch_size
        self.drift = compare_rows(model, anchors, size=size, pad_id=self.pad_id).drift
        _make_vector_trainable(model)
        model.train()
        return self.seed_loss + self.config.kl_weight * self.drift

    def on_epoch_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> Any:
        loss = self._heldout_loss(model)
        if math.isfinite(loss) and loss < min(self.losses, default=math.inf):
            self.best = {name: tensor.clone() for name, tensor in adapter_tensors(model, VECTOR).items()}
        # A pass counts when it takes a twentieth off what is left: a vector's last tenths of a nat are what
        # `always` still learns from a harmful row. On a plateau, a hundredth of all gained counts too.
        lowest = min(self.losses, default=self.untrained)
        needed = min(0.05 * lowest, 0.01 * (self.untrained - min(lowest, loss)))
        gained = loss < lowest and lowest - loss >= needed
        self.idle = 0 if gained else self.idle + 1
        self.losses.append(loss)
        is_inert = self.drift <= self.config.max_anchor_kl
        control.should_training_stop = is_inert and (self.idle >= self.config.patience or self._is_fit())
        self.progress.move_to(self.progress.total if control.should_training_stop else len(self.losses))
        return control

    def _is_fit(self) -> bool:
        """Whether enough is learned; half of the allowed drift is left to what the certificate looks at."""
        return self.seed_loss <= self.fit and self.drift <= 0.5 * self.config.max_anchor_kl

    def restore_best(self, model: PeftModel) -> None:
        from peft import set_peft_model_state_dict

        if not self.best:
            raise DivergedError(
                "the loss on held-out rows was never finite",
                where="train_security_vector",
                accepted="a smaller learning_rate",
            )
        set_peft_model_state_dict(model, self.best, adapter_name=VECTOR)
