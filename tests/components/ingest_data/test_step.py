from __future__ import annotations

import csv
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
import pyarrow
import pytest
from pyarrow import parquet

from secvec.components.ingest_data import sources as ingest_sources
from secvec.components.ingest_data.config import IngestConfig, Sources
from secvec.components.ingest_data.quarantine import QuarantinedRow
from secvec.components.ingest_data.step import ingest_data
from secvec.components.shared.artifacts import fetch
from secvec.components.shared.manifest import digest_file
from secvec.components.shared.provenance import find_provenance, read_inputs
from secvec.components.shared.records import content_id, read_records
from secvec.components.shared.references import Reference
from secvec.components.shared.signing_keys import ensure_signing_key

MakeRows = Callable[[str, int], list[dict[str, str]]]
SPLITS = (
    "training.jsonl",
    "seeds.jsonl",
    "seeds_heldout.jsonl",
    "anchors.jsonl",
    "anchors_heldout.jsonl",
    "harm_prompts.jsonl",
    "skill_prompts.jsonl",
    "kept_prompts.jsonl",
)


def read_profile(dataset: Path) -> dict[str, Any]:
    profile: dict[str, Any] = json.loads((dataset / "profile.json").read_text())
    return profile


def read_quarantine(dataset: Path) -> list[QuarantinedRow]:
    lines = (dataset / "quarantine.jsonl").read_text().splitlines()
    return [QuarantinedRow.model_validate_json(line) for line in lines]


def test_a_dataset_is_signed_for_with_the_files_it_was_read_from(
    world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECVEC_PROVENANCE_KEY", str(ensure_signing_key(tmp_path / "builder")))
    folder = world.run()
    digest = digest_file(folder / "manifest.json")
    found = find_provenance(Reference(kind="dataset", uri=folder.as_uri(), digest=digest), step="ingest_data")
    assert found
    inputs = read_inputs(found)
    assert inputs["training_data 1"] == digest_file(Path(world.sources["training_data"][0]))
    assert {name.split()[0] for name in inputs} == {*world.sources, "code"}


def test_a_dataset_holds_every_set_and_its_profile(world: Any) -> None:
    dataset = world.run()
    found = {path.name for path in dataset.iterdir()}
    assert found == {*SPLITS, "quarantine.jsonl", "profile.json", "profile.html", "manifest.json"}
    first = read_records(dataset / "training.jsonl")[0]
    assert [(turn.role, turn.content) for turn in first.messages] == [
        ("user", "train 0"),
        ("assistant", "answer 0"),
    ]
    assert (first.id, first.source, first.line) == (content_id(first.messages), "train.jsonl", 1)
    harm = read_records(dataset / "harm_prompts.jsonl")
    assert [record.answer for record in harm] == [""] * 20
    assert (dataset / "quarantine.jsonl").read_bytes() == b""


def test_the_profile_counts_and_digests_what_is_there(world: Any, rows_of: MakeRows) -> None:
    world.write("train.jsonl", [*rows_of("train", 60), *rows_of("train", 5), "{", *rows_of("seed", 2)])
    dataset = world.run()
    profile = read_profile(dataset)
    training = profile["sources"]["training_data"]
    assert (training["rows"], training["used"], training["quarantined"]) == (68, 67, 1)
    assert (training["distinct_rows"], training["reasons"]) == (62, {"malformed_json": 1})
    assert training["files"][0]["columns_used"] == {"prompt + completion": 67}
    assert training["files"][0]["format"] == "JSONL"
    assert profile["overlap"]["training_data"]["harmful_seeds"] == {"same_rows": 2, "same_prompts": 2}
    for name, split in profile["splits"].items():
        content = (dataset / name).read_bytes()
        assert split == {
            "rows": content.count(b"\n"),
            "digest": f"sha256:{hashlib.sha256(content).hexdigest()}",
        }
    assert set(profile["splits"]) == {*SPLITS, "quarantine.jsonl"}


def test_rule_11_bad_rows_are_quarantined_with_number_and_reason(world: Any, rows_of: MakeRows) -> None:
    rows: list[Any] = rows_of("train", 60)
    rows[6] = '{"prompt": "x", '
    rows[20] = b'{"prompt": "\xff", "completion": "y"}'
    rows[33] = {"prompt": "no answer"}
    rows.append({"prompt": "x" * 1000, "completion": ""})
    world.write("train.jsonl", rows)
    dataset = world.run(max_bad_share=0.1)
    quarantine = read_quarantine(dataset)
    assert [(row.origin, row.source, row.line, row.reason) for row in quarantine] == [
        ("training_data", "train.jsonl", 7, "malformed_json"),
        ("training_data", "train.jsonl", 21, "not_utf8"),
        ("training_data", "train.jsonl", 34, "unknown_columns"),
        ("training_data", "train.jsonl", 61, "empty_text"),
    ]
    assert [row.raw[:30] for row in quarantine[:3]] == [
        '{"prompt": "x", ',
        '{"prompt": "\\xff", "completion',
        '{"prompt": "no answer"}',
    ]
    assert len(quarantine[3].raw) == 500
    training = read_records(dataset / "training.jsonl")
    assert {record.line for record in training} | {row.line for row in quarantine} == set(range(1, 62))


def test_a_row_that_would_be_lost_stops_the_step(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    read_row = ingest_sources.SourceReader._read_row

    def forget_third(self: Any, row: Any, count: Any) -> Any:
        record = read_row(self, row, count)
        return None if row.line == 3 and self.name == "training_data" else record

    monkeypatch.setattr(ingest_sources.SourceReader, "_read_row", forget_third)
    with pytest.raises(RuntimeError, match="training_data: 60 rows read, 59 used and 0 quarantined"):
        world.run()
    assert not (world.store / "dataset").exists()


def test_rows_stay_in_their_split_when_others_come(world: Any, rows_of: MakeRows) -> None:
    before = world.run()
    world.write("seeds.jsonl", [*rows_of("more", 30), *reversed(rows_of("seed", 40))])
    after = world.run()
    for name in ("seeds.jsonl", "seeds_heldout.jsonl"):
        old = {record.id for record in read_records(before / name)}
        assert old < {record.id for record in read_records(after / name)}


def test_held_out_shares_are_met(world: Any, rows_of: MakeRows) -> None:
    world.write("seeds.jsonl", rows_of("seed", 2000))
    world.write("anchors.jsonl", rows_of("anchor", 2000))
    dataset = world.run(anchors_heldout_share=0.5)
    rows = {name: split["rows"] for name, split in read_profile(dataset)["splits"].items()}
    assert rows["seeds.jsonl"] + rows["seeds_heldout.jsonl"] == 2000
    assert rows["seeds_heldout.jsonl"] == pytest.approx(400, abs=72)  # four standard deviations
    assert rows["anchors_heldout.jsonl"] == pytest.approx(1000, abs=90)


def test_answers_to_one_prompt_are_on_one_side(world: Any) -> None:
    world.write("seeds.jsonl", [{"prompt": f"p{i % 30}", "completion": f"c{i}"} for i in range(300)])
    dataset = world.run()
    learned, held_out = (
        {record.prompt for record in read_records(dataset / name)}
        for name in ("seeds.jsonl", "seeds_heldout.jsonl")
    )
    assert learned and held_out and not learned & held_out


def test_the_digest_does_not_depend_on_where_files_lie(world: Any, s3_bucket: str) -> None:
    sources = Sources.read(world.sources, where="sources")
    config = IngestConfig()
    local = ingest_data(sources=sources, store=str(world.store), config=config)
    assert ingest_data(sources=sources, store=str(world.store), config=config) == local
    moved: dict[str, Any] = {}
    bucket = urlsplit(s3_bucket).netloc
    for name in Sources.model_fields:
        (path,) = sources.uris(name)  # type: ignore[arg-type]
        boto3.client("s3").upload_file(path, bucket, f"in/{Path(path).name}")
        moved[name] = f"{s3_bucket}/in/{Path(path).name}"
    moved["training_data"] = [moved["training_data"]]
    remote = ingest_data(
        sources=Sources.read(moved, where="sources"), store=f"{s3_bucket}/store", config=config
    )
    assert remote.digest == local.digest
    assert remote.uri.startswith(s3_bucket)
    assert read_records(fetch(remote) / "seeds.jsonl") == read_records(fetch(local) / "seeds.jsonl")


def test_a_file_uri_is_its_path(world: Any) -> None:
    shutil.copy(world.folder / "kept.jsonl", world.folder / "k é.jsonl")
    world.sources["kept_prompts"] = str(world.folder / "k é.jsonl")
    by_path = world.run()
    world.sources["kept_prompts"] = (world.folder / "k é.jsonl").as_uri()
    assert world.run() == by_path


def test_every_format_gives_the_same_records(world: Any, rows_of: MakeRows) -> None:
    rows = rows_of("train", 60)
    (world.folder / "train.json").write_text(json.dumps(rows))
    parquet.write_table(pyarrow.Table.from_pylist(rows), world.folder / "train.parquet")
    with (world.folder / "train.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, ["prompt", "completion"])
        writer.writeheader()
        writer.writerows(rows)
    found = []
    for name in ("train.jsonl", "train.json", "train.parquet", "train.csv"):
        world.sources["training_data"] = [str(world.folder / name)]
        found.append([record.id for record in read_records(world.run() / "training.jsonl")])
    assert found[0] == found[1] == found[2] == found[3]


def test_several_training_files_are_read_in_order(world: Any, rows_of: MakeRows) -> None:
    other = world.write("more/train.jsonl", [{"goal": "g", "target": "t", "category": "toy", "label": 1}])
    world.sources["training_data"] = [*world.sources["training_data"], other]
    dataset = world.run()
    last = read_records(dataset / "training.jsonl")[-1]
    assert (last.source, last.line, last.category, last.label) == ("train.jsonl#2", 1, "toy", "1")
    files = read_profile(dataset)["sources"]["training_data"]["files"]
    assert [(file["name"], file["columns_used"]) for file in files] == [
        ("train.jsonl", {"prompt + completion": 60}),
        ("train.jsonl#2", {"goal + target": 1}),
    ]


def test_columns_can_be_mapped(world: Any) -> None:
    rows = [{"q": f"train {i}", "a": "yes", "kind": "toy", "lang": "en", "bad": i % 2} for i in range(10)]
    world.write("train.jsonl", rows)
    mapping = {"prompt": "q", "completion": "a", "category": "kind", "language": "lang", "label": "bad"}
    dataset = world.run(columns={"training_data": mapping})
    record = read_records(dataset / "training.jsonl")[1]
    assert (record.prompt[0].content, record.answer) == ("train 1", "yes")
    assert (record.category, record.language, record.label) == ("toy", "en", "1")


def test_kept_prompts_may_be_left_out(world: Any) -> None:
    world.sources["kept_prompts"] = ""
    dataset = world.run()
    assert (dataset / "kept_prompts.jsonl").read_bytes() == b""
    assert "kept_prompts" not in read_profile(dataset)["sources"]
