from __future__ import annotations

import gzip
import http.server
import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

import boto3
import pyarrow
import pytest
import zstandard
from pyarrow import feather, ipc, parquet

from secvec.components.shared.errors import SecvecError
from secvec.components.shared.records import read_records

MakeRows = Callable[[str, int], list[dict[str, str]]]
JAPANESE = [{"prompt": f"質問{i}は何ですか。", "completion": f"答えは{i}です。ｶﾞｷﾞ"} for i in range(30)]


def read_training(world: Any, *uris: str, **config: Any) -> list[tuple[str, str, str]]:
    world.sources["training_data"] = list(uris)
    dataset = world.run(**config)
    records = read_records(dataset / "training.jsonl")
    return [(record.source, record.prompt[0].content, record.answer) for record in records]


def profile_of(world: Any) -> dict[str, Any]:
    (path,) = world.store.glob("dataset/*/profile.json")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def to_lines(rows: list[dict[str, str]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


@pytest.mark.parametrize(
    ("name", "pack"),
    [("a.jsonl.gz", gzip.compress), ("a.jsonl.zst", zstandard.compress), ("a.json.GZ", gzip.compress)],
)
def test_packed_files_are_unpacked(world: Any, name: str, pack: Callable[[bytes], bytes]) -> None:
    (world.folder / name).write_bytes(pack(to_lines(JAPANESE)))
    found = read_training(world, str(world.folder / name))
    assert found == [(name, row["prompt"], row["completion"]) for row in JAPANESE]
    file = profile_of(world)["sources"]["training_data"]["files"][0]
    assert file["format"].split()[-1] in ("gzip", "zstd")


def test_tables_are_read_in_every_form(world: Any) -> None:
    table = pyarrow.Table.from_pylist(JAPANESE)
    feather.write_feather(table, world.folder / "a.feather")
    parquet.write_table(table, world.folder / "b.parquet")
    with ipc.new_stream(str(world.folder / "c.arrow"), table.schema) as stream:
        stream.write_table(table)
    (world.folder / "d.tsv").write_text(
        "prompt\tcompletion\n" + "".join(f"{r['prompt']}\t{r['completion']}\n" for r in JAPANESE)
    )
    expected = [(row["prompt"], row["completion"]) for row in JAPANESE]
    for name in ("a.feather", "b.parquet", "c.arrow", "d.tsv"):
        found = read_training(world, str(world.folder / name))
        assert [row[1:] for row in found] == expected, name


def test_a_folder_is_read_in_the_order_of_names_and_says_what_it_leaves(
    world: Any, rows_of: MakeRows
) -> None:
    for name in ("b/2.jsonl", "b/10.jsonl", "a.jsonl"):
        world.write(f"set/{name}", rows_of(name, 5))
    for name in ("README.md", "dataset_info.json", ".cache/x.jsonl"):
        world.write(f"set/{name}", ["{}"])
    found = read_training(world, str(world.folder / "set"))
    assert [row[0] for row in found[::5]] == ["a.jsonl", "b/10.jsonl", "b/2.jsonl"]
    training = profile_of(world)["sources"]["training_data"]
    assert training["ignored_files"] == [".cache/x.jsonl", "README.md", "dataset_info.json"]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("set/*.jsonl", ["a.jsonl", "b.jsonl"]),
        ("set/[ab].jsonl", ["a.jsonl", "b.jsonl"]),
        ("set/?.jsonl", ["a.jsonl", "b.jsonl"]),
        ("set/**/*.jsonl", ["a.jsonl", "b.jsonl", "c/d.jsonl"]),
        ("s*t/c/*.jsonl", ["set/c/d.jsonl"]),
    ],
)
def test_patterns_choose_files(world: Any, rows_of: MakeRows, pattern: str, names: list[str]) -> None:
    for name in ("a.jsonl", "b.jsonl", "c/d.jsonl"):
        world.write(f"set/{name}", rows_of(name, 3))
    found = read_training(world, str(world.folder / pattern))
    assert [row[0] for row in found[::3]] == names


def test_a_bucket_is_read_like_a_folder(world: Any, rows_of: MakeRows, s3_bucket: str) -> None:
    bucket = urlsplit(s3_bucket).netloc
    for name in ("set/b.jsonl", "set/c/a.jsonl", "other/x.jsonl"):
        path = world.write(name, rows_of(name, 3))
        boto3.client("s3").upload_file(path, bucket, name)
    by_folder = read_training(world, f"{s3_bucket}/set")
    assert [row[0] for row in by_folder[::3]] == ["b.jsonl", "c/a.jsonl"]
    assert read_training(world, f"{s3_bucket}/set/") == by_folder
    assert [row[0] for row in read_training(world, f"{s3_bucket}/set/*.jsonl")[::3]] == ["b.jsonl"]


@pytest.mark.parametrize("name", ["empty", "only", "none-*.jsonl", "absent/*.jsonl"])
def test_a_folder_without_rows_is_refused(world: Any, name: str) -> None:
    (world.folder / "empty").mkdir()
    world.write("only/README.md", ["x"])
    world.sources["training_data"] = [str(world.folder / name)]
    with pytest.raises(SecvecError, match=r"(has no file with rows among its|no such folder; accepted: )"):
        world.run()


def test_a_folder_with_the_name_of_a_file_is_a_folder(world: Any, rows_of: MakeRows) -> None:
    world.write("rows.jsonl/a.jsonl", rows_of("a", 4))
    assert len(read_training(world, str(world.folder / "rows.jsonl"))) == 4


def test_mixed_shapes_in_a_folder_are_each_detected(world: Any) -> None:
    world.write("set/a.jsonl", [{"prompt": "p", "completion": "c"}])
    world.write("set/b.jsonl", [{"question": "q", "answer": "a"}, {"goal": "g", "target": "t"}])
    assert [row[1:] for row in read_training(world, str(world.folder / "set"))] == [
        ("p", "c"), ("q", "a"), ("g", "t"),
    ]  # fmt: skip
    files = profile_of(world)["sources"]["training_data"]["files"]
    assert [file["columns_used"] for file in files] == [
        {"prompt + completion": 1},
        {"question + answer": 1, "goal + target": 1},
    ]


@pytest.mark.parametrize("encoding", ["cp932", "euc_jp", "iso2022_jp", "utf-16"])
def test_named_encodings_are_read(world: Any, encoding: str) -> None:
    rows = [{**row, "completion": row["completion"].replace("ｶﾞｷﾞ", "")} for row in JAPANESE]
    (world.folder / "a.jsonl").write_bytes(to_lines(rows).decode().encode(encoding))
    found = read_training(world, str(world.folder / "a.jsonl"), encodings={"training_data": encoding})
    assert [row[1:] for row in found] == [(row["prompt"], row["completion"]) for row in rows]
    assert profile_of(world)["sources"]["training_data"]["files"][0]["format"] == f"JSONL {encoding}"


def test_a_file_of_another_encoding_than_was_said_is_refused(world: Any) -> None:
    (world.folder / "a.jsonl").write_bytes(to_lines(JAPANESE))
    world.sources["training_data"] = [str(world.folder / "a.jsonl")]
    with pytest.raises(SecvecError, match="is not cp932 near byte 0: "):
        world.run(encodings={"training_data": "cp932"})


def test_text_is_normalised_where_that_is_asked_for_and_counted(world: Any) -> None:
    path = str(world.folder / "a.jsonl")
    Path(path).write_bytes(to_lines(JAPANESE))
    assert read_training(world, path)[0][2].endswith("ｶﾞｷﾞ")
    shutil.rmtree(world.store)
    assert read_training(world, path, normalise="NFKC")[0][2].endswith("ガギ")
    assert profile_of(world)["sources"]["training_data"]["normalised"] == len(JAPANESE)
    assert profile_of(world)["config"]["normalise"] == "NFKC"


class _Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub as is asked for: one data set of two files."""

    FILES: ClassVar = {"README.md": b"# x", "data/train.jsonl": to_lines(JAPANESE)}
    COMMIT = "a" * 40

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def _answer(self, *, body: bool) -> None:
        path = urlsplit(self.path).path
        headers = {"X-Repo-Commit": self.COMMIT, "ETag": f'"{self.COMMIT}"'}
        name = path.partition(f"/resolve/{self.COMMIT}/")[2]
        if path.startswith("/api/datasets/owner/name"):
            siblings = [{"rfilename": name} for name in self.FILES]
            data = json.dumps({"id": "owner/name", "sha": self.COMMIT, "siblings": siblings}).encode()
        elif name in self.FILES:
            data = self.FILES[name]
        else:
            self.send_error(404)
            return
        self.send_response(200)
        for key, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


def test_a_data_set_of_the_hub_is_read_at_one_commit(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    try:
        found = read_training(world, "hf://datasets/owner/name")
    finally:
        server.shutdown()
        server.server_close()
    assert found == [("data/train.jsonl", row["prompt"], row["completion"]) for row in JAPANESE]
    assert profile_of(world)["sources"]["training_data"]["ignored_files"] == ["README.md"]


@pytest.mark.parametrize("uri", ["hf://models/a/b", "hf://datasets/a", "hf://datasets/a/b/../../c"])
def test_other_places_of_the_hub_are_refused(world: Any, uri: str) -> None:
    world.sources["training_data"] = [uri]
    with pytest.raises(SecvecError, match="is no data set of the hub; accepted: hf://datasets/owner/name"):
        world.run()
