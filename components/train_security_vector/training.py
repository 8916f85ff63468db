"""Train a security vector: harmful seeds are fit while benign anchors stay where they were."""

from __future__ import annotations

import math
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
    IGNORED,
    EncodedRecord,
    answer_lengths,
    answer_log_probs,
    batches,
    collate,
    mean_loss,
    score_answers,
)
from secvec.components.shared.progress import Progress
from secvec.components.train_security_vector.config import VectorConfig

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


_ANCHORS_TO_STOP_BY = 16


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
    trainer = _VectorTrainer(
        model=model,
        args=_arguments(config, seed=seed, scratch=scratch),
        train_dataset=rows.seeds,
        data_collator=lambda chosen: collate(chosen, pad_id=pad_id),
        callbacks=[stopper],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.anchors = _EndlessAnchors(rows.anchors, size=config.batch_size, pad_id=pad_id, seed=seed)
    trainer.kl_weight = config.kl_weight
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
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=5,
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

    def __init__(self, rows: list[EncodedRecord], *, size: int, pad_id: int, seed: int) -> None:
        self.rows, self.size, self.pad_id = rows, size, pad_id
        self.generator = torch.Generator().manual_seed(seed)
        self.queue: list[int] = []

    def next(self, device: torch.device) -> dict[str, torch.Tensor]:
        while len(self.queue) < self.size:
            self.queue += torch.randperm(len(self.rows), generator=self.generator).tolist()
        chosen, self.queue = self.queue[: self.size], self.queue[self.size :]
        batch = collate([self.rows[index] for index in chosen], pad_id=self.pad_id)
        return {name: tensor.to(device) for name, tensor in batch.items()}


def kl_to_base(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """KL(p_θ || p_θ+s) of each row, summed over vocabulary and answer tokens, in nats; shape [rows].

    Args:
        model: PEFT model with the vector active; switched off and on again for the reference.
        batch: Tensors of `collate`, shape [rows, length].
    """
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    # Only answers are compared: over a whole vocabulary, prompts would be most of the memory.
    answered = batch["labels"][:, 1:] != IGNORED
    tuner = model.base_model
    tuner.disable_adapter_layers()  # disable_adapter() would look at every layer's state first, each time
    try:
        with torch.no_grad():
            reference = model(**inputs).logits[:, :-1][answered].float().log_softmax(-1)
    finally:
        tuner.enable_adapter_layers()
    logits = model(**inputs).logits[:, :-1][answered].float().log_softmax(-1)
    divergence = (reference.exp() * (reference - logits)).sum(-1)
    rows = answered.nonzero()[:, 0]
    return divergence.new_zeros(len(answered)).index_add(0, rows, divergence)


class _VectorTrainer(Trainer):
    anchors: _EndlessAnchors
    kl_weight: float

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        loss = -answer_log_probs(model, inputs).sum() / answer_lengths(inputs).sum()
        if self.kl_weight:
            batch = self.anchors.next(inputs["input_ids"].device)
            loss = loss + self.kl_weight * kl_to_base(model, batch).sum() / answer_lengths(batch).sum()
            # what is switched on again, PEFT takes as what is to be trained
            _make_vector_trainable(model)
        if not torch.isfinite(loss):
            raise DivergedError(
                f"the loss is not finite at step {self.state.global_step + 1} of the vector's training",
                where="train_security_vector",
                accepted="a smaller learning_rate, or a base with finite weights",
            )
        return loss


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
        self.drift = mean_kl_to_base(model, anchors, size=size, pad_id=self.pad_id)
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


def mean_kl_to_base(model: PeftModel, rows: list[EncodedRecord], *, size: int, pad_id: int) -> float:
    """Mean KL(p_θ || p_θ+s) per answer token over rows, in nats."""
    sums, lengths = _sum_kl(model, rows, size=size, pad_id=pad_id)
    return sum(sums) / max(sum(lengths), 1)


def row_kl_to_base(model: PeftModel, rows: list[EncodedRecord], *, size: int, pad_id: int) -> list[float]:
    """KL(p_θ || p_θ+s) per answer token of each row, in nats and in the rows' order."""
    sums, lengths = _sum_kl(model, rows, size=size, pad_id=pad_id)
    return [total / length for total, length in zip(sums, lengths, strict=True)]


@torch.no_grad()
def _sum_kl(
    model: PeftModel, rows: list[EncodedRecord], *, size: int, pad_id: int
) -> tuple[list[float], list[int]]:
    sums, lengths = [0.0] * len(rows), [0] * len(rows)
    device = next(model.parameters()).device
    for chosen, batch in batches(rows, size=size, pad_id=pad_id, device=device):
        found, counted = kl_to_base(model, batch).tolist(), answer_lengths(batch).tolist()
        for index, total, length in zip(chosen, found, counted, strict=True):
            sums[index], lengths[index] = total, length
    return sums, lengths
