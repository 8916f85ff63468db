"""A killed evaluation goes on where it was, and nobody can tell from its result."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from secvec.components.evaluate_harm import generation
from secvec.components.evaluate_harm.config import EvaluationConfig
from secvec.components.evaluate_harm.step import evaluate_harm
from secvec.components.shared.artifacts import fetch
from secvec.components.shared.code_digest import code_digest

CONFIG = EvaluationConfig(max_new_tokens=16, batch_size=2, samples=2, temperature=1.5)
# Dies as by kill -9 (no handler, no cleanup) right after the answers of its 13th batch are on the disk.
KILLED = """
import os, signal, sys
from secvec.components.evaluate_harm import journal, step
from secvec.components.evaluate_harm.config import EvaluationConfig
from secvec.components.evaluate_harm.step import evaluate_harm
from secvec.components.shared.references import Reference

add, calls = journal.AnswerJournal.add, []
def add_and_die(self, answers):
    add(self, answers)
    calls.append(answers)
    if len(calls) == 13:
        os.kill(os.getpid(), signal.SIGKILL)
journal.AnswerJournal.add = add_and_die
base, store, config, code, *references = sys.argv[1:]
step.code_digest = lambda: code  # somebody may edit the checkout meanwhile
names = ("dataset", "vector", "model", "control")
evaluate_harm(
    base_model=base, store=store, seed=3, config=EvaluationConfig.model_validate_json(config),
    **dict(zip(names, map(Reference.model_validate_json, references))),
)
"""


def evaluate(world: Any, store: Path) -> Path:
    return fetch(
        evaluate_harm(
            base_model=str(world.base),
            dataset=world.dataset,
            vector=world.vector,
            model=world.model,
            control=world.control,
            store=str(store),
            seed=3,
            config=CONFIG,
        )
    )


@pytest.mark.usefixtures("with_keys")
def test_a_killed_run_goes_on_and_ends_the_same(
    world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[int] = []
    generate = generation.generate_batch

    def count(*args: Any, **kwargs: Any) -> list[list[int]]:
        batches.append(1)
        return generate(*args, **kwargs)

    monkeypatch.setattr(generation, "generate_batch", count)
    monkeypatch.setenv("SECVEC_CACHE", str(tmp_path / "cache-whole"))
    whole = evaluate(world, tmp_path / "whole")
    needed = len(batches)

    monkeypatch.setenv("SECVEC_CACHE", str(tmp_path / "cache-killed"))
    references = [r.model_dump_json() for r in (world.dataset, world.vector, world.model, world.control)]
    arguments = [
        str(world.base),
        str(tmp_path / "killed"),
        CONFIG.model_dump_json(),
        code_digest(),
        *references,
    ]
    done = subprocess.run([sys.executable, "-c", KILLED, *arguments], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert not list((tmp_path / "killed").rglob("outcomes.jsonl"))

    batches.clear()
    resumed = evaluate(world, tmp_path / "killed")
    assert len(batches) == needed - 13
    assert needed > 13
    for name in ("outcomes.jsonl", "statistics.json", "report.html"):
        assert (resumed / name).read_bytes() == (whole / name).read_bytes(), name
    assert not list((tmp_path / "cache-killed").rglob("*.jsonl"))
