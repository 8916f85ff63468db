"""One run of `ingest_data` for the benchmark; run as ``ours.py FOLDER OUT WORKERS [SHUFFLE]``."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

from secvec.components.ingest_data.config import IngestConfig, Sources
from secvec.components.ingest_data.step import ingest_data
from secvec.components.shared.artifacts import fetch_file
from tests.benchmarks.ingest.rows import write_small_sources

# The rival looks for no near duplicates and compares no runs of tokens: neither does this.
SETTINGS = {
    "duplicates": "drop",
    "training_heldout_share": 0.05,
    "max_bad_share": 0.05,
    "near_duplicates": "off",
    "ngram_tokens": 0,
}


def run(folder: Path, out: Path, workers: int, shuffle: int) -> dict[str, object]:
    """Do the work and return how many rows ended where, with the dataset's digest."""
    files = sorted(str(path) for path in folder.glob("*.jsonl"))
    if shuffle:
        random.Random(shuffle).shuffle(files)
    small = write_small_sources(out / "small")
    reference = ingest_data(
        sources=Sources.read({"training_data": files, **small}, where="sources"),
        store=str(out / "store"),
        config=IngestConfig.read({**SETTINGS, "workers": workers}, where="config"),
    )
    profile = json.loads(fetch_file(reference, "profile.json"))
    training, splits = profile["sources"]["training_data"], profile["splits"]
    return {
        "rows": training["rows"],
        "duplicates": training["duplicates"],
        "training": splits["training.jsonl"]["rows"],
        "held_out": splits["training_heldout.jsonl"]["rows"],
        "quarantine": training["quarantined"],
        "digest": reference.digest,
    }


if __name__ == "__main__":
    given = [*sys.argv[1:], "0"][:4]
    print(json.dumps(run(Path(given[0]), Path(given[1]), int(given[2]), int(given[3]))))
