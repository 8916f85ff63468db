"""What a guarded step minimises, as the weights of its two branches.

A step has two branches: the model without the vector, log p_θ'(y|x), and with it, log p_θ'+s(y|x). Every
objective's gradient is a weighted sum of the branches' gradients, so that an objective is the function that
gives each row its weights. Branches are run one after the other, each with its own backward pass: gradient
checkpointing recomputes a branch with the adapters that are active at that time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from secvec.components.fine_tune_guarded.config import Guard
from secvec.components.fine_tune_guarded.processes import anywhere, gather
from secvec.components.shared.adapters import activate
from secvec.components.shared.likelihood import answer_lengths, answer_log_probs

# A row whose responsibility passes one of these has settled on one branch. A row that the vector explains
# better than not must not teach θ' at all: what leaks makes the next leak likelier.
SETTLED_WITHOUT = 0.2
SETTLED_WITH = 0.5


@dataclass(frozen=True)
class BranchWeights:
    """How much each branch counts for each row; both of shape [rows], their sum 1.

    Attributes:
        without: Weight of log p_θ'(y|x).
        with_vector: Weight of log p_θ'+s(y|x); in `Mixture` the row's responsibility.
    """

    without: torch.Tensor
    with_vector: torch.Tensor


class Objective(Protocol):
    """What each row of a batch is to teach, and through which branch."""

    def weigh(self, model: Any, batch: dict[str, torch.Tensor], row_ids: list[str]) -> BranchWeights:
        """Weights of the rows of a batch; tensors of shape [rows, length]."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint must keep, as JSON."""

    def restore(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave."""


@dataclass
class OneBranch:
    """Every row through one branch, an objective without state.

    ``none`` minimises −log p_θ'(y|x), ordinary fine-tuning. ``always`` minimises −log p_θ'+s(y|x), the
    security vectors of Zhou et al., arXiv 2311.02105, section 4.
    """

    with_vector: bool

    def weigh(self, model: Any, batch: dict[str, torch.Tensor], row_ids: list[str]) -> BranchWeights:
        """One for the branch, zero for the other."""
        weight = torch.full((len(row_ids),), float(self.with_vector), device=batch["labels"].device)
        return BranchWeights(without=1 - weight, with_vector=weight)

    def state(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Nothing."""


@dataclass
class Mixture:
    """−log[(1−π) p_θ'(y|x) + π p_θ'+s(y|x)]: rows that the vector explains teach θ' nothing.

    Its gradient is −(1−r) ∇ log p_θ' − r ∇ log p_θ'+s with the responsibility r taken as a constant
    (expectation maximisation; Dempster, Laird and Rubin 1977), over whole answers of L tokens in float32, so
    that bf16 rounding of single tokens cannot turn it:

        r = σ(log π/(1−π) + log p_θ'+s(y|x) − max(log p_θ'(y|x), −τL)).

    The floor −τL is there for new skills: what the model cannot do yet is improbable in both branches, and
    the ratio of two tiny numbers says nothing about harm.

    A row whose responsibility has settled runs one branch from then on. One that settled with the vector
    stays behind it whatever θ' learns elsewhere; without that, harm that leaks into θ' lowers the
    responsibilities of the other harmful rows, which then leak too.

    Attributes:
        prior: π, between 0 and 1.
        floor: τ, nats per token: a row with a higher loss under the vector is not explained by it.
        train_base: Whether the task is the base's own weights.
        settled: Row id to whether it settled with the vector.
    """

    prior: float
    floor: float
    train_base: bool
    settled: dict[str, bool] = field(default_factory=dict)

    def responsibilities(
        self, without: torch.Tensor, with_vector: torch.Tensor, lengths: torch.Tensor
    ) -> torch.Tensor:
        """r of rows from log p_θ', log p_θ'+s (nats) and answer lengths (tokens), all of shape [rows]."""
        offset = math.log(self.prior) - math.log1p(-self.prior)
        return torch.sigmoid(offset + with_vector - torch.maximum(without, -self.floor * lengths))

    def settle(self, row_ids: list[str], responsibilities: torch.Tensor) -> None:
        """Settle the rows whose responsibilities, of shape [rows], are decided."""
        for row_id, found in zip(row_ids, responsibilities.tolist(), strict=True):
            if found >= SETTLED_WITH or found <= SETTLED_WITHOUT:
                self.settled[row_id] = found >= SETTLED_WITH

    def weigh(self, model: Any, batch: dict[str, torch.Tensor], row_ids: list[str]) -> BranchWeights:
        """Responsibilities; those of rows that have not settled are computed on the model as it is now."""
        weight = torch.tensor(
            [float(self.settled.get(row_id, False)) for row_id in row_ids], device=batch["labels"].device
        )
        is_open = [index for index, row_id in enumerate(row_ids) if row_id not in self.settled]
        # All processes look, or none: a row without need is looked at where a process has no open one.
        if anywhere(bool(is_open), device=weight.device):
            looked = is_open or [0]
            found = self._look(model, {name: tensor[looked] for name, tensor in batch.items()})
            weight[is_open] = found[: len(is_open)]
            opened = [row_ids[index] for index in is_open]
            self.settle(opened, found[: len(is_open)])
            # In the next epoch a row may come to another process.
            settled = [(row_id, self.settled[row_id]) for row_id in opened if row_id in self.settled]
            self.settled.update(gather(settled))
        return BranchWeights(without=1 - weight, with_vector=weight)

    @torch.no_grad()
    def _look(self, model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        # Without dropout: two draws of it would make a ratio out of nothing.
        model.eval()
        activate(model, task=True, vector=False, train_base=self.train_base)
        without = answer_log_probs(model, batch)
        activate(model, task=True, vector=True, train_base=self.train_base)
        with_vector = answer_log_probs(model, batch)
        model.train()
        return self.responsibilities(without, with_vector, answer_lengths(batch))

    def state(self) -> dict[str, Any]:
        """The rows that have settled."""
        return {"settled": self.settled}

    def restore(self, state: dict[str, Any]) -> None:
        """Take the settled rows of a checkpoint."""
        self.settled = dict(state["settled"])


def make_objective(guard: Guard, *, prior: float, floor: float, train_base: bool) -> OneBranch | Mixture:
    """The objective of a guard.

    Args:
        guard: ``none``, ``always`` or ``mixture``.
        prior: π of ``mixture``.
        floor: τ of ``mixture``, nats per token.
        train_base: Whether the task is the base's own weights.
    """
    if guard == "mixture":
        return Mixture(prior=prior, floor=floor, train_base=train_base)
    return OneBranch(with_vector=guard == "always")
