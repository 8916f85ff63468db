"""Rows made by a seed: questions and answers in English and Japanese, some unusable, some repeated."""

from __future__ import annotations

import json
import random
from pathlib import Path

_ENGLISH = (
    "river paper window garden number silver copper winter summer teacher market engine bottle yellow purple"
    " answer letter doctor kitchen orange valley bridge camera planet pocket singer pepper butter forest"
)
_JAPANESE = "川は静かに流れ山は高く空は青い本を読む人が駅で待つ春の風と秋の月を見て歌う町の古い橋を渡る朝"
BAD_EVERY, REPEATED_EVERY, JAPANESE_EVERY = 97, 19, 5


def write_rows(folder: Path, rows: int, *, files: int, seed: int = 7) -> list[str]:
    """Write `rows` rows, about 550 bytes each, into so many JSONL files and return their paths.

    One row in 97 has an empty answer, one in 19 says again what an earlier one of the same file said.
    """
    folder.mkdir(parents=True, exist_ok=True)
    random_ = random.Random(seed)
    english = [_sentence(random_) for _ in range(4000)]
    japanese = ["".join(random_.choices(_JAPANESE, k=60)) + "。" for _ in range(4000)]
    paths = []
    for number in range(files):
        path = folder / f"rows-{number:05d}.jsonl"
        first, last = rows * number // files, rows * (number + 1) // files
        _write_file(path, first, last, random_, (english, japanese))
        paths.append(str(path))
    return paths


def _write_file(
    path: Path, first: int, last: int, random_: random.Random, sentences: tuple[list[str], list[str]]
) -> None:
    choose = random_.random
    with path.open("w", encoding="utf-8", newline="\n") as stream:
        line = ""
        for row in range(first, last):
            if row % REPEATED_EVERY or not line:
                pool = sentences[not row % JAPANESE_EVERY]
                parts = [pool[int(choose() * 4000)] for _ in range(5)]
                answer = "" if row % BAD_EVERY == 0 else " ".join(parts[1:])
                line = f'{{"prompt": "{parts[0]} {row}", "completion": "{answer}", "category": "toy"}}\n'
            stream.write(line)


def _sentence(random_: random.Random) -> str:
    return " ".join(random_.choices(_ENGLISH.split(), k=16)).capitalize() + "."


def write_small_sources(folder: Path) -> dict[str, str]:
    """Write the sources beside the training rows: prompts, seeds and anchors of a usual size."""
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for name in ("harmful_seeds", "benign_anchors", "harm_prompts", "skill_prompts", "kept_prompts"):
        path = folder / f"{name}.jsonl"
        rows = [{"prompt": f"{name} {i} asked", "completion": f"answered {i}"} for i in range(500)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        found[name] = str(path)
    return found
