"""The dataset does not depend on how its files are cut, in which order and by how many processes read."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from secvec.components.ingest_data import reading, shards
from secvec.components.ingest_data.config import IngestConfig, Sources
from secvec.components.ingest_data.reading import Share
from secvec.components.ingest_data.step import ingest_data, read_share
from secvec.components.shared.artifacts import fetch
from secvec.components.shared.errors import SecvecError
from secvec.components.shared.records import read_records

MakeRows = Callable[[str, int], list[dict[str, str]]]


@pytest.fixture
def many(world: Any, rows_of: MakeRows, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A world whose training rows lie in three files of many shards, with bad and repeated rows."""
    for number in range(3):
        rows: list[Any] = rows_of(f"file {number} row", 300)
        rows[7::50] = ["{"] * len(rows[7::50])
        rows[20:30] = rows_of("repeated", 10)
        world.write(f"set/{number}.jsonl", rows)
    world.sources["training_data"] = [str(world.folder / "set" / f"{number}.jsonl") for number in range(3)]
    monkeypatch.setattr(shards, "_BLOCK", 256)
    cut_small(monkeypatch, 2048)
    return world


def cut_small(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(reading, "SHARD_BYTES", size)
    monkeypatch.setattr(shards.split_lines, "__kwdefaults__", {"size": size})


def digest(world: Any, **config: Any) -> str:
    settings = IngestConfig.read({"duplicates": "drop", **config}, where="config")
    sources = Sources.read(world.sources, where="sources")
    return ingest_data(sources=sources, store=str(world.store), config=settings).digest


def test_the_digest_is_the_same_however_files_are_cut_listed_and_read(
    many: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = digest(many, workers=1)
    cut_small(monkeypatch, 700)
    many.sources["training_data"].reverse()
    assert digest(many, workers=1) == first
    cut_small(monkeypatch, 1 << 20)
    many.sources["training_data"] = [str(many.folder / "set")]
    assert digest(many, workers=1) == first
    assert digest(many, workers=2) == first


def read_in_shares(world: Any, of: int, **config: Any) -> list[Any]:
    """Read each share as on a machine of its own."""
    settings = IngestConfig.read({"duplicates": "drop", "workers": 1, **config}, where="config")
    sources = Sources.read(world.sources, where="sources")
    numbers = range(of)
    store = str(world.store)
    return [
        read_share(sources=sources, store=store, config=settings, share=Share(number, of))
        for number in numbers
    ]


def put_together(world: Any, shares: list[Any]) -> str:
    settings = IngestConfig.read({"duplicates": "drop", "workers": 1}, where="config")
    sources = Sources.read(world.sources, where="sources")
    return ingest_data(sources=sources, store=str(world.store), config=settings, shares=shares).digest


# Three files: by two or three machines whole files are read, by five or more shards of them.
@pytest.mark.parametrize("of", [2, 3, 5, 40])
def test_shares_put_together_are_the_dataset_that_one_machine_makes(
    many: Any, of: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = digest(many, workers=1)
    shares = read_in_shares(many, of)
    read = [path.name for share in shares for path in fetch(share).iterdir() if path.is_dir()]
    assert len(read) == len(set(read))

    def refuse(self: Any) -> Any:
        if self._shard.source == "training_data":
            raise AssertionError(f"{self._shard.name} is read again")
        return whole(self)

    whole = shards._ShardReader.read
    monkeypatch.setattr(shards._ShardReader, "read", refuse)
    assert put_together(many, shares) == alone
    if of <= 3:
        assert len({len(list(fetch(share).iterdir())) for share in shares}) == (1 if of == 3 else 2)


def test_what_no_share_holds_is_read_by_the_step(many: Any) -> None:
    alone = digest(many, workers=1)
    assert put_together(many, read_in_shares(many, 3)[1:]) == alone
    # Shares of other settings hold nothing that fits.
    assert put_together(many, read_in_shares(many, 2, normalise="NFC")) == alone


def test_a_share_that_was_changed_is_refused(many: Any) -> None:
    share = read_in_shares(many, 2)[0]
    rows = next(fetch(share).rglob("training.jsonl"))
    rows.write_bytes(rows.read_bytes().replace(b"answer", b"ANSWER", 1))
    with pytest.raises(SecvecError, match=r"training\.jsonl"):
        put_together(many, [share])


def test_lines_are_numbered_through_a_file_that_is_cut(many: Any) -> None:
    dataset = many.run(workers=1)
    found = {
        (record.source, record.line): record.answer for record in read_records(dataset / "training.jsonl")
    }
    for number in range(3):
        lines = (many.folder / "set" / f"{number}.jsonl").read_text().splitlines()
        for at, line in enumerate(lines, start=1):
            if line != "{":
                assert found.pop((f"{number}.jsonl", at)) == json.loads(line)["completion"]
    assert found == {}


def test_repeated_rows_are_dropped_into_a_list_that_names_the_first(many: Any) -> None:
    dataset = many.run(duplicates="drop")
    profile = json.loads((dataset / "profile.json").read_text())["sources"]["training_data"]
    assert (profile["rows"], profile["quarantined"], profile["duplicates"]) == (900, 18, 20)
    assert profile["used"] == 900 - 18 - 20 == len(read_records(dataset / "training.jsonl"))
    listed = [json.loads(line) for line in (dataset / "duplicates.jsonl").read_text().splitlines()]
    assert list(listed[0].values()) == ["1.jsonl", 21, "exact", "0.jsonl", 21]
    assert len(listed) == 20


def test_training_rows_can_be_held_out_and_stay_there(many: Any, rows_of: MakeRows) -> None:
    before = many.run(training_heldout_share=0.3)
    held_out = {record.id for record in read_records(before / "training_heldout.jsonl")}
    learned = {record.id for record in read_records(before / "training.jsonl")}
    assert held_out and learned and not held_out & learned
    many.write("set/0.jsonl", [*rows_of("new", 50), *rows_of("file 0 row", 300)])
    after = many.run(training_heldout_share=0.3)
    assert held_out < {record.id for record in read_records(after / "training_heldout.jsonl")}


def test_rows_nearly_alike_are_found_in_any_script(world: Any) -> None:
    english = " ".join(f"word{number * number}" for number in range(80))
    japanese = "吾輩は猫である名前はまだ無いどこで生れたかとんと見当がつかぬ何でも薄暗いじめじめした所で"
    rows = [{"prompt": f"{english} {number}", "completion": "a"} for number in range(3)]
    rows += [{"prompt": japanese + ending, "completion": "はい"} for ending in "春夏秋"]
    rows += [{"prompt": f"{word} is {word} of {word}", "completion": word} for word in ("one", "two", "six")]
    world.write("train.jsonl", [*rows, rows[0]])
    dataset = world.run(near_duplicates="drop", duplicates="drop")
    listed = [json.loads(line) for line in (dataset / "duplicates.jsonl").read_text().splitlines()]
    assert [(row["kind"], row["line"], row["of_line"]) for row in listed] == [
        ("exact", 10, 1),
        ("near", 2, 1),
        ("near", 3, 1),
        ("near", 5, 4),
        ("near", 6, 4),
    ]
    assert [record.line for record in read_records(dataset / "training.jsonl")] == [1, 4, 7, 8, 9]
    profile = json.loads((dataset / "profile.json").read_text())["sources"]["training_data"]
    assert (profile["near_duplicates"], profile["duplicates"]) == (4, 5)


def test_runs_of_tokens_shared_with_a_suite_are_counted(world: Any) -> None:
    asked = "Which of the nine bridges over the river was built first and by whom was it paid for"
    japanese = "九つの橋のうち最初に架けられたのはどれか答えなさい"
    world.write("skill.jsonl", [{"prompt": text, "completion": "x"} for text in (asked, japanese)])
    rows = [
        {"prompt": f"Tell me. {asked.upper()}, please?", "completion": "y"},
        {"prompt": "another", "completion": f"前置き。{japanese}。"},
        {"prompt": asked[:40], "completion": "z"},
    ]
    world.write("train.jsonl", rows)
    found = json.loads((world.run() / "profile.json").read_text())["ngram_overlap"]["training_data"]
    assert found["skill_prompts"] == 2
    assert found["harm_prompts"] == 0


def test_the_profile_is_also_a_page_in_which_rows_are_text(world: Any, rows_of: MakeRows) -> None:
    nasty = {"prompt": "<script>alert(1)</script>\u202e <|im_start|>", "completion": "\u0007x"}
    world.write("train.jsonl", [nasty])
    dataset = world.run()
    page = (dataset / "profile.html").read_text(encoding="utf-8")
    assert "<script>" not in page and "&lt;script&gt;" in page and "\u202e" not in page
    figures = json.loads((dataset / "profile.json").read_text())["sources"]["training_data"]["figures"]
    found = ["control characters", "hidden characters", "scripts", "template marks"]
    assert list(figures["patterns"]) == found
    assert figures["languages"] == {"Latin": 1} and figures["turns"] == {"user assistant": 1}


def test_tokens_are_counted_by_the_models_tokenizer_and_over_long_rows_refused(world: Any) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    (world.folder / "model").mkdir()
    tokenizer.save(str(world.folder / "model" / "tokenizer.json"))
    rows = [{"prompt": "a " * count, "completion": "a"} for count in (2, 3, 9)]
    world.write("train.jsonl", rows * 10)
    settings = {"tokenizer": str(world.folder / "model"), "max_tokens": 5}
    counted = json.loads((world.run(**settings) / "profile.json").read_text())["sources"]["training_data"]
    assert counted["figures"]["tokens"] == {"4": 20, "16": 10}
    assert (counted["used"], counted["over_long"]) == (30, 10)
    dataset = world.run(**settings, over_long="quarantine", max_bad_share=0.5)
    reasons = json.loads((dataset / "profile.json").read_text())["sources"]["training_data"]["reasons"]
    assert reasons == {"over_long": 10}
    assert {record.line % 3 for record in read_records(dataset / "training.jsonl")} == {1, 2}


def test_a_file_that_changes_while_it_is_read_is_refused(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    read = shards._ShardReader._take

    def change(self: Any, record: Any) -> int:
        if record.source == "train.jsonl" and record.line == 1:
            with (world.folder / "train.jsonl").open("a") as stream:
                stream.write('{"prompt": "late", "completion": "row"}\n')
        return read(self, record)

    monkeypatch.setattr(shards._ShardReader, "_take", change)
    with pytest.raises(SecvecError, match="was changed while it was read; accepted: a file that stays"):
        world.run()


READ = """
import json, os, signal, sys
from secvec.components.ingest_data import reading, shards
from secvec.components.ingest_data.config import IngestConfig, Sources
from secvec.components.ingest_data.step import ingest_data

def main(sources, store, workers, left):
    reading.SHARD_BYTES, shards._BLOCK = 2048, 256
    shards.split_lines.__kwdefaults__["size"] = 2048
    read, count = shards._ShardReader.read, 0
    def read_or_die(self):
        nonlocal count
        count += 1
        if count == int(left):
            os.kill(os.getpid(), signal.SIGKILL)
        return read(self)
    shards._ShardReader.read = read_or_die
    config = IngestConfig.read({"duplicates": "drop", "workers": int(workers)}, where="config")
    sources = Sources.read(json.loads(sources), where="sources")
    print(ingest_data(sources=sources, store=store, config=config).digest, count)

if __name__ == "__main__":
    main(*sys.argv[1:])
"""


def make_command(world: Any, store: str, *, workers: int = 1, die_at: int = 0) -> list[str]:
    script = world.folder / "read.py"
    script.write_text(READ)
    return [sys.executable, str(script), json.dumps(world.sources), store, str(workers), str(die_at)]


def run(command: list[str], *, status: int = 0) -> list[str]:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stderr
    return done.stdout.split()[-2:]


def test_a_killed_run_goes_on_with_the_shards_it_finished(many: Any) -> None:
    store = str(many.store)
    expected, shards_in_all = run(make_command(many, f"{store}-2"))
    run(make_command(many, store, die_at=12), status=-signal.SIGKILL)
    assert not (many.store / "dataset").exists()
    found, read_again = run(make_command(many, store))
    assert found == expected
    assert int(read_again) == int(shards_in_all) - 11
    left = [path.name for path in (many.store / ".building").iterdir() if path.name.startswith("ingest-")]
    assert left == []


def test_workers_end_with_the_process_that_started_them(many: Any) -> None:
    process = subprocess.Popen(make_command(many, str(many.store), workers=2))
    deadline = time.monotonic() + 120
    while not (children := _children(process.pid)) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert children
    process.kill()
    process.wait()
    while not all(_is_dead(child) for child in children):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def _children(process: int) -> list[int]:
    try:
        return [int(one) for one in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    except OSError:
        return []


def _is_dead(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_processors_are_counted() -> None:
    assert 1 <= reading.count_processors() <= (os.cpu_count() or 1)
