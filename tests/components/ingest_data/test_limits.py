"""Bombs and traversal: each limit, reached; what is refused costs neither memory nor time."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import zstandard
from pyarrow import parquet

from secvec.components.ingest_data import files as ingest_files
from secvec.components.ingest_data.config import IngestConfig, Limits
from secvec.components.ingest_data.files import SourceFile, bring_file, find_files
from secvec.components.ingest_data.rows import Row, open_rows
from secvec.components.shared.errors import SecvecError
from secvec.components.shared.storage import check_name

MakeRows = Callable[[str, int], list[dict[str, str]]]
GIB = 1 << 30
# Reads one file as the step does, in a process of its own, and prints what became of it and the memory taken.
READ = """
import json, re, sys
from secvec.components.ingest_data.config import IngestConfig
from secvec.components.ingest_data.files import bring_file, SourceFile
from secvec.components.ingest_data.rows import open_rows
from secvec.components.shared.errors import SecvecError
path = sys.argv[1]
config, rows, reasons, error = IngestConfig(), 0, [], ""
try:
    with bring_file(SourceFile(path, path.rpartition("/")[2]), "training_data", config=config) as local:
        for row in open_rows(local.path, local.format, where="x", limits=config.limits)[1]:
            rows += 1
            if row.refused:
                reasons.append(row.refused.reason)
except SecvecError as raised:
    error = str(raised)
# not ru_maxrss, which a process inherits from the one that started it
peak = int(re.search(r"VmHWM:\\s+([0-9]+) kB", open("/proc/self/status").read())[1]) << 10
print(json.dumps([rows, reasons[:3], error, peak]))
"""


def read_apart(path: Path) -> tuple[int, list[str], str]:
    done = subprocess.run([sys.executable, "-c", READ, str(path)], capture_output=True, text=True, check=True)
    rows, reasons, error, peak = json.loads(done.stdout)
    assert peak < GIB, f"{peak >> 20} MiB"
    return rows, reasons, error


def read(path: Path, **limits: Any) -> list[Row]:
    file_format = ingest_files.check_format(path.name, where="x")
    return list(open_rows(path, file_format, where=path.name, limits=Limits(**limits))[1])


def reasons(rows: list[Row]) -> list[tuple[int, str]]:
    return [(row.line, row.refused.reason) for row in rows if row.refused]


@pytest.mark.parametrize(("ending", "pack"), [("gz", gzip.compress), ("zst", zstandard.compress)])
def test_a_packed_bomb_is_refused_before_it_has_unpacked(
    tmp_path: Path, ending: str, pack: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / f"rows.jsonl.{ending}"
    # Members and frames may follow each other, so that a small file stands for 1 GiB.
    path.write_bytes(pack(bytes(4 << 20)) * 256)
    rows, _, error = read_apart(path)
    assert rows == 0
    assert "unpacks to more than" in error and "limits.max_ratio = 200" in error


def _write_gzip(path: Path, rows: int) -> None:
    path.write_bytes(gzip.compress((b'{"a": "' + b"x" * 1014 + b'"}\n') * rows))


def _write_arrow(path: Path, rows: int) -> None:
    table = pyarrow.table({"a": pyarrow.array(["x" * 1024] * rows)})
    with pyarrow.OSFile(str(path), "wb") as out, pyarrow.ipc.new_file(out, table.schema) as writer:
        writer.write_table(table)


@pytest.mark.parametrize(
    ("name", "write"), [("rows.jsonl.gz", _write_gzip), ("rows.arrow", _write_arrow)], ids=["gzip", "Arrow"]
)
def test_a_file_may_unpack_to_so_many_bytes(
    tmp_path: Path, name: str, write: Callable[[Path, int], None]
) -> None:
    path = tmp_path / name
    config = IngestConfig(limits=Limits(max_unpacked_bytes=1 << 20))

    def count(rows: int) -> int:
        write(path, rows)
        with bring_file(SourceFile(str(path), name), "training_data", config=config) as local:
            return len(list(open_rows(local.path, local.format, where="x", limits=config.limits)[1]))

    assert count(1024) == 1024
    with pytest.raises(SecvecError, match=r"more than 1048576 bytes.*max_unpacked_bytes = 1048576"):
        count(1025)


@pytest.mark.parametrize("where", ["", "/*.jsonl"], ids=["folder", "pattern"])
def test_a_folder_may_hold_so_many_files(tmp_path: Path, where: str) -> None:
    for number in range(3):
        (tmp_path / f"{number}.jsonl").write_text("{}\n")
    (tmp_path / "README.md").write_text("no rows")

    def find(most: int) -> list[SourceFile]:
        config = IngestConfig(limits=Limits(max_files=most))
        return find_files("training_data", f"{tmp_path}{where}", config=config)

    assert len(find(3)) == 3
    with pytest.raises(SecvecError, match=r"has 3 files; accepted: at most limits\.max_files = 2"):
        find(2)


@pytest.mark.parametrize("ending", ["gz", "zst"])
@pytest.mark.parametrize("damage", ["cut", "foreign", "flipped"])
def test_a_damaged_packed_file_is_refused(tmp_path: Path, ending: str, damage: str) -> None:
    pack = {
        "gz": gzip.compress,
        "zst": lambda data: zstandard.ZstdCompressor(write_checksum=True).compress(data),
    }
    data = bytearray(pack[ending](b"".join(b'{"a": %d}\n' % (i * i) for i in range(9999))))  # type: ignore[operator]
    if damage == "cut":
        data = data[:-9]
    elif damage == "foreign":
        data = bytearray(b"PK\x03\x04" + bytes(99))
    else:
        data[len(data) // 2] ^= 4
    path = tmp_path / f"rows.jsonl.{ending}"
    path.write_bytes(data)
    with (
        pytest.raises(SecvecError, match=r"cannot be unpacked: .*; accepted: whole (gzip|zstd)"),
        bring_file(SourceFile(str(path), path.name), "training_data", config=IngestConfig()),
    ):
        pass


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.json"])
def test_100_mb_in_one_line_spoil_one_row_or_one_file(tmp_path: Path, name: str) -> None:
    long = b"x" * (100 << 20)
    good = b'{"prompt": "a", "completion": "b"}'
    content = {
        "rows.jsonl": good + b'\n{"prompt": "' + long + b'"}\n' + good + b"\n",
        "rows.csv": b"prompt,completion\na,b\n" + long + b",b\na,b\n",
        "rows.json": b"[" + good + b', {"prompt": "' + long + b'"}, ' + good + b"]",
    }[name]
    path = tmp_path / name
    path.write_bytes(content)
    rows, found, error = read_apart(path)
    if name == "rows.json":
        assert (rows, found) == (1, []) and "item 2 has more than" in error
    else:
        assert (rows, found, error) == (3, ["too_long"], "")


@pytest.mark.slow
def test_an_open_quote_does_not_swallow_a_large_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b'prompt,completion\n"a,b\n' + b"c,d\n" * (20 << 20))
    _, _, error = read_apart(path)
    assert "bytes from line 2" in error and "quotes that close" in error


@pytest.mark.slow
def test_a_dictionary_that_repeats_a_long_text_takes_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    longs = pyarrow.DictionaryArray.from_arrays(
        pyarrow.array([0] * 20_000, pyarrow.int32()), pyarrow.array(["y" * (4 << 20)])
    )
    parquet.write_table(pyarrow.table({"prompt": longs}), path, compression="zstd")
    assert path.stat().st_size < 1 << 20
    rows, _, error = read_apart(path)
    assert rows < 100 and "unpacks to more than 268435456 bytes" in error


def test_a_parquet_group_that_unpacks_to_too_much_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    texts = pyarrow.array(["z" * (1 << 20)] * 200)
    parquet.write_table(
        pyarrow.table({"prompt": texts}),
        path,
        compression="zstd",
        use_dictionary=False,
        data_page_version="2.0",
    )
    with pytest.raises(SecvecError, match=r"row group 1 unpacks to \d+ bytes from a file of "):
        read(path)


def test_a_parquet_footer_that_announces_too_much_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    path.write_bytes(b"PAR1" + bytes(64) + (2**31 - 1).to_bytes(4, "little") + b"PAR1")
    with pytest.raises(SecvecError, match="announces a footer of 2147483647 bytes"):
        read(path)


def test_rows_over_a_limit_are_refused_alone(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    lines = [
        '{"a": "b"}',
        '{"a": "%s"}' % ("c" * 2000),
        '{"a": %s}' % ("[" * 5 + "]" * 5),
        '{"a": "[[[[[[["}',
    ]
    path.write_text("\n".join([*lines, json.dumps(dict.fromkeys("abcdef", 1)), '{"a": "z"}']))
    found = read(path, max_row_bytes=1024, max_json_depth=4, max_columns=5)
    assert reasons(found) == [(2, "too_long"), (3, "malformed_json"), (5, "malformed_json")]
    assert [row.values for row in found if not row.refused] == [{"a": "b"}, {"a": "[[[[[[["}, {"a": "z"}]


def test_long_rows_of_a_table_are_refused_alone(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.table({"a": ["x", "y" * 5000, "z"]}), path)
    assert reasons(read(path, max_row_bytes=1024)) == [(2, "too_long")]


def test_a_key_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(
        '{"a": "1", "a": "2"}\n{"a": "\\"a\\": 1"}\n{"a": ["a", "a"]}\n{"a": 1, "b": {"c": 1, "c": 2}}\n'
    )
    assert [(row.line, row.refused and row.refused.detail) for row in read(path)] == [
        (1, "key 'a' is there twice"),
        (2, None),
        (3, None),
        (4, None),
    ]


def test_a_quoted_line_end_at_the_end_of_a_file_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b'prompt,completion\na,"b\n\n"\nc,"d\n"')
    assert [(row.line, row.values) for row in read(path)] == [
        (2, {"prompt": "a", "completion": "b\n\n"}),
        (5, {"prompt": "c", "completion": "d\n"}),
    ]


def _traversals() -> list[str]:
    parts = ["..", ".", "", "a/..", "a/../..", "..\\..", "\\..", "a\0b", "a\nb", "\x7f"]
    names = [
        f"{before}{part}{after}" for part in parts for before in ("", "/", "a/", "../") for after in ("/x",)
    ]
    names += [f"{part}/{part}/x.jsonl" for part in parts] + [f"a/b/{part}/rows.jsonl" for part in parts]
    deep = ["/".join([".."] * depth + ["etc", "passwd.jsonl"]) for depth in range(1, 61)]
    turns = ["/".join(["a"] * depth + [".."] * (depth + 1) + ["x.jsonl"]) for depth in range(1, 61)]
    absolute = [f"/{name}.jsonl" for name in ("etc/passwd", "root/.ssh/id", "proc/self/environ", "dev/zero")]
    found = list(dict.fromkeys([*names, *deep, *turns, *absolute, *(f"{n}\\..\\x.jsonl" for n in range(40))]))
    return [name for name in found if name != "a/x"]


def test_200_keys_that_leave_their_folder_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    names = _traversals()
    assert len(names) >= 200
    for name in names:
        with pytest.raises(SecvecError, match="unsafe file name"):
            check_name(name, where="x")
        listed = [f"s3://bucket/rows/{name}", "s3://bucket/rows/good.jsonl"]
        monkeypatch.setattr(ingest_files, "list_uris", lambda _, found=listed: found)
        with pytest.raises(SecvecError, match="unsafe file name"):
            find_files("training_data", "s3://bucket/rows/", config=IngestConfig())


def test_a_link_in_a_folder_is_refused(world: Any) -> None:
    folder = world.folder / "rows"
    folder.mkdir()
    (folder / "rows.jsonl").symlink_to("/etc/hostname")
    world.sources["training_data"] = [str(folder)]
    with pytest.raises(SecvecError, match=r"rows\.jsonl: is a link or a special file; accepted: "):
        world.run()


def test_a_device_is_no_file(world: Any) -> None:
    (world.folder / "zero.jsonl").symlink_to("/dev/zero")
    world.sources["training_data"] = [str(world.folder / "zero.jsonl")]
    with pytest.raises(SecvecError, match="is no file; accepted: a regular file"):
        world.run()


def test_more_rows_to_compare_with_than_fit_are_refused(world: Any) -> None:
    with pytest.raises(SecvecError, match=r"makes \d+ rows to compare with; accepted: limits\.max"):
        world.run(limits={"max_compared_rows": 50})
