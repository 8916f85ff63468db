"""That the harness sees what it is there to see, and one chain of killed runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from secvec.components.shared.artifacts import publish
from secvec.components.shared.manifest import write_manifest
from tests.faults.kill_anywhere import _plan, compare_training
from tests.faults.killed_run import look_at_leftovers

ROOT = Path(__file__).parents[2]


def make_checkpoint(folder: Path, step: int) -> Path:
    checkpoint = folder / "cache" / "training" / "key" / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "weights").write_bytes(bytes(10))
    write_manifest(checkpoint, kind="checkpoint")
    return checkpoint


def test_it_sees_what_is_visible_and_torn(tmp_path: Path) -> None:
    store = tmp_path / "output" / "store"
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "rows").write_text("rows")
    reference = publish(tmp_path / "source", kind="dataset", store=str(store))
    checkpoint = make_checkpoint(tmp_path, 4)
    (store / ".building" / "half").mkdir(parents=True)  # nobody looks there
    assert look_at_leftovers(tmp_path) == {"problems": [], "checkpoints": {"key": 4}, "finished": []}
    folder = store / "dataset" / reference.digest.removeprefix("sha256:")
    (folder / "manifest.json").unlink()
    (checkpoint / "weights").write_bytes(bytes(9))
    (store / "finished" / "x").mkdir(parents=True)
    (store / "finished" / "x" / "record.json").write_text('{"kind": ')
    problems = look_at_leftovers(tmp_path)["problems"]
    assert [text for text in problems if "visible and torn" in text and "dataset" in text]
    assert [text for text in problems if "visible and torn" in text and "checkpoint-4" in text]
    assert [text for text in problems if "record.json is torn" in text]


def test_it_sees_what_is_trained_twice() -> None:
    before = {"checkpoints": {"a": 4}, "finished": ["b"]}

    def compare(key: str, step: int) -> list[str]:
        return compare_training(
            [{"event": "training_started", "checkpoints": key, "after_step": step}], before
        )

    assert compare("a", 4) == compare("c", 0) == []
    assert compare("a", 0) == ["training a went on after step 0, but step 4 was kept"]
    assert compare("b", 0) == ["training b was begun although its result is published"]


def test_a_plan_spreads_over_all_processes_and_is_made_again() -> None:
    points = [
        {"process": process, "number": number, "event": "open", "path": ""}
        for process in ("command", "ingest_data", "worker")
        for number in range(1, 49)
    ]
    chains = _plan(points, seed=3, points=24)
    assert chains == _plan(points, seed=3, points=24)
    assert chains != _plan(points, seed=4, points=24)
    assert [len(chain) for chain in chains] == [3] * 12
    assert all(chain == sorted(chain, key=lambda kill: kill["order"]) for chain in chains)
    for process in ("command", "ingest_data", "worker"):
        shares = {(k["number"] - 1) // 4 for chain in chains for k in chain if k["process"] == process}
        assert shares == set(range(12))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_killed_runs_end_in_the_same_model(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.faults.kill_anywhere", "--points", "12", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["problems"] == []
    assert summary["kills"] >= 12
    assert done.returncode == 0
