"""SIGTERM: what is finished becomes a checkpoint, and the next run goes on from it to the same bits."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

from secvec.components.fine_tune_guarded import termination, trainer
from secvec.components.fine_tune_guarded.checkpoints import newest_complete
from secvec.components.shared.errors import Terminated
from secvec.components.shared.models import digest_tensors


@pytest.fixture(autouse=True)
def environment(toy_environment: dict[str, str]) -> dict[str, str]:
    return toy_environment


class Ask(TrainerCallback):
    """Send SIGTERM to this process at one of a callback's calls."""

    def __init__(self, place: str, step: int) -> None:
        self.place, self.step = place, step

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._ask("on_step_begin", state.global_step + 1)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._ask("on_pre_optimizer_step", state.global_step + 1)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._ask("on_save", state.global_step)

    def _ask(self, place: str, step: int) -> None:
        if (place, step) == (self.place, self.step):
            os.kill(os.getpid(), signal.SIGTERM)


class AskInPass:
    """Send SIGTERM while a layer of the model runs, in a given pass."""

    def __init__(self, model: Any, number: int) -> None:
        self.passes, self.number = 0, number
        layer = next(module for module in model.modules() if type(module).__name__ == "LlamaMLP")
        layer.register_forward_pre_hook(self._ask)

    def _ask(self, *_: Any) -> None:
        self.passes += 1
        if self.passes == self.number:
            os.kill(os.getpid(), signal.SIGTERM)


def learned(model: Any) -> str:
    return digest_tensors({name: p for name, p in model.named_parameters() if p.requires_grad})


@pytest.fixture(scope="module")
def whole(toy: Any, toy_keys: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> str:
    model = toy.model()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SECVEC_EVENTS", toy_keys["SECVEC_EVENTS"])
        toy.train(model, "mixture", "lora", tmp_path_factory.mktemp("whole"))
    return learned(model)


@pytest.mark.parametrize(
    ("place", "step", "kept"),
    [
        ("on_step_begin", 5, 5),
        ("on_pre_optimizer_step", 5, 5),
        ("on_save", 6, 7),
        ("on_step_begin", 8, 8),
    ],
)
def test_rule_5_the_step_under_way_is_finished_and_kept(
    toy: Any, whole: str, tmp_path: Path, *, place: str, step: int, kept: int
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated, match=rf"after step {kept}, which is kept; accepted: to run again"):
        toy.train(toy.model(), "mixture", "lora", tmp_path, callbacks=[Ask(place, step)])
    assert signal.getsignal(signal.SIGTERM) is before
    assert newest_complete(tmp_path) == tmp_path / f"checkpoint-{kept}"
    model = toy.model(seed=9)
    toy.train(model, "mixture", "lora", tmp_path)
    assert learned(model) == whole


@pytest.mark.parametrize("number", [1, 3, 6])
def test_rule_5_a_long_step_is_not_waited_for(
    toy: Any, whole: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(trainer, "LONG_STEP_SECONDS", 0.0)  # every step counts as long
    model = toy.model()
    AskInPass(model, number)
    with pytest.raises(Terminated) as caught:
        toy.train(model, "mixture", "lora", tmp_path)
    kept = newest_complete(tmp_path)
    step = int(kept.name.partition("-")[2]) if kept else 0
    assert f"after step {step}, which is kept" in str(caught.value)
    assert step < 8
    assert bool(step) == (number > 1)
    again = toy.model(seed=9 if kept else 0)
    toy.train(again, "mixture", "lora", tmp_path)
    assert learned(again) == whole


def test_the_random_state_is_put_back() -> None:
    import random

    import numpy as np
    import torch

    state = termination.RandomState.take()
    drawn = random.random(), np.random.rand(), torch.rand(1).item()
    state.restore()
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == drawn
