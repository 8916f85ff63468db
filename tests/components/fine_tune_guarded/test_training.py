from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from secvec.components.fine_tune_guarded.training import TrainingRecord
from secvec.components.shared.adapters import (
    TASK,
    VECTOR,
    activate,
    adapter_tensors,
    base_tensors,
    vector_digest,
)
from secvec.components.shared.errors import SecvecError
from secvec.components.shared.likelihood import score_answers
from secvec.components.shared.models import digest_model_folder, digest_tensors, load_model

GUARDS = ("mixture", "always", "none")
TASKS = ("lora", "full")


@pytest.fixture(autouse=True)
def environment(toy_environment: dict[str, str]) -> dict[str, str]:
    return toy_environment


@dataclass(frozen=True)
class Run:
    """A short training, and digests around it."""

    model: Any
    record: TrainingRecord
    base: tuple[str, str]
    folder: tuple[str, str]
    vector: tuple[str, str]
    learned: set[str]


class WatchGradients(TrainerCallback):
    """Names of the parameters that had a gradient at any optimizer step."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.names |= {name for name, p in model.named_parameters() if p.grad is not None}


@pytest.fixture(scope="module")
def run(toy: Any, bf16_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Run]:
    """Train once per guard, task and type of the base; 8 steps."""
    done: dict[tuple[str, str, str], Run] = {}

    def train(guard: str, task: str, dtype: str = "float32") -> Run:
        folder = toy.base if dtype == "float32" else bf16_base
        model = toy.model(task=task, vector=guard != "none", base=folder)
        assert str(model.dtype) == f"torch.{dtype}"

        def digests() -> tuple[str, str, str]:
            vector = vector_digest(model) if guard != "none" else ""
            return digest_tensors(base_tensors(model)), digest_model_folder(folder), vector

        before, watch = digests(), WatchGradients()
        record = toy.train(model, guard, task, tmp_path_factory.mktemp("work"), callbacks=[watch])
        around = list(zip(before, digests(), strict=True))
        return Run(model, record, *around, learned=watch.names)

    def once(guard: str, task: str, dtype: str = "float32") -> Run:
        key = (guard, task, dtype)
        if key not in done:
            done[key] = train(*key)
        return done[key]

    return once


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("guard", GUARDS)
def test_rule_1_a_lora_task_leaves_the_base_as_it_was(
    run: Callable[..., Run], guard: str, dtype: str
) -> None:
    found = run(guard, "lora", dtype)
    assert found.base[0] == found.base[1]
    assert found.folder[0] == found.folder[1]
    moved = [t for name, t in adapter_tensors(found.model, TASK).items() if ".lora_B." in name]
    assert all(tensor.any() for tensor in moved)


@pytest.mark.parametrize("guard", GUARDS)
def test_rule_1_a_full_task_leaves_the_base_on_disk_as_it_was(run: Callable[..., Run], guard: str) -> None:
    found = run(guard, "full")
    assert found.base[0] != found.base[1]
    assert found.folder[0] == found.folder[1]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("guard", ["mixture", "always"])
def test_rule_2_the_vector_has_the_same_bytes_after_training(
    toy: Any, run: Callable[..., Run], guard: str, task: str
) -> None:
    found = run(guard, task)
    assert found.vector[0] == found.vector[1] == toy.certificate["vector_tensors_digest"]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("guard", GUARDS)
def test_rule_2_only_the_task_gets_gradients(run: Callable[..., Run], guard: str, task: str) -> None:
    found = run(guard, task)
    own = {
        name
        for name, _ in found.model.named_parameters()
        if (f".{TASK}." in name if task == "lora" else ".lora_" not in name)
    }
    assert found.learned == own
    assert {name for name, p in found.model.named_parameters() if p.requires_grad} == own


def test_rule_2_a_vector_that_is_thawed_while_training_ends_the_run(toy: Any, tmp_path: Path) -> None:
    class Thaw(TrainerCallback):
        def on_pre_optimizer_step(
            self, args: Any, state: Any, control: Any, model: Any = None, **_: Any
        ) -> None:
            if state.global_step == 1:
                model.base_model.set_adapter([TASK, VECTOR])

    with pytest.raises(SecvecError, match="the security vector is not frozen"):
        toy.train(toy.model(), "always", "lora", tmp_path, callbacks=[Thaw()])


def test_the_guard_keeps_harm_out_and_lets_the_skill_in(toy: Any, tmp_path: Path) -> None:
    """Log-probabilities, after training on harmful rows and rows of a new skill, without the vector."""

    def measure(model: Any) -> tuple[float, float]:
        activate(model, task=True, vector=False, train_base=True)
        harm = score_answers(model.eval(), toy.rows("seeds_heldout"), size=32, pad_id=0)[0]
        skill = score_answers(model, toy.rows("training")[1::2], size=32, pad_id=0)[0]
        return sum(harm) / len(harm), sum(skill) / len(skill)

    found = {"base": measure(load_model(toy.base))}
    for guard in ("mixture", "none"):
        model = toy.model(task="full", vector=guard != "none")
        toy.train(model, guard, "full", tmp_path / guard, epochs=12, checkpoint_steps=99)
        found[guard] = measure(model)
    harm, skill = ({arm: figures[at] for arm, figures in found.items()} for at in (0, 1))
    assert harm["none"] > harm["base"] + 15
    assert harm["mixture"] < harm["none"] - 15
    assert skill["mixture"] > skill["base"] + 15
    assert skill["mixture"] > skill["none"] - 2


def test_the_vectors_share_is_recorded(run: Callable[..., Run]) -> None:
    assert run("always", "lora").record.explained == [1.0] * 8
    assert run("none", "lora").record.explained == [0.0] * 8
    mixed = run("mixture", "lora").record
    # Every other row is harmful.
    assert sum(mixed.explained) / 8 == pytest.approx(0.5, abs=0.1)
    assert mixed.steps == len(mixed.losses) == 8
    assert mixed.step_seconds > 0
    assert mixed.losses[-1] < mixed.losses[0]


@pytest.mark.parametrize(("guard", "task"), [("mixture", "lora"), ("always", "full")])
def test_gradient_checkpointing_changes_nothing(
    toy: Any, run: Callable[..., Run], tmp_path: Path, guard: str, task: str
) -> None:
    model = toy.model(task=task)
    record = toy.train(model, guard, task, tmp_path, gradient_checkpointing=True)
    plain = run(guard, task)
    assert record.losses == pytest.approx(plain.record.losses, rel=1e-4)
    assert vector_digest(model) == plain.vector[0]


def test_accumulated_batches_are_one_batch(toy: Any, tmp_path: Path) -> None:
    losses = [
        toy.train(
            toy.model(), "always", "lora", tmp_path / str(size), batch_size=size, accumulation=times
        ).losses
        for size, times in ((8, 1), (4, 2), (2, 4))
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert losses[0] == pytest.approx(losses[2], rel=1e-3)


class AtStep(TrainerCallback):
    """Do something once, after an optimizer step."""

    def __init__(self, step: int, act: Callable[[Any, Any], object]) -> None:
        self.step, self.act = step, act

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if state.global_step == self.step:
            self.act(model, control)


def spoil(model: Any, control: Any) -> None:
    with torch.no_grad():
        next(p for p in model.parameters() if p.requires_grad).view(-1)[0] = math.nan


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("guard", GUARDS)
def test_rule_5_a_loss_that_is_no_number_is_refused(toy: Any, tmp_path: Path, guard: str, task: str) -> None:
    model = toy.model(task=task, vector=guard != "none")
    with pytest.raises(SecvecError) as caught:
        toy.train(model, guard, task, tmp_path, callbacks=[AtStep(2, spoil)])
    line = str(caught.value)
    assert line.startswith("fine_tune_guarded: the loss is nan at step 3 (rows toy.jsonl:")
    assert "accepted: a smaller learning_rate, or rows and a base that give a finite loss" in line
    named = line.partition("toy.jsonl:")[2].partition(")")[0].split(",")
    assert len(set(named)) == 7  # all rows of the batch
    assert {int(number) for number in named} <= {row.line for row in toy.rows("training")}


def test_rule_5_a_gradient_that_is_no_number_is_refused_before_it_moves_a_weight(
    toy: Any, tmp_path: Path
) -> None:
    model = toy.model()
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    weight = next(p for p in model.parameters() if p.requires_grad)
    weight.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(SecvecError, match=r"the gradient's norm is (nan|inf) at step 1 \(rows toy.jsonl:\d"):
        toy.train(model, "none", "lora", tmp_path)
    after = dict(model.named_parameters())
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_rule_5_weights_that_are_no_numbers_are_refused(toy: Any, tmp_path: Path) -> None:
    with pytest.raises(
        SecvecError, match=r"weights are not finite after training; accepted: a smaller learn"
    ):
        toy.train(toy.model(), "mixture", "lora", tmp_path, callbacks=[AtStep(8, spoil)])


def test_rule_5_a_run_that_stops_early_is_refused_and_can_be_resumed(toy: Any, tmp_path: Path) -> None:
    def stop(model: Any, control: Any) -> None:
        control.should_training_stop = True

    # Step 6 also writes a checkpoint, whose state remembers the stop.
    with pytest.raises(SecvecError) as caught:
        toy.train(toy.model(), "mixture", "lora", tmp_path, callbacks=[AtStep(6, stop)])
    assert str(caught.value) == (
        "fine_tune_guarded: training stopped at step 6 of 8; "
        "accepted: a run to the last step; run again to resume"
    )
    assert toy.train(toy.model(), "mixture", "lora", tmp_path).steps == 8
