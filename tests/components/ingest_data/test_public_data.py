"""Every row of real public files is accounted for; where the files are absent, the tests skip."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

import pytest

from secvec.components.shared.errors import SecvecError
from secvec.components.shared.records import read_records

DATA = Path(os.environ.get("SECVEC_SHARED_DATA", Path(__file__).parents[4] / "shared" / "data"))


def public_file(name: str) -> Path:
    path = DATA / name
    if not path.is_file():
        pytest.skip(f"{path} is absent; set SECVEC_SHARED_DATA to the folder of public data")
    return path


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def read_json_lines(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def read_pairs(path: Path) -> list[tuple[str, str]]:
    return [(record.prompt[0].content, record.answer) for record in read_records(path)]


def count(dataset: Path, name: str) -> tuple[int, int, int]:
    source = json.loads((dataset / "profile.json").read_text())["sources"][name]
    return source["rows"], source["used"], source["quarantined"]


def test_every_gsm8k_row_is_accounted_for(world: Any) -> None:
    train, test = public_file("gsm8k/train.jsonl"), public_file("gsm8k/test.jsonl")
    world.sources |= {"training_data": [str(train)], "skill_prompts": str(test)}
    dataset = world.run()
    assert count(dataset, "training_data") == (7473, 7473, 0)
    assert count(dataset, "skill_prompts") == (1319, 1319, 0)
    for path, split in ((train, "training.jsonl"), (test, "skill_prompts.jsonl")):
        expected = [(row["question"], row["answer"]) for row in read_json_lines(path)]
        assert read_pairs(dataset / split) == expected


def test_every_advbench_row_is_accounted_for(world: Any) -> None:
    path = public_file("advbench/harmful_behaviors.csv")
    world.sources["harmful_seeds"] = str(path)
    dataset = world.run()
    assert count(dataset, "harmful_seeds") == (520, 520, 0)
    found = read_pairs(dataset / "seeds.jsonl") + read_pairs(dataset / "seeds_heldout.jsonl")
    assert sorted(found) == sorted((row["goal"], row["target"]) for row in read_csv(path))


@pytest.mark.parametrize("name", ["xstest_v2_completions_gpt4", "xstest_v2_completions_llama2orig"])
def test_every_xstest_row_is_accounted_for(world: Any, name: str) -> None:
    completions = public_file(f"xstest/{name}.csv")
    world.sources["training_data"] = [str(completions)]
    dataset = world.run(columns={"training_data": {"category": "type", "label": "final_label"}})
    assert count(dataset, "training_data") == (450, 450, 0)
    rows = read_csv(completions)
    assert read_pairs(dataset / "training.jsonl") == [(row["prompt"], row["completion"]) for row in rows]
    assert [record.label for record in read_records(dataset / "training.jsonl")] == [
        row["final_label"] for row in rows
    ]


def test_xstest_answers_may_not_be_learned_where_its_prompts_are_asked(world: Any) -> None:
    world.sources["harm_prompts"] = str(public_file("xstest/xstest_prompts.csv"))
    world.sources["training_data"] = [str(public_file("xstest/xstest_v2_completions_gpt4.csv"))]
    # One prompt was reworded between the two files.
    with pytest.raises(SecvecError, match="asks what harm_prompts asks in line 2, 449 such rows in all"):
        world.run()


def test_xstest_prompts_are_asked_alone(world: Any) -> None:
    path = public_file("xstest/xstest_prompts.csv")
    world.sources["harm_prompts"] = str(path)
    dataset = world.run(columns={"harm_prompts": {"category": "type"}})
    assert count(dataset, "harm_prompts") == (450, 450, 0)
    found = [
        (record.messages[0].content, record.category, record.label)
        for record in read_records(dataset / "harm_prompts.jsonl")
    ]
    assert found == [(row["prompt"], row["type"], row["label"]) for row in read_csv(path)]


@pytest.mark.parametrize(
    ("name", "origin"),
    [
        ("gsm8k/train.jsonl", "training_data"),
        ("gsm8k/test.jsonl", "training_data"),
        ("advbench/harmful_behaviors.csv", "training_data"),
        ("xstest/xstest_prompts.csv", "harm_prompts"),
        ("xstest/xstest_v2_completions_gpt4.csv", "training_data"),
        ("xstest/xstest_v2_completions_llama2orig.csv", "training_data"),
    ],
)
def test_in_is_used_and_quarantined_and_duplicates(world: Any, name: str, origin: str) -> None:
    path = public_file(name)
    world.sources[origin] = [str(path)] if origin == "training_data" else str(path)
    dataset = world.run(duplicates="drop", near_duplicates="drop")
    rows = read_json_lines(path) if name.endswith(".jsonl") else read_csv(path)
    found = json.loads((dataset / "profile.json").read_text())["sources"][origin]
    assert found["rows"] == len(rows)
    assert found["rows"] == found["used"] + found["quarantined"] + found["duplicates"]
    split = "training.jsonl" if origin == "training_data" else "harm_prompts.jsonl"
    assert found["used"] == len(read_records(dataset / split))
    listed = [json.loads(line) for line in (dataset / "duplicates.jsonl").read_text().splitlines()]
    assert len(listed) == found["duplicates"]
    print(name, found["rows"], found["used"], found["quarantined"], found["duplicates"])
