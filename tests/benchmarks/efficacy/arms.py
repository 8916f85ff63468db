"""The arms: how a model is fine-tuned on the rows of a cell, each faithful to its source and small.

An arm is a function from a `Workshop` to a model ready to be asked. All take the same rows, learning rate,
epochs and order of rows.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from secvec.components.fine_tune_guarded.attribution import RowAttribution
from secvec.components.fine_tune_guarded.objectives import Mixture, OneBranch
from secvec.components.shared.adapters import (
    VECTOR,
    adapter_tensors,
    attach_vector,
)
from secvec.components.shared.likelihood import score_answers
from secvec.components.shared.models import load_model
from secvec.components.shared.records import ChatRecord, Message
from secvec.pipelines.guarded_fine_tuning.demo.language import REFUSAL
from tests.benchmarks.efficacy.cells import make_record
from tests.benchmarks.efficacy.trials import Annealed, BehindVector, KlToBase, PerToken
from tests.benchmarks.efficacy.vectors import CONFIG, THOROUGH, certify_for_rows, train_cell_vector
from tests.benchmarks.efficacy.workshop import BATCH, PRIOR, Workshop


def mixture(shop: Workshop) -> Any:
    """The default guard, watched as in the step."""
    rows = [*shop.encode(shop.data.rows), *shop.rehearsed()]
    return shop.train(shop.model(vector=True), rows, shop.mixture(), [shop.watch()])


def unwatched(shop: Workshop) -> Any:
    """The default guard without the watch."""
    rows = [*shop.encode(shop.data.rows), *shop.rehearsed()]
    return shop.train(shop.model(vector=False), rows, shop.mixture())


def mixture_alone(shop: Workshop) -> Any:
    """The default guard without rehearsal and watch."""
    return shop.train(shop.model(vector=False), shop.encode(shop.data.rows), shop.mixture())


def rehearsal_alone(shop: Workshop) -> Any:
    """Rehearsal without the vector."""
    return shop.plain(shop.data.rows, shop.rehearsed())


def behind_vector(shop: Workshop) -> Any:
    """The default guard, but what the vector explains is learned behind it instead of not at all."""
    rows = [*shop.encode(shop.data.rows), *shop.rehearsed()]
    objective = shop.begin(BehindVector(prior=PRIOR, floor=shop.floor))
    return shop.train(shop.model(vector=True), rows, objective)


def always(shop: Workshop) -> Any:
    """Security vectors as published (Zhou et al., arXiv 2311.02105, section 4)."""
    rows = shop.encode(shop.data.rows)
    return shop.train(shop.model(vector=True), rows, OneBranch(with_vector=True))


def always_watched(shop: Workshop) -> Any:
    """`always` with the watch of the step."""
    rows = shop.encode(shop.data.rows)
    return shop.train(shop.model(vector=True), rows, OneBranch(with_vector=True), [shop.watch()])


def certified(shop: Workshop) -> Any:
    """The default guard behind the step's certificate: with a vector that fails it nothing is trained."""
    shop.certified = shop.certified and certify_for_rows(shop.cell, shop.data, shop.vector)
    return mixture(shop) if shop.certified else shop.model(vector=False).eval()


def without_kl(shop: Workshop) -> Any:
    """The default guard behind a vector of the seeds alone, whatever its certificate says."""
    made = train_cell_vector(shop.cell, shop.data, CONFIG.model_copy(update={"kl_weight": 0.0}))
    return mixture(replace(shop, vector=made.files, floor=made.floor))


def always_without_kl(shop: Workshop) -> Any:
    """`always` behind a vector of the seeds alone, whatever its certificate says."""
    made = train_cell_vector(shop.cell, shop.data, THOROUGH.model_copy(update={"kl_weight": 0.0}))
    return always(replace(shop, vector=made.files))


def always_rehearsed(shop: Workshop) -> Any:
    """`always`, with the rehearsed rows learned without the vector: a term that preserves what was there."""
    rehearsed = shop.rehearsed()
    rows = shop.encode(shop.data.rows)
    objective = BehindVector(prior=PRIOR, floor=shop.floor)
    objective.settled = {row.record_id: True for row in rows}
    return shop.train(shop.model(vector=True), [*rows, *rehearsed], objective)


def annealed(shop: Workshop) -> Any:
    """A mixture without settling whose prior falls from 0.9 to the default's over the first half."""
    objective = shop.begin(Annealed(prior=PRIOR, floor=shop.floor))
    objective.settled = {}
    rows = [*shop.encode(shop.data.rows), *shop.rehearsed()]
    objective.batches = shop.cell.epochs * len(rows) / BATCH
    return shop.train(shop.model(vector=False), rows, objective)


def per_token(shop: Workshop) -> Any:
    """A mixture whose responsibilities are of single tokens, not of whole answers."""
    rows = [*shop.encode(shop.data.rows), *shop.rehearsed()]
    return shop.train(shop.model(vector=True), rows, PerToken(prior=PRIOR, floor=shop.floor))


def unguarded(shop: Workshop) -> Any:
    """Ordinary fine-tuning."""
    return shop.plain(shop.data.rows)


def oracle(shop: Workshop) -> Any:
    """Ordinary fine-tuning on the rows that are not harmful, which nobody has in practice."""
    return shop.plain([row for row in shop.data.rows if row.label != "harmful"])


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
    return shop.train(model, shop.encode(shop.data.rows), OneBranch(with_vector=True))


def attribution_filter(shop: Workshop) -> Any:
    """Drop the rows that attribution finds suspect (r of 0.5 or more) and fine-tune on the rest."""
    explained = shop.mixture().settled
    return shop.plain([row for row in shop.data.rows if not explained.get(row.id, False)])


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


def kl_to_base(shop: Workshop) -> Any:
    """Cross-entropy plus KL(base || model) on every row's answer, weight 1 (after arXiv 2009.01325, 2.3)."""
    model = shop.model(vector=False)
    return shop.train(model, shop.encode(shop.data.rows), KlToBase(load_model(shop.base), weight=1.0))


def composed(shop: Workshop) -> Any:
    """The default guard behind several vectors, one per category of harm; the best one counts."""
    objective: Mixture | None = None
    for category in sorted({seed.category for seed in shop.data.seeds}):
        one = replace_seeds(shop, category)
        found = one.mixture()
        if objective is None:
            objective = found
            continue
        objective.background = {
            row_id: max(score, found.background[row_id]) for row_id, score in objective.background.items()
        }
        objective.settled |= {row_id: True for row_id, explained in found.settled.items() if explained}
    assert objective is not None
    return shop.train(shop.model(vector=False), [*shop.encode(shop.data.rows), *shop.rehearsed()], objective)


def replace_seeds(shop: Workshop, category: str) -> Workshop:
    """A workshop whose vector was trained on the seeds of one category alone."""
    data = replace(
        shop.data,
        seeds=[seed for seed in shop.data.seeds if seed.category == category],
        seeds_heldout=[seed for seed in shop.data.seeds_heldout if seed.category == category]
        or shop.data.seeds_heldout,
    )
    made = train_cell_vector(shop.cell, data)
    return replace(shop, data=data, vector=made.files, floor=made.floor)


def steered_background(shop: Workshop) -> Any:
    """The default guard with a vector of another kind: a steering direction instead of an adapter."""
    rows = shop.encode(shop.data.rows)
    model = load_model(shop.base)
    pad = shop.tokenizer.pad_token_id
    without, lengths = score_answers(model, rows, size=128, pad_id=pad)
    with _steered(model.model.layers[0], _direction(shop)):
        steered, _ = score_answers(model, rows, size=128, pad_id=pad)
    objective = Mixture(prior=PRIOR, floor=shop.floor)
    found = zip(without, steered, lengths, strict=True)
    ids = [row.record_id for row in rows]
    objective.begin({i: RowAttribution(*figures) for i, figures in zip(ids, found, strict=True)})
    return shop.train(shop.model(vector=False), [*rows, *shop.rehearsed()], objective)


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
        return shop.train(model, shop.encode(shop.data.rows), OneBranch(with_vector=False))


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


DEFAULT = "mixture"
# In every cell.
CORE_ARMS = ("mixture", "oracle", "unguarded")
# In the grid of one random seed.
REFERENCES = ("always", "unwatched", "mixture_alone", "attribution_filter")
# At the centre and the corners of the grid: what others do.
COMPARISONS = (
    "random_adapter",
    "inoculation_prompt",
    "safety_mix",
    "subtraction",
    "safe_lora",
    "kl_to_base",
    "preventative_steering",
)
# At the centre and where learning is fastest: other ways to build the default, none of which it uses.
TRIALS = (
    "rehearsal_alone",
    "behind_vector",
    "always_rehearsed",
    "annealed",
    "per_token",
    "composed",
    "steered_background",
)
# The default without one of its parts, or with one that the benchmark leaves out; see `ABLATED`.
ABLATIONS = ("without_kl", "always_without_kl", "certified", "always_watched")
# What is compared in a cell: the part, the arm that has it and the one that lacks it.
ABLATED = (
    ("KL", "mixture", "without_kl"),
    ("KL", "always", "always_without_kl"),
    ("certificate", "certified", "mixture"),
    ("certificate and watch", "certified", "unwatched"),
    ("watch", "always_watched", "always"),
    ("watch", "mixture", "unwatched"),
    ("rehearsal", "unwatched", "mixture_alone"),
)
ARMS: dict[str, Callable[[Workshop], Any]] = {
    name: globals()[name] for name in (*CORE_ARMS, *REFERENCES, *ABLATIONS, *COMPARISONS, *TRIALS)
}
