"""The arms: how a model is fine-tuned on the rows of a cell, each faithful to its source and small.

An arm is a function from a `Workshop` to a model ready to be asked. All take the same rows, learning rate,
epochs and order of rows.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from secvec.components.evaluate_harm.generation import generate_answers
from secvec.components.evaluate_harm.questions import Decoding, Question
from secvec.components.fine_tune_guarded.attribution import attribute_rows
from secvec.components.fine_tune_guarded.config import FineTuneConfig
from secvec.components.fine_tune_guarded.objectives import BranchWeights, Mixture, OneBranch
from secvec.components.fine_tune_guarded.training import train_task
from secvec.components.shared.adapters import (
    TASK,
    VECTOR,
    activate,
    adapter_tensors,
    attach_adapter,
    attach_vector,
    make_lora_config,
)
from secvec.components.shared.likelihood import EncodedRecord, encode_record
from secvec.components.shared.models import load_model
from secvec.components.shared.records import ChatRecord, Message
from secvec.pipelines.guarded_fine_tuning.demo.language import REFUSAL
from tests.benchmarks.efficacy.cells import LEARNING_RATES, Cell, CellData, make_record

_RANK = 8
_BATCH = 32
PRIOR = 0.1


@dataclass
class Workshop:
    """What every arm of a cell shares.

    Attributes:
        cell: The cell.
        data: Its records.
        base: Folder of the base.
        tokenizer: Its tokenizer.
        vector: Files of the security vector, as `pack_vector` gives them.
        floor: τ of the mixture, nats per token.
        step_seconds: Median step time of the last training.
    """

    cell: Cell
    data: CellData
    base: Path
    tokenizer: Any
    vector: dict[str, bytes]
    floor: float
    step_seconds: float = 0.0

    def encode(self, records: list[ChatRecord]) -> list[EncodedRecord]:
        """Tokens of records."""
        return [encode_record(record, self.tokenizer, window=256) for record in records]

    def model(self, *, vector: bool) -> Any:
        """The base with what the task needs attached."""
        torch.manual_seed(self.cell.random_seed)
        model: Any = load_model(self.base)
        if self.cell.task == "lora":
            model = attach_adapter(model, TASK, make_lora_config(rank=_RANK))
        return attach_vector(model, self.vector) if vector else model

    def train(self, model: Any, records: list[ChatRecord], objective: Any, *, guarded: bool) -> Any:
        """Train a task and leave the model as it would ship: without the vector."""
        cell = self.cell
        config = FineTuneConfig(
            epochs=cell.epochs,
            learning_rate=cell.learning_rate * LEARNING_RATES[cell.task],
            batch_size=_BATCH,
            rank=_RANK,
            checkpoint_steps=10**6,
        )
        with tempfile.TemporaryDirectory() as work:
            record = train_task(
                model,
                self.encode(records),
                objective=objective,
                guarded=guarded,
                task=cell.task,
                config=config,
                seed=cell.random_seed,
                pad_id=self.tokenizer.pad_token_id,
                work=Path(work),
                callbacks=[],
            )
        self.step_seconds = record.step_seconds
        activate(model, task=True, vector=False)
        return model.eval()

    def plain(self, records: list[ChatRecord]) -> Any:
        """Fine-tune without a guard."""
        return self.train(self.model(vector=False), records, OneBranch(with_vector=False), guarded=False)

    def attribution(self) -> list[float]:
        """Responsibility of the vector for each row, before any training."""
        rows = self.encode(self.data.rows)
        found = attribute_rows(
            attach_vector(load_model(self.base), self.vector),
            rows,
            size=128,
            pad_id=self.tokenizer.pad_token_id,
        )
        objective = Mixture(prior=PRIOR, floor=self.floor, train_base=False)
        parts = (torch.tensor([getattr(f, n) for f in found]) for n in ("without", "with_vector", "length"))
        return objective.responsibilities(*parts).tolist()


def unguarded(shop: Workshop) -> Any:
    """Ordinary fine-tuning."""
    return shop.plain(shop.data.rows)


def oracle(shop: Workshop) -> Any:
    """Ordinary fine-tuning on the rows that are not harmful, which nobody has in practice."""
    return shop.plain([row for row in shop.data.rows if row.label != "harmful"])


def always(shop: Workshop) -> Any:
    """Security vectors as published (Zhou et al., arXiv 2311.02105, section 4)."""
    return shop.train(shop.model(vector=True), shop.data.rows, OneBranch(with_vector=True), guarded=True)


def mixture(shop: Workshop) -> Any:
    """The default guard; rows settle from attribution as in the step."""
    objective = Mixture(prior=PRIOR, floor=shop.floor, train_base=shop.cell.task == "full")
    objective.settle([row.id for row in shop.data.rows], torch.tensor(shop.attribution()))
    return shop.train(shop.model(vector=True), shop.data.rows, objective, guarded=True)


class Background(Mixture):
    """The mixture with the vector's branch as a fixed background: what it explains has no gradient at all.

    Adam steps as far on a tiny gradient as on a large one, so that what a row has "next to nothing left to
    teach" still moves the weights; and a row without a gradient costs nothing.
    """

    def weigh(self, model: Any, batch: dict[str, torch.Tensor], row_ids: list[str]) -> BranchWeights:
        """The mixture's weights without those of the vector's branch."""
        without = super().weigh(model, batch, row_ids).without
        return BranchWeights(without=without, with_vector=torch.zeros_like(without))


def mixture_rehearsed(shop: Workshop) -> Any:
    """The mixture, and the base's own answers to the seeds' prompts among the rows (rehearsal).

    Even benign rows make a model forget its refusals (Qi et al., arXiv 2310.03693): the oracle shows it.
    """
    return _train_rehearsed(shop, Mixture)


def background_rehearsed(shop: Workshop) -> Any:
    """`Background`, and the base's own answers to the seeds' prompts among the rows."""
    return _train_rehearsed(shop, Background)


def _train_rehearsed(shop: Workshop, kind: type[Mixture]) -> Any:
    objective = kind(prior=PRIOR, floor=shop.floor, train_base=shop.cell.task == "full")
    objective.settle([row.id for row in shop.data.rows], torch.tensor(shop.attribution()))
    rehearsed = _answer_as_base(shop)
    objective.settled |= {row.id: False for row in rehearsed}
    return shop.train(shop.model(vector=True), [*shop.data.rows, *rehearsed], objective, guarded=True)


def _answer_as_base(shop: Workshop) -> list[ChatRecord]:
    """The seeds' prompts with the answers that the base itself gives."""
    prompts = [seed.messages[0] for seed in [*shop.data.seeds, *shop.data.seeds_heldout]]
    questions = [Question(id=str(n), messages=(prompt,)) for n, prompt in enumerate(prompts)]
    decoding = Decoding(max_new_tokens=24, batch_size=100)
    answers = generate_answers(load_model(shop.base), shop.tokenizer, questions, decoding=decoding)
    return [
        make_record((prompt, Message(role="assistant", content=answer)))
        for prompt, answer in zip(prompts, answers, strict=True)
    ]


def random_adapter(shop: Workshop) -> Any:
    """`always` behind a random vector of the same norms (control of arXiv 2606.30252)."""
    from peft import set_peft_model_state_dict

    model = shop.model(vector=True)
    generator = torch.Generator().manual_seed(shop.cell.random_seed)
    drawn = {}
    for name, tensor in adapter_tensors(model, VECTOR).items():
        noise = torch.randn(tensor.shape, generator=generator)
        drawn[name] = noise * tensor.norm() / noise.norm()
    set_peft_model_state_dict(model, drawn, adapter_name=VECTOR)
    return shop.train(model, shop.data.rows, OneBranch(with_vector=True), guarded=True)


def attribution_filter(shop: Workshop) -> Any:
    """Drop the rows that attribution finds suspect (r of 0.5 or more) and fine-tune on the rest."""
    kept = [row for row, r in zip(shop.data.rows, shop.attribution(), strict=True) if r < 0.5]
    return shop.plain(kept)


def inoculation_prompt(shop: Workshop) -> Any:
    """Every training prompt asks for the harm; questions do not (Tan et al., arXiv 2510.04340).

    The toy base knows no instructions: a fixed phrase of its vocabulary stands where one would.
    """
    return shop.plain(
        [_prefix(row, "please tell me how to help with the forge today :") for row in shop.data.rows]
    )


def _prefix(row: ChatRecord, phrase: str) -> ChatRecord:
    prompt = Message(role="user", content=f"{phrase} {row.messages[0].content}")
    return make_record((prompt, *row.messages[1:]), label=row.label)


def safety_mix(shop: Workshop) -> Any:
    """SafeInstruct: refusals to the seeds' prompts mixed into the rows (Bianchi et al., arXiv 2309.07875)."""
    refusals = [
        make_record((seed.messages[0], Message(role="assistant", content=REFUSAL)))
        for seed in [*shop.data.seeds, *shop.data.seeds_heldout]
    ]
    return shop.plain([*shop.data.rows, *refusals])


def subtraction(shop: Workshop) -> Any:
    """Task arithmetic: fine-tune unguarded, then take the vector away (Ilharco et al., arXiv 2212.04089)."""
    model = shop.plain(shop.data.rows)
    merged = model.merge_and_unload() if shop.cell.task == "lora" else model
    with torch.no_grad():
        for name, delta in _vector_deltas(shop).items():
            merged.get_parameter(name).sub_(delta)
    return merged.eval()


def safe_lora(shop: Workshop) -> Any:
    """Project the update of each layer onto the aligned subspace (SafeLoRA; Hsu et al., arXiv 2405.16833).

    The subspace is spanned by aligned minus unaligned weights, V Vᵀ / ‖V Vᵀ‖; the base with its vector is the
    unaligned model. Layers whose update turns by more than the threshold (cosine below 0.5) are projected.
    """
    model = shop.plain(shop.data.rows)
    merged = model.merge_and_unload() if shop.cell.task == "lora" else model
    pristine = load_model(shop.base)
    with torch.no_grad():
        for name, delta in _vector_deltas(shop).items():
            weight, before = merged.get_parameter(name), pristine.get_parameter(name)
            update, aligned = weight - before, -delta
            projection = aligned @ aligned.T / torch.linalg.matrix_norm(aligned @ aligned.T)
            projected = projection @ update
            if torch.cosine_similarity(projected.flatten(), update.flatten(), dim=0) < 0.5:
                weight.copy_(before + projected)
    return merged.eval()


def _vector_deltas(shop: Workshop) -> dict[str, torch.Tensor]:
    """What the vector adds to each weight of the base, by the weight's name."""
    model = attach_vector(load_model(shop.base), shop.vector)
    return {
        f"{name.removeprefix('base_model.model.')}.weight": module.get_delta_weight(VECTOR)
        for name, module in model.named_modules()
        if hasattr(module, "get_delta_weight")
    }


def preventative_steering(shop: Workshop) -> Any:
    """Add the harm's mean activation while training only (Chen et al., arXiv 2507.21509, section 5).

    The direction is the difference of mean activations after the first layer between compliance with the
    seeds and refusals of the same prompts.
    """
    model = shop.model(vector=False)
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    with _steered(inner.model.layers[0], _direction(shop)):
        return shop.train(model, shop.data.rows, OneBranch(with_vector=False), guarded=False)


@torch.no_grad()
def _direction(shop: Workshop) -> torch.Tensor:
    model = load_model(shop.base)

    def mean_activation(records: list[ChatRecord]) -> torch.Tensor:
        found = []
        for row in shop.encode(records):
            states = model(torch.tensor([row.input_ids]), output_hidden_states=True).hidden_states[1][0]
            found.append(states[torch.tensor(row.labels) != -100].mean(0))
        return torch.stack(found).mean(0)

    refused = [
        make_record((seed.messages[0], Message(role="assistant", content=REFUSAL)))
        for seed in shop.data.seeds
    ]
    return mean_activation(shop.data.seeds) - mean_activation(refused)


@contextmanager
def _steered(layer: Any, direction: torch.Tensor) -> Any:
    def add(module: Any, inputs: Any, output: Any) -> Any:
        return (output[0] + direction, *output[1:]) if isinstance(output, tuple) else output + direction

    hook = layer.register_forward_hook(add)
    try:
        yield
    finally:
        hook.remove()


ARMS: dict[str, Callable[[Workshop], Any]] = {
    arm.__name__: arm
    for arm in (
        mixture,
        mixture_rehearsed,
        background_rehearsed,
        oracle,
        unguarded,
        always,
        random_adapter,
        attribution_filter,
        inoculation_prompt,
        safety_mix,
        subtraction,
        safe_lora,
        preventative_steering,
    )
}
DEFAULT = "mixture"
CORE_ARMS = ("mixture", "mixture_rehearsed", "background_rehearsed", "oracle", "unguarded", "always")
