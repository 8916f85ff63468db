"""Several processes train what one would have trained, and none of them bends a rule."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from secvec.components.fine_tune_guarded import launch
from secvec.components.fine_tune_guarded.checkpoints import newest_complete, step_of
from secvec.components.fine_tune_guarded.step import fine_tune_guarded
from secvec.components.shared.artifacts import building, fetch, publish
from secvec.components.shared.errors import SecvecError, Terminated
from secvec.components.shared.records import write_records
from secvec.components.shared.references import Reference


@pytest.fixture(autouse=True)
def environment(toy_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return toy_environment


@pytest.fixture(scope="module")
def rows(toy: Any, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """49 rows with 24 rehearsed: of batches of 24 the last is a single row, a second process has none."""
    store = str(tmp_path_factory.mktemp("rows"))
    with building("dataset", store) as folder:
        for name in ("seeds", "seeds_heldout"):
            write_records(folder / f"{name}.jsonl", toy.splits[name])
        write_records(folder / "training.jsonl", toy.splits["training"][:25])
        return publish(folder, kind="dataset", store=store)


def fine_tune(
    toy: Any, rows: Reference, store: Path, *, guard: str = "mixture", task: str = "lora", **settings: Any
) -> Reference:
    return fine_tune_guarded(
        base_model=str(toy.base),
        dataset=rows,
        vector=toy.vector,
        guard=guard,
        task=task,
        store=str(store),
        seed=0,
        config=toy.config(**settings),
    )


def read(reference: Reference) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    folder = fetch(reference)
    return json.loads((folder / "training.json").read_text()), load_file(next(folder.glob("task_*")))


def trainers() -> list[psutil.Process]:
    children = psutil.Process().children(recursive=True)
    return [child for child in children if launch.MODULE in child.cmdline()]


@contextmanager
def killing(rank: str, *, cache: Path, checkpoint: int) -> Iterator[None]:
    """Kill the process of that rank as soon as a checkpoint is complete."""

    def kill() -> None:
        for _ in range(12000):
            if list(cache.glob(f"training/*/checkpoint-{checkpoint}/manifest.json")):
                for process in trainers():
                    if process.environ()["RANK"] == rank:
                        process.kill()
                return
            time.sleep(0.01)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield
    finally:
        thread.join()


@pytest.mark.parametrize(
    "kind",
    [
        ("mixture", "lora"),
        ("mixture", "full"),
        pytest.param(("always", "full"), marks=pytest.mark.slow),
        pytest.param(("none", "lora"), marks=pytest.mark.slow),
    ],
    ids="-".join,
)
def test_two_processes_learn_what_one_does(
    toy: Any, rows: Reference, tmp_path: Path, environment: dict[str, str], kind: tuple[str, str]
) -> None:
    guard, task = kind
    one, alone = read(fine_tune(toy, rows, tmp_path / "one", guard=guard, task=task, batch_size=24))
    log = Path(environment["SECVEC_AUDIT_LOG"])
    opened = log.read_text().count("\n") if log.exists() else 0
    two, together = read(
        fine_tune(toy, rows, tmp_path / "two", guard=guard, task=task, batch_size=12, processes=2)
    )
    assert two["losses"] == pytest.approx(one["losses"], abs=1e-4)
    assert two["explained"] == pytest.approx(one["explained"], abs=1e-4)
    assert together.keys() == alone.keys()
    for name, tensor in alone.items():
        torch.testing.assert_close(together[name], tensor, atol=1e-3, rtol=0, msg=name)
    # what must not change is as it was, in both processes, and the vector was opened once
    assert two["untouched"] == one["untouched"] * 2
    if guard != "none":
        assert one["untouched"][0]["the security vector"] == toy.certificate["vector_tensors_digest"]
        assert log.read_text().count("\n") == opened * 2 > 0


def test_a_killed_process_ends_the_step_and_leaves_no_model(
    toy: Any, rows: Reference, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    with (
        killing("1", cache=tmp_path / "cache", checkpoint=3),
        pytest.raises(SecvecError, match="process 1 of fine_tune_guarded: was ended by SIGKILL"),
    ):
        fine_tune(toy, rows, store, epochs=500, batch_size=12, processes=2)
    assert not list(store.glob("task_result/*"))
    assert not list(store.glob("finished/**/*.json"))
    assert not trainers()


@pytest.mark.slow
@pytest.mark.parametrize("task", ["lora", "full"])
def test_two_processes_go_on_where_they_were_killed(
    toy: Any, rows: Reference, tmp_path: Path, task: str
) -> None:
    settings: dict[str, Any] = {"epochs": 40, "batch_size": 13, "processes": 2, "checkpoint_steps": 20}
    with killing("0", cache=tmp_path / "cache", checkpoint=20), pytest.raises(SecvecError, match="SIGKILL"):
        fine_tune(toy, rows, tmp_path / "store", task=task, **settings)
    resumed, _ = read(fine_tune(toy, rows, tmp_path / "store", task=task, **settings))
    whole, _ = read(fine_tune(toy, rows, tmp_path / "other", task=task, **settings))
    assert resumed["losses"] == pytest.approx(whole["losses"], abs=1e-6)


@pytest.mark.slow
def test_two_processes_that_are_asked_to_end_leave_their_last_step(
    toy: Any, rows: Reference, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"

    def ask() -> None:
        while not list(cache.glob("training/*/checkpoint-20/manifest.json")):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=ask)
    thread.start()
    settings: dict[str, Any] = {"epochs": 400, "batch_size": 13, "processes": 2, "checkpoint_steps": 20}
    with pytest.raises(Terminated, match=r"asked to end .SIGTERM. with its 2 processes; accepted: to run ag"):
        fine_tune(toy, rows, tmp_path / "store", **settings)
    thread.join()
    assert not trainers()
    (work,) = cache.glob("training/*")
    newest = newest_complete(work)
    assert newest and step_of(newest) > 20
    assert step_of(newest) % 20  # no step at which one would have been written anyway


def test_a_process_gives_its_reason(toy: Any, rows: Reference, tmp_path: Path) -> None:
    with pytest.raises(
        SecvecError, match=r"process \d of fine_tune_guarded: .*longer than the wind"
    ) as caught:
        fine_tune(toy, rows, tmp_path / "store", max_length=4, batch_size=12, processes=2)
    assert "accepted: at most 4 tokens" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_as_many_processes_as_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    assert launch.count_for_pod(3) == 3
    assert launch.count_for_pod(None) == 1
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert launch.count_for_pod(None) == 4
    with pytest.raises(SecvecError, match="processes = 3 on a machine with 4 GPUs"):
        launch.count_for_pod(3)
