"""The same work with `datasets`: load_dataset, map, filter, save_to_disk; ``rival.py FOLDER OUT PROCESSES``.

It checks, hashes and splits rows as `ingest_data` does, drops equal rows and keeps the refused ones apart.
The functions are the plainest that do this, in batches, with the same JSON and hash libraries.
"""

from __future__ import annotations

import hashlib
import json
import sys
import unicodedata
from json.encoder import encode_basestring_ascii as quote
from pathlib import Path
from typing import Any

import orjson

HELD_OUT = 0.05


def _fold(text: str) -> str:
    if text.isascii():
        return " ".join(text.lower().split())
    return " ".join(unicodedata.normalize("NFC", text.casefold()).split())


def read_batch(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Check rows; give messages, content id, held-out mark and the reason why each is refused, if it is."""
    found: dict[str, list[Any]] = {"id": [], "messages": [], "held_out": [], "reason": []}
    for prompt, completion in zip(batch["prompt"], batch["completion"], strict=True):
        reason = ""
        if not isinstance(prompt, str) or not isinstance(completion, str):
            reason = "not_text"
        elif not prompt.strip() or not completion.strip():
            reason = "empty_text"
        turns = [["user", prompt], ["assistant", completion]]
        asked = hashlib.sha256(f'[["user", {quote(_fold(prompt or ""))}]]'.encode()).digest()
        found["id"].append("sha256:" + hashlib.sha256(orjson.dumps(turns)).hexdigest())
        found["messages"].append([{"role": role, "content": content} for role, content in turns])
        found["held_out"].append(int.from_bytes(asked[:8]) < HELD_OUT * 2**64)
        found["reason"].append(reason)
    return found


def run(folder: Path, out: Path, processes: int) -> dict[str, int]:
    """Do the work and return how many rows ended where."""
    from datasets import disable_caching, load_dataset

    disable_caching()
    files = sorted(str(path) for path in folder.glob("*.jsonl"))
    many = processes if processes > 1 else None
    rows = load_dataset("json", data_files=files, split="train", num_proc=many, cache_dir=str(out / "cache"))
    total = len(rows)
    rows = rows.map(
        read_batch,
        batched=True,
        num_proc=many,
        remove_columns=["prompt", "completion"],
        load_from_cache_file=False,
    )
    refused = rows.filter(
        lambda reasons: [bool(one) for one in reasons], input_columns="reason", batched=True, num_proc=many
    )
    used = rows.filter(
        lambda reasons: [not one for one in reasons], input_columns="reason", batched=True, num_proc=many
    )
    seen: set[bytes] = set()

    def is_new(ids: list[str]) -> list[bool]:
        found = []
        for one in ids:
            digest = bytes.fromhex(one[7:])
            found.append(digest not in seen)
            seen.add(digest)
        return found

    # What was seen before can only be known by one process.
    once = used.filter(is_new, input_columns="id", batched=True)
    parts = {
        "training": once.filter(
            lambda marks: [not one for one in marks], input_columns="held_out", batched=True, num_proc=many
        ),
        "held_out": once.filter(lambda marks: marks, input_columns="held_out", batched=True, num_proc=many),
        "quarantine": refused,
    }
    for name, part in parts.items():
        part.save_to_disk(str(out / name), num_proc=many)
    counts = {name: len(part) for name, part in parts.items()}
    return {"rows": total, "duplicates": len(used) - len(once), **counts}


if __name__ == "__main__":
    print(json.dumps(run(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))))
