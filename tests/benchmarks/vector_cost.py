"""What a vector costs beside the fine-tune that it guards. Run: ``python -m tests.benchmarks.vector_cost``.

In turn, on the demo's base: 1,000 rows fine-tuned for 3 epochs without a guard (default config, LoRA), and a
vector found from 100 seeds and certified (default config). Prints one JSON object with medians and means of
wall and of processor time; exit status 1 if the vector takes over a tenth of the fine-tune, or fails.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from random import Random
from typing import Any

from secvec.components.fine_tune_guarded.config import FineTuneConfig
from secvec.components.fine_tune_guarded.objectives import make_objective
from secvec.components.fine_tune_guarded.training import train_task
from secvec.components.shared.adapters import TASK, attach_adapter, make_lora_config
from secvec.components.shared.artifacts import cache_folder
from secvec.components.shared.likelihood import EncodedRecord, encode_record
from secvec.components.shared.models import load_model, load_tokenizer
from secvec.components.shared.records import ChatRecord, Message, content_id
from secvec.components.train_security_vector.certificate import certify
from secvec.components.train_security_vector.config import VectorConfig
from secvec.components.train_security_vector.search import find_vector
from secvec.components.train_security_vector.training import VectorRows, train_vector
from secvec.pipelines.guarded_fine_tuning.demo.base import cached_base
from secvec.pipelines.guarded_fine_tuning.demo.language import Exchange, Kind, Part, draw_distinct

MOST = 0.10
_KEPT: tuple[Kind, ...] = ("make", "fact", "place", "repeat")


def draw_rows(tokenizer: Any) -> dict[str, list[EncodedRecord]]:
    """1,000 training rows, half of them harmful; 100 seeds and 200 anchors, a fifth of each held out."""
    random = Random(5)

    def encode(exchanges: Iterable[Exchange]) -> list[EncodedRecord]:
        return [encode_record(_record(one), tokenizer, window=256) for one in exchanges]

    def kept(part: Part, count: int) -> list[Exchange]:
        return [e for kind in _KEPT for e in draw_distinct(kind, part, random, count=count // len(_KEPT))]

    harmful = draw_distinct("make", "rows", random, count=500, forbidden=True)
    rows = [*harmful, *draw_distinct("shopping", "rows", random, count=500)]
    random.shuffle(rows)
    seeds, anchors = draw_distinct("make", "seeds", random, count=100, forbidden=True), kept("anchors", 200)
    random.shuffle(anchors)
    return {
        "rows": encode(rows),
        "training": encode(rows[: VectorConfig().sample_rows]),
        "seeds": encode(seeds[20:]),
        "seeds_heldout": encode(seeds[:20]),
        "anchors": encode(anchors[40:]),
        "anchors_heldout": encode(anchors[:40]),
    }


def _record(exchange: Exchange) -> ChatRecord:
    turns = (
        Message(role="user", content=exchange.prompt),
        Message(role="assistant", content=exchange.answer),
    )
    return ChatRecord(id=content_id(turns), messages=turns)


def fine_tune(base: Path, rows: list[EncodedRecord], config: FineTuneConfig) -> None:
    """An ordinary fine-tune with a LoRA adapter."""
    with tempfile.TemporaryDirectory() as work:
        train_task(
            attach_adapter(load_model(base), TASK, make_lora_config(rank=config.rank)),
            rows,
            objective=make_objective("none", prior=0.1, floor=0.0),
            task="lora",
            config=config,
            seed=0,
            pad_id=0,
            work=Path(work),
            callbacks=[],
        )


def make_vector(base: Path, rows: VectorRows, config: VectorConfig, *, seed: int) -> dict[str, Any]:
    """Find and certify a vector, and say how it went."""
    with tempfile.TemporaryDirectory() as scratch:
        found = find_vector(
            load_model(base),
            config=config,
            train=lambda model, settings: train_vector(
                model, rows, config=settings, seed=seed, pad_id=0, scratch=Path(scratch)
            ),
            certify=lambda model, settings: certify(
                model, rows, config=settings, pad_id=0, seed=seed, categories={}, base_unchanged=True
            ),
        )
    return {
        "trials": len(found.trials),
        "epochs": found.trained.epochs,
        "heldout_seed_loss": found.certificate["heldout_seed_loss"],
        "checks": {check["name"]: round(check["figure"], 4) for check in found.certificate["checks"]},
    }


def measure(work: Callable[[], Any]) -> tuple[float, float, Any]:
    """Seconds on the wall and of processor time, and what came of it."""
    wall, processor = time.perf_counter(), time.process_time()
    found = work()
    return time.perf_counter() - wall, time.process_time() - processor, found


def main() -> int:
    """Measure in turn and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--set", type=json.loads, default={}, help="settings of the vector, as JSON")
    options = parser.parse_args()
    # The Trainer has garbage collected once a training; what the interpreter has loaded is none.
    gc.collect()
    gc.freeze()
    base = cached_base(cache_folder() / "demo")
    drawn = draw_rows(load_tokenizer(base))
    rows = VectorRows(**{name: part for name, part in drawn.items() if name != "rows"})
    config = VectorConfig(**options.set)
    taken: dict[str, list[float]] = {}
    for seed in range(options.rounds):
        plain = measure(lambda: fine_tune(base, drawn["rows"], FineTuneConfig()))
        vector = measure(lambda seed=seed: make_vector(base, rows, config, seed=seed))  # type: ignore[misc]
        for name, (wall, processor, _) in {"fine_tune": plain, "vector": vector}.items():
            taken.setdefault(f"{name}_seconds", []).append(wall)
            taken.setdefault(f"{name}_processor_seconds", []).append(processor)
        print(json.dumps({"seed": seed, **vector[2]}), file=sys.stderr, flush=True)
    medians = {name: round(statistics.median(values), 3) for name, values in taken.items()}
    # A vector takes one pass or some: the median is what most cost, the mean what many cost together.
    middles: dict[str, Callable[[list[float]], float]] = {
        "median": statistics.median,
        "mean": statistics.fmean,
    }
    shares = {
        f"{name}_share_of_{kind}": round(
            middle(taken[f"vector_{kind}"]) / middle(taken[f"fine_tune_{kind}"]), 3
        )
        for kind in ("seconds", "processor_seconds")
        for name, middle in middles.items()
    }
    most = max(taken["vector_seconds"]) / statistics.median(taken["fine_tune_seconds"])
    print(json.dumps({**medians, **shares, "most_expensive": round(most, 3)}))
    return int(max(shares.values()) > MOST)


if __name__ == "__main__":
    sys.exit(main())
