"""Out of memory: one retry with half the rows a pass and twice the passes; then an exit of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from secvec.components.fine_tune_guarded.checkpoints import newest_complete
from secvec.components.fine_tune_guarded.config import FineTuneConfig
from secvec.components.fine_tune_guarded.memory import is_out_of_memory, record_passes, train_within_memory
from secvec.components.fine_tune_guarded.trainer import GuardedTrainer
from secvec.components.shared.errors import OutOfMemory
from secvec.components.shared.progress import running_step

CPU = "[enforce fail at alloc_cpu.cpp:126] err == 0. DefaultCPUAllocator: can't allocate memory: ..."


@pytest.fixture(autouse=True)
def environment(toy_environment: dict[str, str]) -> dict[str, str]:
    return toy_environment


@pytest.fixture
def small_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that has no room for a pass of more than four rows, from the fifth step on."""
    learn = GuardedTrainer._learn

    def tell(self: Any, model: Any, inputs: Any, count: Any) -> Any:
        if len(inputs["row_ids"]) > 4 and self.state.global_step >= 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return learn(self, model, inputs, count)

    monkeypatch.setattr(GuardedTrainer, "_learn", tell)


def events(environment: dict[str, str], kind: str) -> list[dict[str, Any]]:
    lines = map(json.loads, Path(environment["SECVEC_EVENTS"]).read_text().splitlines())
    return [line for line in lines if line["event"] == kind]


def test_a_retry_in_smaller_passes_takes_the_same_steps(
    toy: Any, tmp_path: Path, environment: dict[str, str], small_device: None
) -> None:
    def train(config: FineTuneConfig) -> Any:
        changes = {"batch_size": config.batch_size, "accumulation": config.accumulation}
        return toy.train(toy.model(), "always", "lora", tmp_path / "work", **changes)

    retried = train_within_memory(train, toy.config(batch_size=8))
    (told,) = events(environment, "out_of_memory")
    assert told["retry"] == "batch_size 4, accumulation 2"
    assert [event["after_step"] for event in events(environment, "training_started")] == [0, 3]
    whole = toy.train(toy.model(), "always", "lora", tmp_path / "whole", batch_size=4, accumulation=2)
    assert retried.steps == whole.steps == 8
    assert retried.losses == pytest.approx(whole.losses, rel=1e-3)
    assert newest_complete(tmp_path / "work") == tmp_path / "work" / "checkpoint-8"


def test_a_second_time_it_ends_with_a_status_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    tried = []

    def train(config: FineTuneConfig) -> None:
        tried.append((config.batch_size, config.accumulation))
        raise RuntimeError(CPU)

    with pytest.raises(SystemExit) as ended, running_step("fine_tune_guarded"):
        train_within_memory(train, FineTuneConfig(batch_size=6, accumulation=2))
    assert tried == [(6, 2), (3, 4)]
    assert ended.value.code == OutOfMemory.status == 4
    line = capsys.readouterr().err
    assert (
        "out of memory with batch_size = 3, accumulation = 4, after a first try with batch_size = 6" in line
    )
    assert "accepted: a smaller batch_size or max_length" in line
    assert line.count("\n") == 1


@pytest.mark.parametrize("rows", [1, 7])
def test_what_cannot_be_halved_is_not_tried_again(rows: int) -> None:
    tried = []

    def train(config: FineTuneConfig) -> None:
        tried.append(config.batch_size)
        raise MemoryError

    with pytest.raises(OutOfMemory, match=f"out of memory with batch_size = {rows}, accumulation = 1: "):
        train_within_memory(train, FineTuneConfig(batch_size=rows))
    assert tried == [rows]


def test_other_errors_pass_through() -> None:
    def train(config: FineTuneConfig) -> None:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        train_within_memory(train, FineTuneConfig())


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (RuntimeError(CPU), True),
        (MemoryError(), True),
        (RuntimeError("size mismatch"), False),
        (OSError("No space left on device"), False),
    ],
)
def test_what_counts_as_out_of_memory(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) is expected


def test_a_training_records_its_smaller_passes() -> None:
    wanted, used = FineTuneConfig(batch_size=8), FineTuneConfig(batch_size=4, accumulation=2)
    assert record_passes(wanted, used=wanted) == {}
    assert record_passes(wanted, used=used) == {"after_out_of_memory": {"batch_size": 4, "accumulation": 2}}
