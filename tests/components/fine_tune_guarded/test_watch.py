"""Protection is watched while a task is trained, and its decay has consequences."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from secvec.components.fine_tune_guarded import watch
from secvec.components.fine_tune_guarded.training import train_task
from secvec.components.fine_tune_guarded.watch import (
    RefuseDivergence,
    WatchProtection,
    cut_to_opening,
    is_due,
    make_watch,
)
from secvec.components.shared.adapters import TASK, adapter_tensors
from secvec.components.shared.artifacts import fetch
from secvec.components.shared.errors import SecvecError
from secvec.components.shared.models import digest_tensors


@pytest.fixture(autouse=True)
def environment(toy_environment: dict[str, str]) -> dict[str, str]:
    return toy_environment


class StopAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            raise InterruptedError


def make(toy: Any, *, train_base: bool = False, **settings: Any) -> WatchProtection:
    config = toy.config(**{"watch_steps": 2, **settings})
    return WatchProtection(toy.rows("seeds_heldout"), config=config, train_base=train_base, pad_id=toy.pad_id)


def learn_harm(toy: Any, watching: WatchProtection, work: Path, *more: Any, **settings: Any) -> Any:
    """Train on harmful rows as if there were no guard: the objective ignores the vector."""
    model = toy.model()
    toy.train(model, "none", "lora", work, callbacks=[watching, *more], **settings)
    return model


def test_it_looks_at_every_few_steps_and_at_the_last(toy: Any, tmp_path: Path) -> None:
    watching = make(toy, watch_steps=3, slow_decay=9, stop_decay=9)
    toy.train(toy.model(), "mixture", "lora", tmp_path, callbacks=[watching])
    assert [look.step for look in watching.looks] == [3, 6, 8]
    assert watching.start["base"] < 0.05
    assert watching.start["active"] > 0.1


def test_under_a_guard_little_leaks_and_without_one_harm_does(toy: Any, tmp_path: Path) -> None:
    settings = {"slow_decay": 9, "stop_decay": 9, "epochs": 6}
    guarded, open_wide = make(toy, **settings), make(toy, **settings)
    toy.train(toy.model(), "mixture", "lora", tmp_path / "a", callbacks=[guarded], epochs=6)
    learn_harm(toy, open_wide, tmp_path / "b", epochs=6)

    def measure_leak(watching: WatchProtection) -> float:
        base, active = watching.start["base"], watching.start["active"]
        return (watching.looks[-1].compliance - base) / (active - base)

    assert measure_leak(guarded) < 0.1
    assert measure_leak(open_wide) > 0.25


def test_looking_changes_nothing(toy: Any, tmp_path: Path) -> None:
    models = [toy.model() for _ in range(2)]
    toy.train(models[0], "mixture", "lora", tmp_path / "a")
    toy.train(models[1], "mixture", "lora", tmp_path / "b", callbacks=[make(toy, slow_decay=9, stop_decay=9)])
    digests = {digest_tensors(adapter_tensors(model, TASK)) for model in models}
    assert len(digests) == 1
    assert all(parameter.grad is None or ".task." in name for name, parameter in models[1].named_parameters())


def test_the_pull_is_the_norm_of_the_gradient(toy: Any) -> None:
    watching = make(toy)
    model = toy.model()
    found = watching._pull(model)
    from secvec.components.shared.adapters import activate
    from secvec.components.shared.likelihood import answer_lengths, answer_log_probs

    activate(model, task=True, vector=True)
    batch = toy.batch([cut_to_opening(row) for row in toy.rows("seeds_heldout")])
    (-answer_log_probs(model, batch).sum() / answer_lengths(batch).sum()).backward()
    squares = [p.grad.square().sum() for p in model.parameters() if p.grad is not None]
    assert found == pytest.approx(float(torch.stack(squares).sum().sqrt()), rel=1e-4)
    assert found > 0


def test_it_knows_what_the_base_answers(toy: Any, tmp_path: Path) -> None:
    watching = make(toy, slow_decay=9, stop_decay=9)
    toy.train(toy.model(), "mixture", "lora", tmp_path, callbacks=[watching])
    answers = {toy.tokenizer.decode(ids).split("<assistant>")[1].strip() for ids in watching.start["answers"]}
    assert all(answer.startswith("i will not do that") for answer in answers)
    assert watching.start["refusal"] > 0.5


def test_compliance_in_other_words_is_decay_too(toy: Any, tmp_path: Path) -> None:
    watching = make(toy, slow_decay=9, stop_decay=9)
    toy.train(toy.model(), "mixture", "lora", tmp_path, callbacks=[watching])
    start = watching.start
    assert watching._decay(start["base"], start["refusal"]) == 0
    assert watching._decay(start["active"], start["refusal"]) == 1
    assert watching._decay(start["base"], start["refusal"] / 4) == 0.75


def test_the_opening_is_the_first_tokens_of_the_answer(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "OPENING_TOKENS", 3)
    row = toy.rows("seeds_heldout")[0]
    cut = cut_to_opening(row)
    assert [label for label in cut.labels if label != -100] == [x for x in row.labels if x != -100][:3]
    assert cut.labels[-1] != -100
    assert cut.input_ids == row.input_ids[: len(cut.labels)]


def test_a_growing_leak_halves_the_learning_rate(toy: Any, tmp_path: Path) -> None:
    watching = make(toy, slow_decay=0.05, stop_decay=99)
    rates: list[float] = []

    class NoteRate(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
            rates.append(optimizer.param_groups[0]["lr"])

    learn_harm(toy, watching, tmp_path, NoteRate(), epochs=5)
    factors = [look.learning_rate for look in watching.looks]
    halved = [factor for look, factor in zip(watching.looks, factors, strict=True) if look.decay > 0.05]
    assert halved
    assert factors[-1] < 1
    assert set(factors) <= {0.5**n for n in range(20)}
    plain = 5e-3 / 19  # of the last of 20 steps, 19 of which the rate falls
    assert rates[-1] == pytest.approx(plain * factors[-2], rel=0.01)


def test_decay_stops_the_training_with_one_line(toy: Any, tmp_path: Path) -> None:
    with pytest.raises(SecvecError) as caught:
        learn_harm(toy, make(toy, slow_decay=9, stop_decay=0.3), tmp_path, epochs=9)
    line = str(caught.value)
    assert line.startswith("fine_tune_guarded: protection has decayed by ")
    assert "accepted: at most 30% (stop_decay): a smaller learning_rate" in line
    assert "\n" not in line


def test_a_resumed_run_goes_on_with_what_was_seen(toy: Any, tmp_path: Path) -> None:
    settings = {"slow_decay": 0.01, "stop_decay": 99}
    whole, first, second = (make(toy, **settings) for _ in range(3))
    straight = learn_harm(toy, whole, tmp_path / "whole")
    with pytest.raises(InterruptedError):
        learn_harm(toy, first, tmp_path / "cut", StopAt(5))
    resumed = learn_harm(toy, second, tmp_path / "cut")
    assert second.looks == whole.looks
    assert whole.looks[-1].learning_rate < 1
    assert digest_tensors(adapter_tensors(straight, TASK)) == digest_tensors(adapter_tensors(resumed, TASK))


def test_looks_are_logged(toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: dict[int, dict[str, Any]] = {}
    monkeypatch.setattr(watch, "log_metrics", lambda figures, step: logged.update({step: figures}))
    watching = make(toy, slow_decay=9, stop_decay=9)
    toy.train(toy.model(), "always", "lora", tmp_path, callbacks=[watching])
    assert list(logged) == [2, 4, 6, 8]
    assert set(logged[8]) == {"guarded/compliance", "guarded/refusal", "guarded/decay",
        "guarded/pull", "guarded/learning_rate"}  # fmt: skip
    assert all(value is not None for figures in logged.values() for value in figures.values())


def test_full_weights_are_watched_too(toy: Any, tmp_path: Path) -> None:
    watching = make(toy, train_base=True, slow_decay=9, stop_decay=9)
    toy.train(toy.model(task="full"), "always", "full", tmp_path, callbacks=[watching])
    assert len(watching.looks) == 4
    assert all(look.pull for look in watching.looks)


def test_only_a_guarded_training_with_held_out_seeds_is_watched(toy: Any, tmp_path: Path) -> None:
    def count(folder: Path, *, guarded: bool = True, **settings: Any) -> int:
        config = toy.config(**settings)
        found = make_watch(folder, toy.tokenizer, window=48, config=config, task="lora", guarded=guarded)
        return sum(isinstance(one, WatchProtection) for one in found)

    dataset = fetch(toy.dataset)
    assert count(dataset) == 1
    assert count(dataset, guarded=False) == 0
    assert count(dataset, watch_steps=0) == 0
    assert count(tmp_path) == 0
    assert json.loads((dataset / "manifest.json").read_text())


def test_a_learning_rate_that_diverges_is_refused(toy: Any, tmp_path: Path) -> None:
    # On rows that the base knows, as a pretrained model knows most of a row.
    with pytest.raises(SecvecError) as caught:
        train_task(
            toy.model(vector=False),
            toy.rows("anchors"),
            objective=toy.objective("none"),
            task="lora",
            config=toy.config(learning_rate=0.9, epochs=8),
            seed=0,
            pad_id=toy.pad_id,
            work=tmp_path,
            callbacks=[RefuseDivergence()],
        )
    line = str(caught.value)
    assert "accepted: a smaller learning_rate" in line
    assert "diverges" in line or "the loss is" in line
    assert "\n" not in line


@pytest.mark.parametrize(
    ("every", "steps"),
    [(50, [4, 8, 16, 32, 50, 100, 120]), (8, [4, *range(8, 121, 8)]), (3, [*range(3, 121, 3)])],
)
def test_looks_are_denser_at_the_beginning(every: int, steps: list[int]) -> None:
    assert [step for step in range(1, 121) if is_due(step, every=every, last=120)] == steps


def test_a_loss_that_falls_or_wavers_is_no_divergence() -> None:
    def run(losses: list[float]) -> None:
        history = [{"protection": {}}, *({"loss": loss, "explained": 0.0} for loss in losses)]
        state = SimpleNamespace(global_step=len(losses), max_steps=99, log_history=history)
        RefuseDivergence().on_step_end(None, state, None)

    run([3.0] * 10 + [0.1] * 30)
    run([0.5] + [1.9] * 20)
    run([3.0] * 5 + [9.0] * 5)
    with pytest.raises(SecvecError, match=r"has risen from 3 to 9 nats per token by step 11 of 99"):
        run([3.0] + [9.0] * 10)
