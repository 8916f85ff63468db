"""What is fed: arbitrary values, and valid files with some bytes changed."""

from __future__ import annotations

import gzip
import io
import json
from typing import Any

import numpy
import pyarrow
import zstandard
from hypothesis import strategies as st
from pyarrow import ipc, parquet
from safetensors.numpy import save

_ROWS = [{"prompt": f"ask {i}", "completion": f"say {i}", "label": str(i % 3)} for i in range(40)]
_TALK = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}] * 9
_LINES = "".join(json.dumps(row) + "\n" for row in [*_ROWS, *_TALK]).encode()
_CSV = b'prompt,completion\nask,say\n"as\nk","s""ay"\n' * 3
_NASTY = st.sampled_from(
    [
        *(
            b"\x00",
            b"\xff\xfe",
            b"\xef\xbb\xbf",
            b'"',
            b"\\",
            b"\n",
            b"\r",
            b"[" * 200,
            b"{" * 200,
            b"\\ud800",
        ),
        *(
            b"1" * 5000,
            b"1e999",
            b"NaN",
            b"-",
            b"\x80" * 8,
            b"\xff" * 16,
            b"\x7f\xff\xff\xff",
            b'{"a":1,"a":2}\n',
        ),
    ]
)


def _write_table(table: Any, form: str) -> bytes:
    sink = io.BytesIO()
    if form == "parquet":
        parquet.write_table(table, sink, compression="gzip", row_group_size=16)
    elif form == "file":
        with ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    else:
        with ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    return sink.getvalue()


_FLAT, _NESTED = pyarrow.Table.from_pylist(_ROWS), pyarrow.Table.from_pylist(_TALK)
SEEDS: dict[str, list[bytes]] = {
    "rows.jsonl": [_LINES, b"\xef\xbb\xbf" + _LINES],
    "rows.json": [json.dumps(_ROWS).encode(), json.dumps(_TALK, indent=1).encode()],
    "rows.csv": [_CSV],
    "rows.tsv": [_CSV.replace(b",", b"\t")],
    "rows.parquet": [_write_table(_FLAT, "parquet"), _write_table(_NESTED, "parquet")],
    "rows.arrow": [_write_table(one, form) for one in (_FLAT, _NESTED) for form in ("file", "stream")],
    "rows.jsonl.gz": [gzip.compress(_LINES)],
    "rows.jsonl.zst": [zstandard.compress(_LINES), zstandard.compress(_LINES) * 2],
    "model.safetensors": [save({"a": numpy.ones((2, 3), "f4"), "b": numpy.zeros(4, "f2")})],
}
_EDITS = st.lists(
    st.tuples(
        st.sampled_from(["set", "cut", "insert", "repeat", "swap"]),
        st.floats(0, 1, exclude_max=True),
        st.floats(0, 1, exclude_max=True),
        st.one_of(_NASTY, st.binary(min_size=1, max_size=12)),
    ),
    min_size=1,
    max_size=6,
)


@st.composite
def changed_files(draw: Any, name: str) -> bytes:
    """Draw a file of this kind with up to six changes, or now and then something else altogether."""
    if draw(st.integers(0, 19)) == 0:
        return draw(st.binary(max_size=300))
    data = draw(st.sampled_from(SEEDS[name]))
    for what, start, length, piece in draw(_EDITS):
        at = int(start * len(data))
        end = min(len(data), at + 1 + int(length * 64))
        if what == "set":
            data = data[:at] + piece + data[at + len(piece) :]
        elif what == "cut":
            data = data[:at] + (data[end:] if length < 0.9 else b"")
        elif what == "insert":
            data = data[:at] + piece + data[at:]
        elif what == "repeat":
            data = data[:end] + data[at:end] * 3 + data[end:]
        else:
            data = data[:at] + data[at:end][::-1] + data[end:]
    return data


TEXT = st.text(st.characters(), max_size=30)  # lone surrogates and control characters included
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXT),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXT, inner, max_size=4)),
    max_leaves=12,
)
_COLUMNS = (
    "messages conversations instruction input output prompt completion question answer goal target tools"
)
_KEYS = "role from content value tool_calls function_call name"
_WHO = "system user human assistant gpt tool function observation function_call"
_TURN = st.dictionaries(
    st.sampled_from(_KEYS.split()), st.one_of(st.sampled_from(_WHO.split()), VALUES), max_size=5
)
ROWS = st.dictionaries(
    st.one_of(st.sampled_from(_COLUMNS.split()), TEXT),
    st.one_of(VALUES, st.lists(_TURN, max_size=5)),
    max_size=6,
)


def settings_like(names: list[str]) -> Any:
    """Draw mappings with keys that a configuration has, some others, and any values."""
    return st.dictionaries(st.one_of(st.sampled_from(names), TEXT), VALUES, max_size=5)


_PIECES = (
    "file:// s3:// https:// hf://datasets/ http:// / // .. . ../ %2e%2e %2F %00 \0 ? # * ** [ ] [a] ~ ~root"
    " @ : \\ a b.jsonl c.csv.gz 169.254.169.254 [::1] localhost bucket"
)
URIS = st.one_of(
    TEXT,
    st.builds("".join, st.lists(st.one_of(st.sampled_from(_PIECES.split(" ")), TEXT), max_size=8)),
)
