"""Objectives that were tried and that the default does without; docs/results/efficacy.md has figures."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from secvec.components.fine_tune_guarded.objectives import BatchLoss, Mixture, OneBranch
from secvec.components.shared.adapters import activate
from secvec.components.shared.likelihood import IGNORED, answer_log_probs


def _learns_base(model: Any) -> bool:
    return not any(".task." in name for name, _ in model.named_parameters())


def _select(batch: dict[str, torch.Tensor], rows: torch.Tensor) -> dict[str, torch.Tensor]:
    return {name: tensor[rows] for name, tensor in batch.items()}


class BehindVector(Mixture):
    """−Σ (1−r) log p_θ' + r log p_θ'+s: what the vector explains is learned while the vector is active."""

    def compute(self, model: Any, batch: dict[str, torch.Tensor], row_ids: list[str]) -> BatchLoss:
        """Both branches, each on the rows that have a share in it."""
        explained = self.weigh(model, batch, row_ids)
        full = _learns_base(model)
        loss = torch.zeros(())
        for vector, weight in ((True, explained), (False, 1 - explained)):
            rows = weight.nonzero().flatten()
            if len(rows):
                activate(model, task=True, vector=vector, train_base=full)
                loss = loss - (weight[rows] * answer_log_probs(model, _select(batch, rows))).sum()
        return BatchLoss(loss, explained)


@dataclass
class Annealed(Mixture):
    """No row settles; the prior falls from 0.9 to its value over the first half of the training."""

    batches: float = 0.0
    done: int = 0

    def settle(self, row_ids: list[str], responsibilities: torch.Tensor) -> None:
        """Never."""

    def compute(self, model: Any, batch: dict[str, torch.Tensor], row_ids: list[str]) -> BatchLoss:
        """With the prior of this batch."""
        final = self.prior
        left = max(0.0, 1 - 2 * self.done / self.batches)
        self.prior = final + (0.9 - final) * left
        self.done += 1
        try:
            return super().compute(model, batch, row_ids)
        finally:
            self.prior = final


class PerToken(Mixture):
    """Responsibilities of single tokens; both branches are looked at in every step."""

    def compute(self, model: Any, batch: dict[str, torch.Tensor], row_ids: list[str]) -> BatchLoss:
        """−Σ_t (1−r_t) log p_θ'(y_t)."""
        full = _learns_base(model)
        with torch.no_grad():
            activate(model, task=False, vector=True, train_base=full)
            background = _token_log_probs(model, batch)
        activate(model, task=True, vector=False, train_base=full)
        tokens = _token_log_probs(model, batch)
        is_answer = batch["labels"][:, 1:] != IGNORED
        offset = math.log(self.prior) - math.log1p(-self.prior)
        found = torch.sigmoid(offset + background - tokens.detach().clamp(min=-self.floor))
        explained = (found * is_answer).sum(1) / is_answer.sum(1)
        return BatchLoss(-((1 - found) * tokens * is_answer).sum(), explained)


def _token_log_probs(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    labels = batch["labels"][:, 1:].clamp(min=0)
    return logits.float().log_softmax(-1).gather(-1, labels[..., None]).squeeze(-1)


class KlToBase(OneBranch):
    """−log p_θ' + weight · KL(p_base || p_θ') on every answer token."""

    def __init__(self, base: Any, *, weight: float) -> None:
        super().__init__(with_vector=False)
        self.base, self.weight = base.eval(), weight

    def compute(self, model: Any, batch: dict[str, torch.Tensor], row_ids: list[str]) -> BatchLoss:
        """The sum over all rows."""
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        with torch.no_grad():
            reference = self.base(**inputs).logits[:, :-1].float().log_softmax(-1)
        logits = model(**inputs).logits[:, :-1].float().log_softmax(-1)
        labels = batch["labels"][:, 1:]
        is_answer = labels != IGNORED
        scores = logits.gather(-1, labels.clamp(min=0)[..., None]).squeeze(-1)
        divergence = (reference.exp() * (reference - logits)).sum(-1)
        loss = ((self.weight * divergence - scores) * is_answer).sum()
        return BatchLoss(loss, torch.zeros(len(row_ids)))
