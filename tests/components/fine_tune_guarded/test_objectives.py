from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback

from secvec.components.fine_tune_guarded import objectives
from secvec.components.fine_tune_guarded.attribution import RowAttribution
from secvec.components.fine_tune_guarded.objectives import Mixture, OneBranch, make_objective
from secvec.components.fine_tune_guarded.trainer import GuardedTrainer, Watch
from secvec.components.fine_tune_guarded.training import _arguments
from secvec.components.shared.adapters import TASK, VECTOR, activate, attach_adapter, make_lora_config
from secvec.components.shared.errors import SecvecError
from secvec.components.shared.likelihood import answer_lengths, answer_log_probs, score_answers
from secvec.components.train_security_vector.comparison import Comparison

PRIOR = 0.1
# So low that max(log p, f) is log p: the plain mixture of the paper-and-pencil formula.
NO_FLOOR = 1e6


@pytest.fixture(autouse=True)
def environment(toy_environment: dict[str, str]) -> dict[str, str]:
    return toy_environment


def stir(model: Any) -> Any:
    """Give the task adapter an effect, as if it had learned for a while."""
    torch.manual_seed(5)
    for name, parameter in model.named_parameters():
        if f".lora_B.{TASK}." in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return model


def make_trainer(
    toy: Any, model: Any, objective: Any, work: Path, *, task: str = "lora", **changes: Any
) -> Any:
    config = toy.config(**changes)
    trainer = GuardedTrainer(
        model=model,
        args=_arguments(config, task=task, seed=0, work=work),
        train_dataset=toy.rows("training"),
        data_collator=lambda rows: {**toy.batch(rows), "row_ids": [row.record_id for row in rows]},
    )
    watch = Watch()
    watch.loss = 0.0
    trainer.guard_with(objective, train_base=task == "full", watch=watch)
    return trainer


def mixed_rows(toy: Any) -> list[Any]:
    """Two harmful rows, two of the new skill and two benign ones."""
    return [*toy.rows("training")[:4], *toy.rows("anchors")[:2]]


def step_gradients(trainer: Any, toy: Any, rows: list[Any]) -> dict[str, torch.Tensor]:
    batch = toy.batch(rows)
    tokens = answer_lengths(batch).sum()
    trainer.model.zero_grad(set_to_none=True)
    trainer.training_step(trainer.model, {**batch, "row_ids": [row.record_id for row in rows]}, tokens)
    return {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("task", ["lora", "full"])
def test_the_gradient_of_open_rows_is_that_of_the_mixture(
    toy: Any, tmp_path: Path, task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objectives, "SETTLED_WITH", 2.0)
    monkeypatch.setattr(objectives, "SETTLED_WITHOUT", -1.0)
    rows = mixed_rows(toy)
    background = {row_id: found.with_vector for row_id, found in toy.attributions(rows).items()}
    model = stir(toy.model(task=task))
    objective = Mixture(prior=PRIOR, floor=NO_FLOOR, background=background)
    found = step_gradients(make_trainer(toy, model, objective, tmp_path, task=task), toy, rows)

    batch = toy.batch(rows)
    activate(model, task=True, vector=False, train_base=task == "full")
    without, with_vector = answer_log_probs(model, batch), torch.tensor(list(background.values()))
    mixed = torch.logaddexp(math.log(1 - PRIOR) + without, math.log(PRIOR) + with_vector)
    model.zero_grad(set_to_none=True)
    (-mixed.sum() / answer_lengths(batch).sum()).backward()
    expected = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert set(found) == set(expected)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-6)
    responsibilities = torch.sigmoid(math.log(PRIOR / (1 - PRIOR)) + with_vector - without)
    assert responsibilities.max() > 0.99
    assert responsibilities.min() < 0.2


def test_responsibilities_are_those_of_bayes_above_the_floor() -> None:
    objective = Mixture(prior=0.25, floor=2.0)
    without = torch.tensor([-3.0, -8.0, -30.0, -30.0])
    with_vector = torch.tensor([-2.0, -2.0, -25.0, -1.0])
    found = objective.responsibilities(without, with_vector, torch.full([4], -8.0)).tolist()
    # 0.25 p_s / (0.25 p_s + 0.75 max(p_0, e^-8))
    expected = [
        0.25 * math.exp(s) / (0.25 * math.exp(s) + 0.75 * max(math.exp(w), math.exp(-8)))
        for w, s in zip((-3, -8, -30, -30), (-2, -2, -25, -1), strict=True)
    ]
    assert found == pytest.approx(expected, rel=1e-5)
    # A skill that neither branch can do is not the vector's, though it makes it e^5 times likelier.
    assert found[2] < 1e-6


@pytest.mark.parametrize(
    ("without", "with_vector", "explained"),
    [
        (-12.0, -3.0, True),  # a loss below the floor of 1 nat per token
        (-40.0, -15.0, True),  # over it, and less than half of its own
        (-40.0, -24.0, False),  # a new skill whose loss falls by more, and to more than half
        (-6.0, -5.9, False),  # hardly likelier: the prior decides
    ],
)
def test_the_vector_explains_what_falls_below_the_floor_or_by_half(
    without: float, with_vector: float, explained: bool
) -> None:
    objective = Mixture(prior=PRIOR, floor=1.0)
    objective.begin({"a": RowAttribution(without, with_vector, length=8)})
    assert objective.settled == {"a": explained}
    row = Comparison([without], [with_vector], divergence=[0.0], lengths=[8])
    assert row.find_explained(floor=1.0) == [explained]


@pytest.mark.parametrize("accumulation", [1, 3])
def test_none_is_the_ordinary_loss_of_hugging_face(toy: Any, tmp_path: Path, accumulation: int) -> None:
    """The first optimizer step's gradient is the one that a plain Trainer computes from the model's loss."""

    class Capture(TrainerCallback):
        def on_pre_optimizer_step(
            self, args: Any, state: Any, control: Any, model: Any = None, **_: Any
        ) -> None:
            if not self.gradients:
                self.gradients = {
                    n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None
                }

        def __init__(self) -> None:
            self.gradients: dict[str, torch.Tensor] = {}

    changes = {"accumulation": accumulation, "batch_size": 4, "epochs": 1}
    ours, theirs = Capture(), Capture()
    toy.train(toy.model(vector=False), "none", "lora", tmp_path / "ours", callbacks=[ours], **changes)
    plain = Trainer(
        model=toy.model(vector=False),
        args=_arguments(toy.config(**changes), task="lora", seed=0, work=tmp_path / "theirs"),
        train_dataset=toy.rows("training"),
        data_collator=toy.batch,
        callbacks=[theirs],
    )
    plain.train()
    assert ours.gradients.keys() == theirs.gradients.keys()
    assert any(gradient.abs().max() > 1e-3 for gradient in theirs.gradients.values())
    for name, gradient in theirs.gradients.items():
        torch.testing.assert_close(ours.gradients[name], gradient, rtol=1e-4, atol=1e-7)


def test_always_is_the_loss_with_the_vector(toy: Any, tmp_path: Path) -> None:
    rows, model = mixed_rows(toy), stir(toy.model())
    found = step_gradients(make_trainer(toy, model, OneBranch(with_vector=True), tmp_path), toy, rows)
    batch = toy.batch(rows)
    activate(model, task=True, vector=True)
    model.zero_grad(set_to_none=True)
    model(**batch).loss.backward()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, dict(model.named_parameters())[name].grad, rtol=1e-3, atol=1e-6)


@contextmanager
def counting_rows(model: Any) -> Iterator[dict[tuple[bool, bool], int]]:
    """Rows that go through the model, by whether the vector acts and whether gradients are kept."""
    counted: dict[tuple[bool, bool], int] = {}

    def count(module: Any, arguments: Any, keywords: Any) -> None:
        key = (VECTOR in model.base_model.active_adapters, torch.is_grad_enabled())
        counted[key] = counted.get(key, 0) + len(keywords["input_ids"])

    hook = model.base_model.model.register_forward_pre_hook(count, with_kwargs=True)
    yield counted
    hook.remove()


def test_rows_that_the_vector_explains_are_not_run(toy: Any, tmp_path: Path) -> None:
    rows, model = mixed_rows(toy), toy.model()
    ids = [row.record_id for row in rows]
    objective = Mixture(prior=PRIOR, floor=toy.floor, background={ids[3]: -math.inf})
    objective.settled = {ids[0]: True, ids[1]: False, ids[2]: True, ids[4]: False}
    trainer = make_trainer(toy, model, objective, tmp_path)
    with counting_rows(model) as counted:
        step_gradients(trainer, toy, rows)
    # Row 3 is open: looked at, then learned. Row 5 is no training row, and teaches.
    assert counted == {(False, False): 1, (False, True): 4}
    with counting_rows(model) as counted:
        step_gradients(trainer, toy, rows)
    assert counted == {(False, True): 4}


def test_a_row_whose_responsibility_is_no_number_ends_the_training(toy: Any, tmp_path: Path) -> None:
    rows = mixed_rows(toy)
    background = {rows[0].record_id: math.nan}
    objective = Mixture(prior=PRIOR, floor=toy.floor, background=background)
    trainer = make_trainer(toy, toy.model(), objective, tmp_path)
    with pytest.raises(SecvecError, match="the loss is nan"):
        step_gradients(trainer, toy, rows)


def test_a_batch_that_the_vector_explains_changes_nothing(toy: Any, tmp_path: Path) -> None:
    rows, model = mixed_rows(toy), toy.model()
    objective = Mixture(prior=PRIOR, floor=toy.floor, settled={row.record_id: True for row in rows})
    trainer = make_trainer(toy, model, objective, tmp_path)
    assert step_gradients(trainer, toy, rows) == {}
    assert trainer.watch.explained == len(rows)


@pytest.mark.parametrize(
    ("with_vector", "expected"), [(False, {(False, True): 6}), (True, {(True, True): 6})]
)
def test_one_branch_runs_no_other(
    toy: Any, tmp_path: Path, with_vector: bool, expected: dict[tuple[bool, bool], int]
) -> None:
    model = toy.model()
    trainer = make_trainer(toy, model, OneBranch(with_vector=with_vector), tmp_path)
    with counting_rows(model) as counted:
        step_gradients(trainer, toy, mixed_rows(toy))
    assert counted == expected


def test_rows_settle_at_their_thresholds() -> None:
    objective = Mixture(prior=PRIOR, floor=1.0)
    found = {"a": 0.0, "b": 0.2, "c": 0.2001, "d": 0.4999, "e": 0.5, "f": 1.0, "g": math.nan}
    objective.settle(list(found), torch.tensor(list(found.values()), dtype=torch.float64))
    assert objective.settled == {"a": False, "b": False, "e": True, "f": True}


def test_a_row_that_settled_stays_where_it_is(toy: Any) -> None:
    rows, model = toy.rows("training")[:2], toy.model()
    ids = [row.record_id for row in rows]
    objective = Mixture(prior=PRIOR, floor=toy.floor)
    objective.begin(toy.attributions(rows))
    objective.settled = {}
    activate(model, task=True, vector=False)
    first = objective.weigh(model, toy.batch(rows), ids)
    # A harmful row belongs to the vector, one of the new skill does not.
    assert objective.settled == {ids[0]: True, ids[1]: False}
    assert first.tolist() == [1.0, 0.0]
    objective.settled = {ids[0]: False, ids[1]: True}
    assert objective.weigh(model, toy.batch(rows), ids).tolist() == [0.0, 1.0]


def test_attribution_settles_rows_before_the_first_step(toy: Any) -> None:
    objective = toy.objective("mixture")
    records = toy.splits["training"]
    assert objective.settled == {record.id: record.category != "" for record in records}


def test_what_settled_goes_through_a_checkpoint() -> None:
    objective = make_objective("mixture", prior=PRIOR, floor=1.0)
    assert isinstance(objective, Mixture)
    objective.settled = {"a": True, "b": False}
    other = make_objective("mixture", prior=PRIOR, floor=1.0)
    other.restore(objective.state())
    assert other == objective
    objective.settled["c"] = True
    assert "c" not in other.settled


def test_guards_make_their_objectives() -> None:
    made = {g: make_objective(g, prior=0.3, floor=2.0) for g in ("none", "always", "mixture")}
    assert made["none"] == OneBranch(with_vector=False)
    assert made["always"] == OneBranch(with_vector=True)
    assert made["mixture"] == Mixture(prior=0.3, floor=2.0)
    assert made["none"].state() == made["always"].state() == {}


def test_responsibilities_do_not_depend_on_dropout(toy: Any) -> None:
    size = GPT2Config(
        vocab_size=len(toy.tokenizer), n_embd=32, n_layer=1, n_head=2, n_positions=48, resid_pdrop=0.5
    )
    torch.manual_seed(0)
    model = attach_adapter(GPT2LMHeadModel(size), TASK, make_lora_config(rank=2))
    rows = toy.rows("training")
    ids = [row.record_id for row in rows]
    activate(model, task=True, vector=False)
    without, _ = score_answers(model.eval(), rows, size=len(rows), pad_id=0)
    model.train()
    background = dict(zip(ids, without, strict=True))
    found = [
        Mixture(prior=0.3, floor=NO_FLOOR, background=background).weigh(model, toy.batch(rows), ids)
        for _ in range(2)
    ]
    # The adapter has learned nothing and the background is the model itself: what is left is the prior.
    assert found[0].tolist() == pytest.approx([0.3] * len(rows), abs=1e-5)
    assert torch.equal(found[0], found[1])
    assert model.training
