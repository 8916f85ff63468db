"""DESIGN's rules 1 to 3 hold for every architecture, precision, task and kind of embedding.

Each case trains a tiny model of the real class, random weights and all, and asks the same of it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PhiConfig,
    PreTrainedConfig,
    Qwen2Config,
    set_seed,
)

from secvec.components.fine_tune_guarded.attribution import attribute_rows
from secvec.components.fine_tune_guarded.config import FineTuneConfig, Guard, Task
from secvec.components.fine_tune_guarded.objectives import Mixture, make_objective
from secvec.components.fine_tune_guarded.result import digest_untouched, write_result
from secvec.components.fine_tune_guarded.training import train_task
from secvec.components.remove_security_vector.export import export_merged
from secvec.components.shared.adapters import (
    TASK,
    VECTOR,
    activate,
    adapter_tensors,
    attach_adapter,
    base_tensors,
    freeze_vector,
    make_lora_config,
    vector_digest,
)
from secvec.components.shared.likelihood import IGNORED, EncodedRecord, answer_log_probs, collate
from secvec.components.shared.models import digest_model_folder, digest_tensors, load_model

VOCABULARY = 40
SIZE: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 16,
}
ARCHITECTURES: dict[str, tuple[type[PreTrainedConfig], dict[str, Any]]] = {
    "llama": (LlamaConfig, SIZE),
    "qwen2": (Qwen2Config, SIZE),
    "mistral": (MistralConfig, SIZE),
    "gemma2": (Gemma2Config, {**SIZE, "head_dim": 8}),
    "gpt2": (GPT2Config, {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16}),
    "phi": (PhiConfig, {**SIZE, "num_key_value_heads": 2}),
    "phi3": (Phi3Config, SIZE),
}
TASKS: tuple[Task, ...] = ("lora", "full")
GUARDS: tuple[Guard, ...] = ("mixture", "always")


@dataclass(frozen=True)
class Case:
    architecture: str
    dtype: str
    task: Task
    tied: bool
    guard: Guard

    def __str__(self) -> str:
        tie = "tied" if self.tied else "untied"
        return f"{self.architecture}-{self.dtype}-{self.task}-{tie}-{self.guard}"


def cases() -> Iterator[Any]:
    """All of them; by default two of each architecture are run, which share no choice."""
    rest = (("float32", "bfloat16"), TASKS, (False, True), GUARDS)
    for number, architecture in enumerate(ARCHITECTURES):
        for place, (dtype, task, tied, guard) in enumerate(product(*rest)):
            case = Case(architecture, dtype, task, tied, guard)
            chosen = place in (number, 15 - number)
            yield pytest.param(case, id=str(case), marks=() if chosen else pytest.mark.slow)


@pytest.fixture(autouse=True)
def environment(toy_environment: dict[str, str]) -> dict[str, str]:
    return toy_environment


@pytest.fixture
def make_base(tmp_path: Path) -> Callable[[Case], Path]:
    def make(case: Case) -> Path:
        config, settings = ARCHITECTURES[case.architecture]
        torch.manual_seed(0)
        ids = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
        made = config(vocab_size=VOCABULARY, tie_word_embeddings=case.tied, **ids, **settings)
        model = AutoModelForCausalLM.from_config(made).to(getattr(torch, case.dtype))
        model.save_pretrained(tmp_path / "base")
        return tmp_path / "base"

    return make


def load_guarded(base: Path, case: Case) -> Any:
    """The base with a task adapter, if any, and a vector that does something, as the step builds it."""
    set_seed(0)
    model: Any = load_model(base)
    if case.task == "lora":
        model = attach_adapter(model, TASK, make_lora_config(rank=2))
    model = attach_adapter(model, VECTOR, make_lora_config(rank=2))
    drawn = {name: torch.randn_like(t) * 0.2 for name, t in adapter_tensors(model, VECTOR).items()}
    set_peft_model_state_dict(model, drawn, adapter_name=VECTOR)
    freeze_vector(model)
    return model


def draw_rows(count: int) -> list[EncodedRecord]:
    draw = random.Random(0)
    rows = []
    for number in range(count):
        ids = [draw.randrange(4, VOCABULARY) for _ in range(draw.randrange(6, 12))]
        rows.append(EncodedRecord(f"row {number}", ids, [IGNORED] * 3 + ids[3:]))
    return rows


def train(model: Any, case: Case, work: Path) -> None:
    rows = draw_rows(4)
    objective = make_objective(case.guard, prior=0.1, floor=2.0)
    if isinstance(objective, Mixture):
        found = attribute_rows(model, rows, size=4, pad_id=0)
        objective.begin({row.record_id: one for row, one in zip(rows, found, strict=True)})
    train_task(
        model,
        rows,
        objective=objective,
        task=case.task,
        config=FineTuneConfig(epochs=1, batch_size=2, learning_rate=0.02, rank=2, checkpoint_steps=10**6),
        seed=0,
        pad_id=0,
        work=work,
        callbacks=[],
    )


@pytest.mark.parametrize("case", cases())
def test_rules_1_to_3(make_base: Callable[[Case], Path], tmp_path: Path, case: Case) -> None:
    base = make_base(case)
    on_disk, pristine = digest_model_folder(base), load_model(base).state_dict()
    model = load_guarded(base, case)
    assert str(model.dtype) == f"torch.{case.dtype}"
    before, vector = digest_untouched(model, guarded=True, task=case.task), vector_digest(model)
    train(model, case, tmp_path / "work")

    # rule 1: the base is what it was, in memory too where the task is an adapter
    assert digest_model_folder(base) == on_disk
    assert digest_untouched(model, guarded=True, task=case.task) == before
    if case.task == "lora":
        assert digest_tensors(base_tensors(model)) == digest_tensors(pristine)

    # rule 2: the vector is frozen, whatever is active
    assert vector_digest(model) == vector
    for task, acts in product((False, True), (False, True)):
        activate(model, task=task, vector=acts, train_base=case.task == "full")
        learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        assert learning
        assert not [name for name in learning if f".{VECTOR}." in name]
        if case.task == "lora":
            assert all(f".{TASK}." in name for name in learning)

    # rule 3: what ships is base + task and nothing else, and does what the model does without the vector
    result = tmp_path / "result"
    result.mkdir()
    write_result(model, task=case.task, training={}, folder=result)
    (file,) = result.glob("*.safetensors")
    learned = load_file(file)
    assert learned
    assert not [name for name in learned if VECTOR in name]
    export_merged(base, result, tmp_path / "model", task=case.task, rank=2)
    shipped = load_model(tmp_path / "model")
    assert {name: t.shape for name, t in shipped.state_dict().items()} == {
        name: t.shape for name, t in pristine.items()
    }
    tokens = torch.arange(4, 14).unsqueeze(0)
    logits = {"shipped": shipped(tokens).logits.float(), "base": load_model(base)(tokens).logits.float()}
    model.eval()
    for name, acts in (("without", False), ("with", True)):
        activate(model, task=True, vector=acts)
        logits[name] = model(tokens).logits.detach().float()
    close = 1e-4 if case.dtype == "float32" else 0.05  # a merge in bf16 rounds every weight
    assert (logits["shipped"] - logits["without"]).abs().max() < close
    assert (logits["shipped"] - logits["with"]).abs().max() > close
    assert (logits["shipped"] - logits["base"]).abs().max() > close / 5


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_frozen_vector_does_what_pefts_arithmetic_does(
    make_base: Callable[[Case], Path], architecture: str, task: Task, dtype: str
) -> None:
    case = Case(architecture, dtype, task, tied=False, guard="always")
    model = load_guarded(make_base(case), case)
    with torch.no_grad():  # so much that it shows in random models
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                parameter.normal_()
    batch = collate(draw_rows(4), pad_id=0)

    def measure() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        activate(model, task=True, vector=True, train_base=task == "full")
        model.zero_grad(set_to_none=True)
        found = answer_log_probs(model, batch)
        (-found.sum()).backward()
        return found.detach(), {n: p.grad.float() for n, p in model.named_parameters() if p.grad is not None}

    frozen, gradients = measure()
    for module in model.modules():
        getattr(module, "lora_variant", {}).clear()
    plain, expected = measure()
    activate(model, task=True, vector=False)
    assert not torch.allclose(answer_log_probs(model, batch), plain, rtol=5e-3)
    assert torch.allclose(frozen, plain, rtol=1e-5 if dtype == "float32" else 2e-3)
    assert gradients.keys() == expected.keys()
    if dtype == "float32":  # bfloat16 rounds either its own way
        for name, gradient in expected.items():
            assert torch.linalg.norm(gradients[name] - gradient) <= 1e-4 * torch.linalg.norm(gradient), name
