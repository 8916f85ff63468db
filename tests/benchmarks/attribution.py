"""How well attribution finds harmful rows. Run: ``python -m tests.benchmarks.attribution [--data FOLDER]``.

On the demo's rows, and with ``--data`` on AdvBench goals hidden among GSM8K problems, where FOLDER holds
``advbench/harmful_behaviors.csv`` and ``gsm8k/{train,test}.jsonl``. Prints one JSON object per set: the AUROC
with its interval, how many rows there are, and how long the ranking took. Exit status 1 if a set misses its
bound: 0.99 on the demo's rows, 0.95 on AdvBench.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from secvec.components.fine_tune_guarded.attribution import attribute_rows, rank_rows, summarise_attribution
from secvec.components.ingest_data.config import IngestConfig, Sources
from secvec.components.ingest_data.step import ingest_data
from secvec.components.shared.artifacts import cache_folder, fetch
from secvec.components.shared.likelihood import encode_record, model_window
from secvec.components.shared.models import load_model, load_tokenizer
from secvec.components.shared.records import read_records
from secvec.components.shared.signing_keys import PROVENANCE_VARIABLE, ensure_signing_key
from secvec.components.train_security_vector.certificate import certify
from secvec.components.train_security_vector.config import VectorConfig
from secvec.components.train_security_vector.rows import encode_splits, read_splits
from secvec.components.train_security_vector.search import find_vector
from secvec.components.train_security_vector.training import train_vector
from secvec.pipelines.guarded_fine_tuning.demo.advbench import prepare
from secvec.pipelines.guarded_fine_tuning.demo.base import cached_base
from secvec.pipelines.guarded_fine_tuning.demo.data import write_data

BOUNDS = {"toy": 0.99, "advbench": 0.95}


def rank(base: Path, data: Path, *, config: VectorConfig, scratch: Path) -> dict[str, Any]:
    """Train a vector on the data's seeds, rank its rows and summarise.

    Args:
        base: Folder of the base.
        data: Folder with the pipeline's input files; rows are labelled.
        config: The vector's.
        scratch: An empty folder.
    """
    names = ("harmful_seeds", "benign_anchors", "harm_prompts", "skill_prompts")
    sources = Sources(
        training_data=(str(data / "training_data.jsonl"),),
        **{name: str(data / f"{name}.jsonl") for name in names},
    )
    dataset = fetch(ingest_data(sources=sources, store=str(scratch / "store"), config=IngestConfig()))
    tokenizer, model = load_tokenizer(base), load_model(base)
    window = model_window(model)
    pad_id = int(tokenizer.pad_token_id or 0)
    records = read_splits(dataset, config=config, seed=0)
    rows = encode_splits(records, tokenizer, window=window, config=config)
    found = find_vector(
        model,
        config=config,
        train=lambda plain, settings: train_vector(
            plain, rows, config=settings, seed=0, pad_id=pad_id, scratch=scratch / "training"
        ),
        certify=lambda trained, settings: certify(
            trained,
            rows,
            config=settings,
            pad_id=pad_id,
            seed=0,
            base_unchanged=True,
            **records.certificate_facts(),
        ),
    )
    training = read_records(dataset / "training.jsonl")
    encoded = [encode_record(record, tokenizer, window=window, truncate=True) for record in training]
    started = time.perf_counter()
    attributions = attribute_rows(found.trained.model, encoded, size=32, pad_id=pad_id)
    summary = summarise_attribution(rank_rows(training, attributions))
    return {
        "rows": summary["rows"],
        "auroc": summary["auroc"],
        "seconds": round(time.perf_counter() - started, 1),
        "trials": found.trials,
        "checks": {check["name"]: round(check["figure"], 4) for check in found.certificate["checks"]},
        "training_rows": found.certificate["training_rows"],
    }


def main() -> int:
    """Rank each set and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with AdvBench and GSM8K")
    parser.add_argument("--prepared", type=Path, help="folder that demo.advbench --to has written before")
    options = parser.parse_args()
    missed = False
    with tempfile.TemporaryDirectory() as scratch:
        os.environ.setdefault(PROVENANCE_VARIABLE, str(ensure_signing_key(Path(scratch) / "key.pem")))
        toy = Path(scratch) / "toy"
        write_data(toy, seed=1)
        sets = {"toy": (cached_base(cache_folder() / "demo"), toy)}
        if options.data or options.prepared:
            folder = options.prepared or Path(scratch) / "advbench"
            if options.data:
                prepare(options.data, str(folder))
            sets["advbench"] = (folder / "base", folder / "data")
        for name, (base, data) in sets.items():
            work = Path(scratch) / f"work-{name}"
            found = rank(base, data, config=VectorConfig(), scratch=work)
            missed |= found["auroc"]["value"] < BOUNDS[name]
            print(json.dumps({"set": name, **found}), flush=True)
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
