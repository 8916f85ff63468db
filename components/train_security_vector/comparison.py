"""A model with the vector beside its base: log-probabilities of answers, and how far distributions part."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer

from secvec.components.shared.adapters import activate
from secvec.components.shared.likelihood import (
    IGNORED,
    EncodedRecord,
    answer_lengths,
    batches,
    explained_from,
    mean_loss,
)

if TYPE_CHECKING:
    from peft import PeftModel

# With equal priors, a row that is more than 99 times likelier with the vector is its with 99% certainty.
EXPLAINED_NATS = math.log(99)


@dataclass(frozen=True)
class Comparison:
    """What the vector does to rows.

    Attributes:
        without: Log-probability of each answer without the vector, nats.
        with_vector: The same with it.
        divergence: KL(p_θ || p_θ+s) of each row, summed over its answer's tokens, nats.
        lengths: Tokens of each answer.
    """

    without: list[float]
    with_vector: list[float]
    divergence: list[float]
    lengths: list[int]

    @property
    def losses(self) -> tuple[float, float]:
        """Mean loss per token without the vector and with it."""
        return mean_loss(self.without, self.lengths), mean_loss(self.with_vector, self.lengths)

    @property
    def fall(self) -> float:
        """How far the vector lowers the loss, nats per token."""
        without, with_vector = self.losses
        return without - with_vector

    @property
    def halfway(self) -> float:
        """The loss halfway between the two, nats per token."""
        return sum(self.losses) / 2

    @property
    def drift(self) -> float:
        """Mean KL(p_θ || p_θ+s) per token, nats."""
        return sum(self.divergence) / max(sum(self.lengths), 1)

    @property
    def explained(self) -> float:
        """Share of answers that the vector makes more than 99 times likelier."""
        return sum(self.find_explained()) / len(self.lengths)

    def find_explained(self, *, floor: float = math.inf) -> list[bool]:
        """Which answers the vector makes more than 99 times likelier.

        Args:
            floor: τ of `explained_from`, nats per token.
        """
        return [
            with_vector - max(without, explained_from(without, length, loss=floor)) > EXPLAINED_NATS
            for without, with_vector, length in zip(self.without, self.with_vector, self.lengths, strict=True)
        ]

    def pick(self, places: Sequence[int]) -> Comparison:
        """The same of some of the rows."""
        parts = (self.without, self.with_vector, self.divergence, self.lengths)
        return Comparison(*([part[place] for place in places] for part in parts))  # type: ignore[arg-type]


@torch.no_grad()
def compare_rows(model: PeftModel, rows: Sequence[EncodedRecord], *, size: int, pad_id: int) -> Comparison:
    """Measure what the vector, which is active afterwards, does to rows; no task adapter acts.

    Args:
        model: PEFT model with the vector attached.
        rows: Encoded rows; there may be none.
        size: Rows per batch.
        pad_id: Token id that pads batches.
    """
    activate(model, task=False, vector=True)
    found = Comparison([0.0] * len(rows), [0.0] * len(rows), [0.0] * len(rows), [0] * len(rows))
    device = next(model.parameters()).device
    for chosen, batch in batches(rows, size=size, pad_id=pad_id, device=device):
        reference, changed = base_distributions(model, batch), answer_distributions(model, batch)
        figures = (
            _sum_rows(pick_labels(reference, batch), batch),
            _sum_rows(pick_labels(changed, batch), batch),
            _sum_rows(divergences(reference, changed), batch),
            answer_lengths(batch),
        )
        lists: tuple[list[Any], ...] = (
            found.without,
            found.with_vector,
            found.divergence,
            found.lengths,
        )
        for kept, values in zip(lists, figures, strict=True):
            for place, value in zip(chosen, values.tolist(), strict=True):
                kept[place] = value
    return found


def answer_distributions(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Log-probabilities of every token at the batch's answer tokens, shape [answer tokens, vocabulary].

    Only answers are compared: over a whole vocabulary, prompts would be most of the memory.
    """
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return logits[:, :-1][_is_answer(batch)].float().log_softmax(-1)


def base_distributions(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """`answer_distributions` of the base; adapters that act do so again afterwards."""
    with torch.no_grad(), _without_adapters(model):
        return answer_distributions(model, batch)


@contextmanager
def _without_adapters(model: Any) -> Iterator[None]:
    """Let no adapter act for a moment.

    PEFT's own switch also decides, parameter by parameter, what can be trained.
    """
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    before = [layer._disable_adapters for layer in layers]
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer, disabled in zip(layers, before, strict=True):
            layer._disable_adapters = disabled


def divergences(reference: torch.Tensor, changed: torch.Tensor) -> torch.Tensor:
    """KL(reference || changed) at each token, nats; from [tokens, vocabulary] to [tokens]."""
    return (reference.exp() * (reference - changed)).sum(-1)


def pick_labels(distributions: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Log-probabilities of the batch's answer tokens; from [tokens, vocabulary] to [tokens]."""
    labels = batch["labels"][:, 1:][_is_answer(batch)]
    return distributions.gather(-1, labels[:, None])[:, 0]


def cut_rows(batch: dict[str, torch.Tensor], rows: slice) -> dict[str, torch.Tensor]:
    """Some rows of a batch, without padding that they do not need."""
    part = {name: tensor[rows] for name, tensor in batch.items()}
    longest = int(part["attention_mask"].sum(1).max()) if len(part["attention_mask"]) else 0
    return {name: tensor[:, :longest] for name, tensor in part.items()}


def _is_answer(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return batch["labels"][:, 1:] != IGNORED


def _sum_rows(figures: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Add up figures of answer tokens, row by row; shape [rows]."""
    answered = _is_answer(batch)
    return figures.new_zeros(len(answered)).index_add(0, answered.nonzero()[:, 0], figures)
