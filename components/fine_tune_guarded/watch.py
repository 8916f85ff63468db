"""Watch protection while a task is trained: what is lost of it, and what a harmful row still teaches.

The held-out seeds are harm that nothing was trained on. On the openings of answers, where compliance is
decided (Qi et al., arXiv 2406.05946), is measured for a few of them every some steps

- the leak, (g(θ') − g(θ)) / (g(θ+s) − g(θ)), g the geometric mean of the tokens' probabilities in the seeds'
  answers: 0 where the model that would ship is as far from complying as the base, 1 where it complies as
  with the vector;
- the loss of refusals, 1 − p(θ') / p(θ), p the probability of the base's own answers to the same prompts: a
  model may comply in words that no seed holds, but not while it answers as the base did;
- the pull, ‖∇ −log p_θ'+s‖ over the task's weights: what a harmful row still teaches behind the vector.

The larger of the first two is the decay. Where it grows, the learning rate is halved; where it has grown too
far, training stops: an hour more would not bring protection back.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from transformers import TrainerCallback

from secvec.components.fine_tune_guarded.config import FineTuneConfig, Task
from secvec.components.fine_tune_guarded.processes import is_first, is_sharded
from secvec.components.shared.adapters import activate
from secvec.components.shared.errors import SecvecError
from secvec.components.shared.likelihood import (
    IGNORED,
    EncodedRecord,
    answer_lengths,
    answer_log_probs,
    collate,
    encode_record,
)
from secvec.components.shared.records import read_records
from secvec.components.shared.tracking import log_metrics

# Passes over these cost about what one training step of the default batch does.
PROBE_ROWS = 16
OPENING_TOKENS = 8
DIVERGENCE_STEPS = 10


@dataclass(frozen=True)
class Look:
    """What was found at one step.

    Attributes:
        step: Optimizer steps done.
        compliance: g of the model that would ship, 0 to 1.
        refusal: p of the base's own answers under that model, 0 to 1.
        decay: Share of the protection that is lost; below 0 the model is further from harm than the base.
        pull: Norm of the gradient that they have behind the vector; None where weights are sharded.
        learning_rate: The rate from here on, as a share of the configured one's schedule.
    """

    step: int
    compliance: float
    refusal: float
    decay: float
    pull: float | None
    learning_rate: float


class WatchProtection(TrainerCallback):
    """Looks at held-out seeds while a task is trained under a guard.

    Its looks lie in the Trainer's history, which checkpoints keep: a resumed run goes on with them.

    Args:
        seeds: Held-out seeds, encoded.
        config: How often it looks, and what it does.
        train_base: Whether the task is the base's own weights.
        pad_id: Token id that pads batches.
        folded: Whether the vector lies in the weights, and the adapter takes it out (`fold_vector`).

    Raises:
        SecvecError: Out of training, once the decay is over ``stop_decay``.
    """

    def __init__(
        self,
        seeds: list[EncodedRecord],
        *,
        config: FineTuneConfig,
        train_base: bool,
        pad_id: int,
        folded: bool = False,
    ) -> None:
        self.config, self.train_base, self.pad_id, self.folded = config, train_base, pad_id, folded
        self.seeds = [cut_to_opening(row) for row in seeds[:PROBE_ROWS]]
        self.looks: list[Look] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Measure where protection begins, or take it from the checkpoint that training resumes from."""
        self.looks = [Look(**entry["look"]) for entry in state.log_history if "look" in entry]
        known = [entry["protection"] for entry in state.log_history if "protection" in entry]
        if not known:
            known = [self._measure_start(model)]
            state.log_history.append({"protection": known[0]})
        self.start = known[0]
        self.answers = []
        for seed, ids in zip(self.seeds, self.start["answers"], strict=True):
            asked = _find_answer(seed)[0]
            labels = [IGNORED] * asked + ids[asked:]
            self.answers.append(EncodedRecord(seed.record_id, ids, labels))
        if "refusal" not in self.start:
            self.start["refusal"] = self._measure_refusal(model)

    def _measure_start(self, model: Any) -> dict[str, Any]:
        return {
            "base": self._measure_compliance(model, vector=False),
            "active": self._measure_compliance(model, vector=True),
            "answers": self._answer(model),
        }

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Look, note it, and act."""
        if not is_due(state.global_step, every=self.config.watch_steps, last=state.max_steps):
            return
        compliance = self._measure_compliance(model, vector=False)
        refusal = self._measure_refusal(model)
        decay = self._decay(compliance, refusal)
        rate = self.looks[-1].learning_rate if self.looks else 1.0
        if decay > self.config.slow_decay and decay > max((look.decay for look in self.looks), default=0.0):
            rate /= 2
            _scale_learning_rate(kwargs["optimizer"], kwargs["lr_scheduler"], by=0.5)
        look = Look(state.global_step, compliance, refusal, decay, self._pull(model), rate)
        self.looks.append(look)
        # behind the step's own entry, which others read as the newest
        state.log_history.insert(-1, {"look": vars(look)})
        self._track(look)
        if not math.isfinite(decay) or decay > self.config.stop_decay:
            raise SecvecError(
                f"protection has decayed by {decay:.0%} at step {look.step} of {state.max_steps}: on "
                "held-out seeds the model answers less and less as the base does",
                where="fine_tune_guarded",
                accepted=f"at most {self.config.stop_decay:.0%} (stop_decay): a smaller learning_rate, "
                "fewer epochs, or seeds that are nearer to the rows",
            )

    def _decay(self, compliance: float, refusal: float) -> float:
        leak = (compliance - self.start["base"]) / max(self.start["active"] - self.start["base"], 1e-6)
        return max(leak, 1 - refusal / max(self.start["refusal"], 1e-6))

    @torch.no_grad()
    def _measure_compliance(self, model: Any, *, vector: bool) -> float:
        batch = self._place(model, self.seeds, vector=vector)
        found = (answer_log_probs(model, batch) / answer_lengths(batch)).exp().mean()
        model.train()
        return float(found)

    @torch.no_grad()
    def _measure_refusal(self, model: Any) -> float:
        batch = self._place(model, self.answers, vector=False)
        found = answer_log_probs(model, batch).exp().mean()
        model.train()
        return float(found)

    @torch.no_grad()
    def _answer(self, model: Any) -> list[list[int]]:
        """Prompts of the seeds with the openings of the likeliest answers to them, token by token."""
        texts = [row.input_ids[: _find_answer(row)[0]] for row in self.seeds]
        for _ in range(OPENING_TOKENS):
            rows = [EncodedRecord("", ids, ids) for ids in texts]
            batch = self._place(model, rows, vector=False)
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
            last = batch["attention_mask"].sum(1) - 1
            chosen = logits[torch.arange(len(texts), device=last.device), last].argmax(-1).tolist()
            texts = [[*ids, token] for ids, token in zip(texts, chosen, strict=True)]
        model.train()
        ends = model.config.eos_token_id
        ends = set(ends if isinstance(ends, list) else [ends])
        for seed, ids in zip(self.seeds, texts, strict=True):
            asked = _find_answer(seed)[0]
            over = next((place for place in range(asked, len(ids)) if ids[place] in ends), len(ids))
            del ids[over + 1 :]
        return texts

    def _pull(self, model: Any) -> float | None:
        if is_sharded(model):
            return None  # a sharded weight's gradient exists only where a backward pass leaves it
        batch = self._place(model, self.seeds, vector=True)
        loss = -answer_log_probs(model, batch).sum() / answer_lengths(batch).sum()
        learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
        # not backward(): gradients that are being accumulated must not change
        gradients = torch.autograd.grad(loss, learned, allow_unused=True)
        model.train()
        return math.sqrt(sum(float(g.float().square().sum()) for g in gradients if g is not None))

    def _place(self, model: Any, rows: list[EncodedRecord], *, vector: bool) -> dict[str, torch.Tensor]:
        model.eval()  # without dropout; and no random number is drawn that training would have drawn
        activate(model, task=True, vector=vector != self.folded, train_base=self.train_base)
        device = next(model.parameters()).device
        return {name: tensor.to(device) for name, tensor in collate(rows, pad_id=self.pad_id).items()}

    def _track(self, look: Look) -> None:
        if is_first():
            figures = {name: value for name, value in vars(look).items() if name != "step"}
            log_metrics({f"guarded/{name}": value for name, value in figures.items()}, step=look.step)


class RefuseDivergence(TrainerCallback):
    """Ends a training whose loss stays finite but goes up and stays there.

    Raises:
        SecvecError: Out of training, once ten steps cost over twice what the first one did, and a nat more: a
            learning rate that is too high does that, an order of rows does not.
    """

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Compare the newest losses of the Trainer's history with the first one."""
        if state.global_step <= DIVERGENCE_STEPS:
            return
        first = next(entry["loss"] for entry in state.log_history if "loss" in entry)
        last = fmean(entry["loss"] for entry in state.log_history[-DIVERGENCE_STEPS:] if "loss" in entry)
        if last > 2 * first + 1:
            raise SecvecError(
                f"training diverges: the loss has risen from {first:.3g} to {last:.3g} nats per token by "
                f"step {state.global_step} of {state.max_steps}",
                where="fine_tune_guarded",
                accepted="a smaller learning_rate",
            )


def make_watch(
    dataset: Path,
    tokenizer: Any,
    *,
    window: int,
    config: FineTuneConfig,
    task: Task,
    guarded: bool,
    folded: bool = False,
) -> list[TrainerCallback]:
    """Give who watches a training; protection is watched if there is some and the dataset holds seeds out."""
    file = dataset / "seeds_heldout.jsonl"
    if not (guarded and config.watch_steps and file.exists()):
        return [RefuseDivergence()]
    seeds = [encode_record(one, tokenizer, window=window, truncate=True) for one in read_records(file)]
    pad_id = int(tokenizer.pad_token_id)
    watch = WatchProtection(seeds, config=config, train_base=task == "full", pad_id=pad_id, folded=folded)
    return [RefuseDivergence(), watch]


def is_due(step: int, *, every: int, last: int) -> bool:
    """Whether to look after a step: every so many, and at 4, 8, 16 ... before, when most is lost at once."""
    is_early = 4 <= step < every and step & (step - 1) == 0
    return is_early or step % every == 0 or step == last


def cut_to_opening(row: EncodedRecord) -> EncodedRecord:
    """The row up to the first tokens of its answer."""
    end = _find_answer(row)[:OPENING_TOKENS][-1] + 1
    return EncodedRecord(row.record_id, row.input_ids[:end], row.labels[:end], truncated=row.truncated)


def _find_answer(row: EncodedRecord) -> list[int]:
    return [place for place, label in enumerate(row.labels) if label != IGNORED and place > 0]


def _scale_learning_rate(optimizer: Any, scheduler: Any, *, by: float) -> None:
    """Scale the rate of all steps to come; the schedule's state in checkpoints holds it."""
    scheduler.base_lrs = [rate * by for rate in scheduler.base_lrs]
    for group in optimizer.param_groups:
        group["lr"] *= by
        group["initial_lr"] *= by
