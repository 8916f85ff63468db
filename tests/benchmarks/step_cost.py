"""What a guarded step costs: ``python -m tests.benchmarks.step_cost [--size SIZE] [--out FILE]``.

Steps of real trainers (forward, backward, AdamW) on random weights of a Llama's shape, the ways taking turns
in one run, so that whatever else the machine does meets all of them. Figures are medians over rounds and
ratios to the unguarded step of the same kind of task; peak memory is measured on an accelerator alone.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from secvec.components.fine_tune_guarded.config import FineTuneConfig, Task
from secvec.components.fine_tune_guarded.objectives import Mixture, OneBranch
from secvec.components.fine_tune_guarded.trainer import GuardedTrainer, Watch
from secvec.components.fine_tune_guarded.training import _arguments
from secvec.components.shared.adapters import (
    TASK,
    VECTOR,
    activate,
    attach_adapter,
    fold_vector,
    freeze_vector,
    make_lora_config,
    round_vector,
)
from secvec.components.train_security_vector.config import FOR_ALWAYS, VectorConfig

# hidden, intermediate, layers, heads, key-value heads, vocabulary, rows, tokens per row, dtype
SIZES: dict[str, tuple[int, int, int, int, int, int, int, int, torch.dtype]] = {
    "tiny": (128, 352, 2, 4, 4, 160, 32, 32, torch.float32),
    "cpu": (1024, 2816, 2, 16, 16, 2048, 8, 64, torch.float32),
    "cpu-bf16": (1024, 2816, 2, 16, 16, 2048, 8, 64, torch.bfloat16),
    "1b": (2048, 5632, 22, 32, 4, 32000, 8, 512, torch.bfloat16),
    "1b-fp32": (2048, 5632, 22, 32, 4, 32000, 4, 512, torch.float32),
}
# mixture: half of the rows explained; mixture_clean: none; mixture_open: all undecided, looked at every step
WAYS = ("unguarded", "mixture", "mixture_clean", "mixture_open", "always", "always_folded")


@dataclass
class Lane:
    """One way to train, ready to step."""

    trainer: Any
    batch: dict[str, torch.Tensor]
    optimizer: torch.optim.Optimizer
    device: torch.device

    def step(self) -> float:
        """One optimizer step; seconds."""
        _wait(self.device)
        started = time.perf_counter()
        ids = [str(number) for number in range(len(self.batch["input_ids"]))]
        tokens = (self.batch["labels"][:, 1:] != -100).sum()
        self.trainer.training_step(self.trainer.model, {**self.batch, "row_ids": ids}, tokens)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        _wait(self.device)
        return time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def open_lane(way: str, task: Task, size: str, *, device: torch.device, work: Path) -> Lane:
    """Build the model of a way with its vector, which is random: its cost does not depend on its values."""
    hidden, wide, layers, heads, kv, vocabulary, rows, length, dtype = SIZES[size]
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=wide,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv,
    )
    torch.set_default_dtype(dtype)
    with device:
        model: Any = LlamaForCausalLM(shape)
    torch.set_default_dtype(torch.float32)
    if task == "lora":
        model = attach_adapter(model, TASK, make_lora_config(rank=16))
    if way != "unguarded":
        config = VectorConfig.model_validate(FOR_ALWAYS if way.startswith("always") else {})
        model = attach_adapter(model, VECTOR, make_lora_config(rank=config.rank))
        for name, parameter in model.named_parameters():
            if f".lora_B.{VECTOR}." in name:
                torch.nn.init.normal_(parameter, std=0.01)
        round_vector(model)
        freeze_vector(model)
    objective = _objective(way, model, rows, length)
    activate(model, task=True, vector=objective.with_vector, train_base=task == "full")
    trainer = GuardedTrainer(
        model=model,
        args=_arguments(FineTuneConfig(batch_size=rows), task=task, seed=0, work=work),
        train_dataset=[{}],
    )
    trainer.guard_with(objective, train_base=task == "full", watch=Watch())
    ids = torch.randint(vocabulary, (rows, length), device=device)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return Lane(trainer, batch, torch.optim.AdamW(learned, lr=1e-5), device)


def _objective(way: str, model: Any, rows: int, length: int) -> Any:
    ids = [str(number) for number in range(rows)]
    if way == "always_folded":
        fold_vector(model)
        return OneBranch(with_vector=False, folded=True)
    if not way.startswith("mixture"):
        return OneBranch(with_vector=way == "always")
    if way == "mixture_open":
        return Open(prior=0.3, floor=1e6, background=dict.fromkeys(ids, -math.inf))
    explained = 0 if way == "mixture_clean" else rows // 2
    return Mixture(prior=0.1, floor=1.0, settled={i: int(i) < explained for i in ids})


class Open(Mixture):
    """The worst case: no row ever settles."""

    def settle(self, row_ids: list[str], responsibilities: torch.Tensor) -> None:
        """Never."""


def measure(task: Task, size: str, *, rounds: int, device: torch.device) -> dict[str, dict[str, float]]:
    """Median seconds per step of each way, and what they are to the unguarded one."""
    ways = [way for way in WAYS if way != "always_folded" or _can_fold(task, size)]
    with tempfile.TemporaryDirectory() as folder:
        lanes: dict[str, Lane] = {}
        peaks = {}
        for way in ways:
            lane, peaks[way] = _alone(way, task, size, device=device, work=Path(folder))
            if lane:
                lanes[way] = lane
        for way in ways:  # on an accelerator, memory is measured with one model there at a time
            lanes[way] = lanes.get(way) or open_lane(way, task, size, device=device, work=Path(folder))
        for way in ways:
            lanes[way].step()
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(rounds):
            for way in ways:
                seconds[way].append(lanes[way].step())
    base = seconds["unguarded"]
    return {
        way: {
            "step_seconds": statistics.median(seconds[way]),
            # of each round's pair: what slows the machine for a while slows both
            "step_ratio": statistics.median(a / b for a, b in zip(seconds[way], base, strict=True)),
            "tokens_per_second": SIZES[size][6] * SIZES[size][7] / statistics.median(seconds[way]),
            **(
                {"peak_bytes": peaks[way], "peak_ratio": peaks[way] / peaks["unguarded"]}
                if peaks[way]
                else {}
            ),
        }
        for way in ways
    }


def _can_fold(task: str, size: str) -> bool:
    return task == "lora" and SIZES[size][-1] == torch.float32


def _alone(way: str, task: Task, size: str, *, device: torch.device, work: Path) -> tuple[Lane | None, int]:
    """Peak memory of three steps with no other model on the device; on a CPU the lane itself."""
    if device.type == "cpu":
        return open_lane(way, task, size, device=device, work=work), 0
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    lane = open_lane(way, task, size, device=device, work=work)
    for _ in range(3):
        lane.step()
    peak = torch.cuda.max_memory_allocated()
    del lane
    gc.collect()
    torch.cuda.empty_cache()
    return None, peak


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--size", choices=SIZES, action="append", help="may be given several times")
    parser.add_argument("--task", choices=("lora", "full"), action="append")
    parser.add_argument("--rounds", type=int, default=9, help="steps of each way, 5 or more")
    parser.add_argument("--out", type=Path, default=Path("step_cost.json"))
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    found: list[dict[str, Any]] = []
    for size in options.size or ["cpu"]:
        for task in options.task or ("lora", "full"):
            for way, figures in measure(task, size, rounds=options.rounds, device=device).items():
                found.append({"size": size, "task": task, "way": way, "device": name, **figures})
                shown = ", ".join(f"{key} {value:.4g}" for key, value in figures.items())
                print(f"{size} {task} {way}: {shown}", flush=True)
            gc.collect()
    options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
