"""Rule 5: an interrupted run resumes to the very same bits, and never from what is incomplete."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from secvec.components.fine_tune_guarded.checkpoints import (
    forget_all,
    load_trainable,
    newest_complete,
    save_trainable,
)
from secvec.components.shared.adapters import VECTOR, adapter_tensors, vector_digest
from secvec.components.shared.errors import SecvecError
from secvec.components.shared.manifest import write_manifest
from secvec.components.shared.models import digest_tensors

KINDS = [("mixture", "lora"), ("always", "full"), ("mixture", "full"), ("none", "lora")]


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """Where checkpoints go."""
    return tmp_path / "work"


@pytest.fixture(autouse=True)
def environment(toy_environment: dict[str, str]) -> dict[str, str]:
    return toy_environment


class Interruption(Exception):
    """The process is killed."""


class InterruptAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            raise Interruption


class CountSteps(TrainerCallback):
    def __init__(self) -> None:
        self.steps: list[int] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.steps.append(state.global_step)


@dataclass(frozen=True)
class Finished:
    """What a whole run gave.

    Attributes:
        digest: Of the task's tensors.
        losses: Of all steps.
        explained: Of all steps.
        steps: Numbers of the steps that the last process made.
        vector: Digest of the vector afterwards.
    """

    digest: str
    losses: list[float]
    explained: list[float]
    steps: list[int]
    vector: str


def train(toy: Any, guard: str, task: str, work: Path, *, seed: int = 0) -> Finished:
    model = toy.model(task=task, vector=guard != "none", seed=seed)
    counter = CountSteps()
    record = toy.train(model, guard, task, work, callbacks=[counter])
    own = {name: p for name, p in model.named_parameters() if p.requires_grad}
    vector = vector_digest(model) if guard != "none" else ""
    return Finished(digest_tensors(own), record.losses, record.explained, counter.steps, vector)


def interrupt(toy: Any, guard: str, task: str, work: Path, *, at: int) -> None:
    with pytest.raises(Interruption):
        toy.train(
            toy.model(task=task, vector=guard != "none"), guard, task, work, callbacks=[InterruptAt(at)]
        )


@pytest.fixture(scope="module")
def whole(toy: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Finished]:
    """The uninterrupted run of a kind."""
    done: dict[tuple[str, str], Finished] = {}

    def once(guard: str, task: str) -> Finished:
        if (guard, task) not in done:
            done[guard, task] = train(toy, guard, task, tmp_path_factory.mktemp("whole"))
        return done[guard, task]

    return once


@pytest.mark.parametrize(("guard", "task"), KINDS)
def test_rule_5_a_resumed_run_gives_the_same_bits(
    toy: Any, whole: Callable[..., Finished], work: Path, guard: str, task: str
) -> None:
    interrupt(toy, guard, task, work, at=5)
    assert [path.name for path in work.iterdir()] == ["checkpoint-3"]
    # Another seed of the process: whatever is not restored would differ.
    resumed = train(toy, guard, task, work, seed=9)
    expected = whole(guard, task)
    assert expected.steps == [1, 2, 3, 4, 5, 6, 7, 8]
    assert resumed.steps == [4, 5, 6, 7, 8]
    assert resumed.digest == expected.digest
    assert resumed.losses == expected.losses
    assert resumed.explained == expected.explained
    assert resumed.vector == expected.vector


def test_rule_5_a_run_may_be_interrupted_more_than_once(
    toy: Any, whole: Callable[..., Finished], work: Path
) -> None:
    interrupt(toy, "mixture", "lora", work, at=4)
    interrupt(toy, "mixture", "lora", work, at=7)
    assert train(toy, "mixture", "lora", work).digest == whole("mixture", "lora").digest


def test_rule_5_a_finished_training_is_not_repeated(
    toy: Any, whole: Callable[..., Finished], work: Path
) -> None:
    train(toy, "mixture", "lora", work)
    again = train(toy, "mixture", "lora", work, seed=9)
    expected = whole("mixture", "lora")
    assert again.steps == []
    assert (again.digest, again.losses) == (expected.digest, expected.losses)


def flip_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-7])


DAMAGE: dict[str, Callable[[Path], object]] = {
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
    "a cut manifest": lambda folder: cut(folder / "manifest.json"),
    "a cut file": lambda folder: cut(folder / "trainable.safetensors"),
    "a flipped bit": lambda folder: flip_bit(folder / "trainable.safetensors"),
    "a flipped bit in the optimizer": lambda folder: flip_bit(folder / "optimizer.pt"),
    "no optimizer": lambda folder: (folder / "optimizer.pt").unlink(),
    "no objective": lambda folder: (folder / "objective.json").unlink(),
    "nothing at all": lambda folder: (shutil.rmtree(folder), folder.mkdir()),
}


@pytest.fixture(scope="module")
def interrupted(toy: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run killed after its second checkpoint."""
    work = tmp_path_factory.mktemp("interrupted")
    interrupt(toy, "mixture", "lora", work, at=7)
    return work


@pytest.mark.parametrize("case", DAMAGE)
def test_rule_5_an_incomplete_checkpoint_is_passed_over(interrupted: Path, work: Path, case: str) -> None:
    shutil.copytree(interrupted, work)
    assert newest_complete(work) == work / "checkpoint-6"
    DAMAGE[case](work / "checkpoint-6")
    assert newest_complete(work) == work / "checkpoint-3"
    DAMAGE[case](work / "checkpoint-3")
    assert newest_complete(work) is None


@pytest.mark.parametrize("case", ["no manifest", "a cut file", "a flipped bit", "no optimizer"])
def test_rule_5_a_run_resumes_from_the_checkpoint_before_a_bad_one(
    toy: Any, whole: Callable[..., Finished], interrupted: Path, work: Path, case: str
) -> None:
    shutil.copytree(interrupted, work)
    DAMAGE[case](work / "checkpoint-6")
    resumed = train(toy, "mixture", "lora", work, seed=9)
    assert resumed.steps == [4, 5, 6, 7, 8]
    assert resumed.digest == whole("mixture", "lora").digest
    assert newest_complete(work) == work / "checkpoint-8"


def test_other_folders_are_no_checkpoints(tmp_path: Path) -> None:
    for folder in ("checkpoint-best", "checkpoint-", "checkpoint-6.partial", "runs"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "file").write_text("content")
        write_manifest(tmp_path / folder, kind="checkpoint")
    assert newest_complete(tmp_path) is None


@pytest.mark.parametrize(("guard", "task"), [("mixture", "lora"), ("always", "full")])
def test_rule_4_checkpoints_hold_nothing_of_the_vector(toy: Any, work: Path, guard: str, task: str) -> None:
    interrupt(toy, guard, task, work, at=5)
    files = [path for path in work.rglob("*") if path.is_file()]
    assert {"trainable.safetensors", "optimizer.pt", "objective.json"} <= {path.name for path in files}
    secrets = [t.numpy().tobytes() for t in adapter_tensors(toy.model(task="full"), VECTOR).values()]
    own = [t.detach().numpy().tobytes() for t in toy.model(task="full").parameters()]
    contents = [path.read_bytes() for path in files]
    assert not [secret for secret in secrets if any(secret in content for content in contents)]
    assert all(f".{VECTOR}.".encode() not in content for content in contents)
    assert len(own) > len(secrets)


def test_the_scan_for_the_vectors_bytes_would_find_them(toy: Any, tmp_path: Path) -> None:
    model = toy.model(task="full")
    secrets = [t.numpy().tobytes() for t in adapter_tensors(model, VECTOR).values()]
    torch.save(model.state_dict(), tmp_path / "state.pt")
    model.save_pretrained(tmp_path)
    for file in ("state.pt", f"{VECTOR}/adapter_model.safetensors"):
        content = (tmp_path / file).read_bytes()
        assert all(secret in content for secret in secrets)


def test_a_checkpoint_of_another_task_is_refused(toy: Any, tmp_path: Path) -> None:
    lora = toy.model(task="lora")
    save_trainable(lora, tmp_path)
    full = toy.model(task="full", vector=False)
    for parameter in full.parameters():
        parameter.requires_grad_(True)
    with pytest.raises(
        SecvecError, match="holds other parameters than this run trains; accepted: a checkpoint"
    ):
        load_trainable(full, tmp_path)


def test_rule_5_a_full_disk_leaves_the_checkpoint_before_it(
    toy: Any, whole: Callable[..., Finished], tmp_path: Path
) -> None:
    if shutil.which("mount") is None:
        pytest.skip("there is no mount command")
    disk = tmp_path / "disk"
    disk.mkdir()
    options = ["mount", "-t", "tmpfs", "-o"]
    if subprocess.run([*options, "size=2m", "tmpfs", disk], check=False, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs is not permitted here")
    try:
        work = disk / "work"
        # Room for a first checkpoint; another tenant takes what a second would need.
        with pytest.raises(SecvecError, match=r"checkpoint-6: disk full: \d+ bytes needed, \d+ bytes free"):
            toy.train(toy.model(), "mixture", "lora", work, callbacks=[FillAt(4, disk)])
        assert newest_complete(work) == work / "checkpoint-3"
        assert not (work / "checkpoint-6").exists()
        (disk / "tenant").unlink()
        resumed = train(toy, "mixture", "lora", work, seed=9)
        assert resumed.steps == [4, 5, 6, 7, 8]
        assert resumed.digest == whole("mixture", "lora").digest
    finally:
        subprocess.run(["umount", disk], check=True)


class FillAt(TrainerCallback):
    """Fill a disk, but for half a megabyte, after a step."""

    def __init__(self, step: int, disk: Path) -> None:
        self.step, self.disk = step, disk

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            left = shutil.disk_usage(self.disk).free - (1 << 19)
            (self.disk / "tenant").write_bytes(bytes(left))


def test_a_removal_that_is_cut_off_leaves_no_checkpoint_that_looks_whole(
    interrupted: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(interrupted, work)

    def cut_off(folder: Path, **_: Any) -> None:
        raise Interruption

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", cut_off)
        with pytest.raises(Interruption):
            forget_all(work)
    assert len(list(work.glob("checkpoint-*/manifest.json"))) == 1
    forget_all(work)
    assert not work.exists()
