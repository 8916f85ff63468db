"""What a guarded step minimises.

An objective turns a batch into a loss and says of each row how much of it the vector explains. Everything it
trains runs through one branch: the model with the vector (``always``) or without it (all others), so that a
guarded step costs no more than an unguarded one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from secvec.components.fine_tune_guarded.attribution import RowAttribution
from secvec.components.fine_tune_guarded.config import Guard
from secvec.components.fine_tune_guarded.processes import anywhere, gather
from secvec.components.shared.likelihood import answer_log_probs, explained_from

# A row whose responsibility passes one of these has settled. A row that the vector explains better than not
# must not teach θ' at all: what leaks makes the next leak likelier.
SETTLED_WITHOUT = 0.2
SETTLED_WITH = 0.5


@dataclass(frozen=True)
class BatchLoss:
    """What a batch teaches.

    Attributes:
        loss: Negative log-likelihood in nats, summed over rows and answer tokens, shape []; None where no row
            of the batch teaches anything, in any process.
        explained: How much of each row the vector explains, 0 to 1, shape [rows].
    """

    loss: torch.Tensor | None
    explained: torch.Tensor


class Objective(Protocol):
    """What the rows of a batch are to teach."""

    @property
    def with_vector(self) -> bool:
        """Whether the vector is active while the rows are learned."""

    def compute(self, model: Any, batch: dict[str, torch.Tensor], row_ids: list[str]) -> BatchLoss:
        """The loss of a batch; tensors of shape [rows, length]."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint must keep, as JSON."""

    def restore(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave."""


@dataclass
class OneBranch:
    """Every row through one branch, an objective without state.

    ``none`` minimises −log p_θ'(y|x), ordinary fine-tuning. ``always`` minimises −log p_θ'+s(y|x), the
    security vectors of Zhou et al., arXiv 2311.02105, section 4.

    Attributes:
        with_vector: Whether the vector is active.
        folded: Whether it acts from within the weights instead, see `fold_vector`.
    """

    with_vector: bool
    folded: bool = False

    def compute(self, model: Any, batch: dict[str, torch.Tensor], row_ids: list[str]) -> BatchLoss:
        """The sum over all rows."""
        scores = answer_log_probs(model, batch)
        guarded = float(self.with_vector or self.folded)
        return BatchLoss(-scores.sum(), torch.full_like(scores.detach(), guarded))

    def state(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Nothing."""


@dataclass
class Mixture:
    """−log[(1−π) p_θ'(y|x) + π p_θ+s(y|x)]: rows that the vector explains teach θ' nothing.

    The vector on the pristine base is a fixed background, known once from the row attribution. The gradient
    is −(1−r) ∇ log p_θ' with the responsibility r taken as a constant (expectation maximisation; Dempster,
    Laird and Rubin 1977), over whole answers of L tokens in float32, so that bf16 rounding of single tokens
    cannot turn it:

        r = σ(log π/(1−π) + log p_θ+s(y|x) − max(log p_θ'(y|x), f)),  f = min(−τL, ½ log p_θ(y|x)).

    The floor f is there for new skills: what the model cannot do yet is improbable in both, and the ratio
    of two tiny numbers says nothing about harm. It asks for a loss under the vector below τ, or below half of
    the base's own (measured: docs/results/efficacy.md).

    A row settles as soon as its responsibility is decided, most of them before the first step. One that the
    vector explains stays out whatever θ' learns elsewhere; without that, harm that leaks into θ' lowers the
    responsibilities of the other harmful rows, which then leak too. Nor is it learned behind the vector:
    its gradient there is small, but Adam divides it by its own size (measured: docs/results/efficacy.md).

    Attributes:
        prior: π, between 0 and 1.
        floor: τ, nats per token.
        background: Row id to log p_θ+s(y|x), nats; what is not in it teaches fully.
        floors: Row id to f, nats; what is not in it has none.
        settled: Row id to whether the vector explains it.
    """

    prior: float
    floor: float
    background: dict[str, float] = field(default_factory=dict)
    floors: dict[str, float] = field(default_factory=dict)
    settled: dict[str, bool] = field(default_factory=dict)

    @property
    def with_vector(self) -> bool:
        """Never: what is learned is learned by the very model that ships."""
        return False

    def responsibilities(
        self, without: torch.Tensor, with_vector: torch.Tensor, floors: torch.Tensor
    ) -> torch.Tensor:
        """r of rows from log p_θ', log p_θ+s and f, nats, all of shape [rows]."""
        offset = math.log(self.prior) - math.log1p(-self.prior)
        return torch.sigmoid(offset + with_vector - torch.maximum(without, floors))

    def begin(self, attributions: Mapping[str, RowAttribution]) -> None:
        """Take the background from the row attribution, by row id, and settle what it decides."""
        self.background = {row_id: found.with_vector for row_id, found in attributions.items()}
        self.floors = {
            row_id: explained_from(found.without, found.length, loss=self.floor)
            for row_id, found in attributions.items()
        }
        without = [found.without for found in attributions.values()]
        figures = (without, list(self.background.values()), list(self.floors.values()))
        found = self.responsibilities(*torch.tensor(figures, dtype=torch.float32))
        self.settle(list(attributions), found)

    def settle(self, row_ids: list[str], responsibilities: torch.Tensor) -> None:
        """Settle the rows whose responsibilities, of shape [rows], are decided."""
        for row_id, found in zip(row_ids, responsibilities.tolist(), strict=True):
            if found >= SETTLED_WITH or found <= SETTLED_WITHOUT:
                self.settled[row_id] = found >= SETTLED_WITH

    def compute(self, model: Any, batch: dict[str, torch.Tensor], row_ids: list[str]) -> BatchLoss:
        """The rows by what the vector leaves of them; those that it explains are not run at all."""
        explained = self.weigh(model, batch, row_ids)
        # One that is no number counts as taught: its loss is none either, which ends the training.
        taught = (~(explained >= 1)).nonzero().flatten()
        # All processes run a pass, or none: gradients are averaged over them.
        if not anywhere(len(taught) > 0, device=explained.device):
            return BatchLoss(None, explained)
        if not len(taught):
            taught = torch.zeros(1, dtype=torch.long, device=explained.device)  # a row, at weight zero
        part = {name: tensor[taught] for name, tensor in batch.items()}
        loss = -((1 - explained[taught]) * answer_log_probs(model, part)).sum()
        return BatchLoss(loss, explained)

    def weigh(self, model: Any, batch: dict[str, torch.Tensor], row_ids: list[str]) -> torch.Tensor:
        """Responsibilities, shape [rows]; those of open rows are computed on the model as it is now."""
        device = batch["labels"].device
        found = {row_id: float(self.settled[row_id]) for row_id in row_ids if row_id in self.settled}
        is_open = [
            index
            for index, row_id in enumerate(row_ids)
            if row_id in self.background and row_id not in self.settled
        ]
        if anywhere(bool(is_open), device=device):
            looked = is_open or [0]  # a row without need, where another process has an open one
            chosen = [row_ids[index] for index in looked]
            seen = self._look(model, {name: tensor[looked] for name, tensor in batch.items()}, chosen)
            if is_open:
                self.settle(chosen, seen)
                pairs = zip(chosen, seen.tolist(), strict=True)
                found |= {row_id: float(self.settled.get(row_id, r)) for row_id, r in pairs}
            # In the next epoch a row may come to another process.
            settled = [(row_id, self.settled[row_id]) for row_id in chosen if row_id in self.settled]
            self.settled.update(gather(settled))
        return torch.tensor([found.get(row_id, 0.0) for row_id in row_ids], device=device)

    @torch.no_grad()
    def _look(self, model: Any, batch: dict[str, torch.Tensor], row_ids: list[str]) -> torch.Tensor:
        # Without dropout, as the background was measured.
        model.eval()
        without = answer_log_probs(model, batch)
        model.train()
        background, floors = (
            torch.tensor([known.get(row_id, -math.inf) for row_id in row_ids], device=without.device)
            for known in (self.background, self.floors)
        )
        return self.responsibilities(without, background, floors)

    def state(self) -> dict[str, Any]:
        """The rows that have settled."""
        return {"settled": self.settled}

    def restore(self, state: dict[str, Any]) -> None:
        """Take the settled rows of a checkpoint."""
        self.settled = dict(state["settled"])


def make_objective(guard: Guard, *, prior: float, floor: float) -> OneBranch | Mixture:
    """The objective of a guard.

    Args:
        guard: ``none``, ``always`` or ``mixture``.
        prior: π of ``mixture``.
        floor: τ of ``mixture``, nats per token.
    """
    if guard == "mixture":
        return Mixture(prior=prior, floor=floor)
    return OneBranch(with_vector=guard == "always")
