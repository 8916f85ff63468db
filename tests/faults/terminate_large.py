"""Measures the time from SIGTERM to a durable checkpoint and the end of the process, for a model's size.

``python -m tests.faults.terminate_large --millions 300 --task full --times 3 --out FOLDER``

A Llama with random weights is trained in a process of its own, on as many tokens a step as make a step long.
Asked to end in the middle of a step, it must leave the last step as a checkpoint that verifies, and exit with
another status than 0, within 20 seconds. Each time goes on from the checkpoint before.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from secvec.components.fine_tune_guarded.checkpoints import newest_complete, step_of

_STEPS = 1000


def train(options: Any) -> None:
    """Train until somebody ends it."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from secvec.components.fine_tune_guarded.config import FineTuneConfig
    from secvec.components.fine_tune_guarded.objectives import make_objective
    from secvec.components.fine_tune_guarded.training import train_task
    from secvec.components.shared.adapters import TASK, attach_adapter, make_lora_config
    from secvec.components.shared.likelihood import EncodedRecord
    from secvec.components.shared.progress import running_step

    width, vocabulary = 1024, 8192
    per_layer = 4 * width**2 + 3 * width * 4 * width
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=max(round((options.millions * 10**6 - 2 * vocabulary * width) / per_layer), 1),
        num_attention_heads=16,
        num_key_value_heads=16,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(config)
    if options.task == "lora":
        model = attach_adapter(model, TASK, make_lora_config(rank=16))
    draw = random.Random(0)
    rows = [_draw_row(EncodedRecord, draw, number, tokens=options.tokens) for number in range(_STEPS)]
    with running_step("fine_tune_guarded"):
        train_task(
            model,
            rows,
            objective=make_objective("none", prior=0.1, floor=1.0),
            task=options.task,
            config=FineTuneConfig(epochs=1, batch_size=1, checkpoint_steps=_STEPS),
            seed=0,
            pad_id=0,
            work=options.out / "work",
            callbacks=[],
        )


def _draw_row(make: Any, draw: random.Random, number: int, *, tokens: int) -> Any:
    ids = [draw.randrange(8192) for _ in range(tokens)]
    return make(str(number), ids, ids, source="rows.jsonl", line=number + 1)


def terminate_once(options: Any, number: int) -> dict[str, Any]:
    """Train for some steps, ask the process to end, and measure."""
    events = options.out / "events.jsonl"
    events.unlink(missing_ok=True)
    before = newest_complete(options.out / "work")
    reached = step_of(before) if before else 0
    command = [sys.executable, "-m", "tests.faults.terminate_large", *sys.argv[1:], "--train"]
    with (options.out / f"log-{number}.txt").open("w") as log:
        process = subprocess.Popen(
            command, env={**os.environ, "SECVEC_EVENTS": str(events)}, stdout=log, stderr=log
        )
        seconds = _wait_for_steps(events, after=reached, process=process)
        time.sleep(random.Random(number).uniform(0, seconds))
        asked = time.monotonic()
        process.send_signal(signal.SIGTERM)
        status = process.wait()
        took = time.monotonic() - asked
    kept = newest_complete(options.out / "work")
    size = sum(path.stat().st_size for path in kept.iterdir()) if kept else 0
    return {
        "seconds": round(took, 2),
        "status": status,
        "step_seconds": round(seconds, 2),
        "began_after": reached,
        "kept": step_of(kept) if kept else None,
        "checkpoint_bytes": size,
    }


def _wait_for_steps(events: Path, *, after: int, process: Any) -> float:
    """Wait for the second step after one; give how long it took."""
    seen: dict[int, float] = {}
    while after + 2 not in seen:
        if process.poll() is not None:
            raise SystemExit(f"the training ended by itself, with status {process.returncode}")
        time.sleep(0.02)
        for line in events.read_text().splitlines() if events.exists() else []:
            event = json.loads(line)
            if event["event"] == "progress" and event["task"] == "fine-tune":
                seen.setdefault(int(event["done"]), time.monotonic())
    return seen[after + 2] - seen.get(after + 1, seen[after + 2])


def main() -> int:
    """Measure some times and show all."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.terminate_large")
    parser.add_argument("--millions", type=int, default=300, help="parameters, in millions")
    parser.add_argument("--task", choices=("lora", "full"), default="full")
    parser.add_argument("--tokens", type=int, default=256, help="tokens a step")
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--train", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train:
        train(options)
        return 0
    shutil.rmtree(options.out, ignore_errors=True)
    options.out.mkdir(parents=True)
    measured = [terminate_once(options, number) for number in range(options.times)]
    shutil.rmtree(options.out / "work")
    summary = {"millions": options.millions, "task": options.task, "measured": measured}
    (options.out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    print(json.dumps(summary, indent=1))
    well = all(one["seconds"] <= 20 and one["status"] not in (0, None) for one in measured)
    return 0 if well and all(one["kept"] and one["kept"] > one["began_after"] for one in measured) else 1


if __name__ == "__main__":
    sys.exit(main())
