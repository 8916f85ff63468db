import base64
import json
from pathlib import Path
from typing import Any

import pytest
import rfc8785

from secvec.components.shared import audit_chain
from secvec.components.shared.audit_chain import (
    GENESIS,
    LogState,
    digest_line,
    encode_line,
    follow_lines,
    parse_line,
)
from secvec.components.shared.errors import SecvecError


@pytest.mark.parametrize(
    "value",
    [
        0,
        -1,
        2**53 - 1,
        1.5,
        1e21,
        1.0,
        True,
        None,
        "",
        'é\u2028\x7f\x00\x1f\\"',
        "\U0001f600",
        [1, "a", [None]],
        {"b": 1, "a": {"\u00e9": 2.5}},
        {"\U0001f600": 1, "\uffee": 2},
        (1, 2),
    ],
    ids=repr,
)
def test_lines_are_rfc_8785(value: Any) -> None:
    line = encode_line("tested", {"value": value}, after=LogState())
    entry = json.loads(line)
    assert line == rfc8785.dumps(entry)
    assert entry["fields"]["value"] == (list(value) if isinstance(value, tuple) else value)
    assert parse_line(line) == entry


@pytest.mark.parametrize(
    "value",
    [float("nan"), float("inf"), 2**53, b"bytes", object(), {1: 2}, {"a": {2}}, "\ud800"],
    ids=["nan", "infinite", "large", "bytes", "object", "number as key", "set", "surrogate"],
)
def test_what_json_cannot_carry_is_refused(value: Any) -> None:
    with pytest.raises(SecvecError, match="tested cannot be logged"):
        encode_line("tested", {"value": value}, after=LogState())


def test_a_value_that_holds_itself_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(SecvecError, match="cannot be logged"):
        encode_line("tested", {"loop": loop}, after=LogState())


LINE = encode_line("tested", {"number": 1, "share": 0.5}, after=LogState())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"schema":1', b'"schema":2'),
        (b'"schema":1', b'"schema":true'),
        (b'"schema":1', b'"schema":1.0'),
        (b'"sequence":1', b'"sequence":true'),
        (b'"sequence":1', b'"sequence":"1"'),
        (b'"sequence":1', b'"sequence":1,"sequence":1'),
        (b'"share":0.5', b'"share":0.50'),
        (b'"share":0.5', b'"share":NaN'),
        (b'"event":"tested"', b'"event":null'),
        (b'"event":"tested"', b'"event":"\\u0074ested"'),
        (b'"event":', b'"kind":'),
        (b'"event":', b' "event":'),
        (b"}", b"} "),
        (b"{", b""),
    ],
)
def test_a_line_spelled_otherwise_is_none(old: bytes, new: bytes) -> None:
    assert parse_line(LINE) is not None
    assert parse_line(LINE.replace(old, new, 1)) is None


@pytest.mark.parametrize("line", [b"", b"[]", b"1", b"\xff", b"[" * 100_000, b"{}"], ids=range(6))
def test_what_is_no_line_is_none(line: bytes) -> None:
    assert parse_line(line) is None


def test_following_gives_the_state_after_each_line() -> None:
    state, lines = LogState(), []
    for number in range(3):
        lines.append(encode_line("tested", {"number": number}, after=state))
        state = state.follow(lines[-1])
    states = list(follow_lines(lines, where="log"))
    assert [one.size for one in states] == [1, 2, 3]
    assert states[-1] == state == LogState(3, digest_line(lines[-1]))
    assert list(follow_lines([], where="log")) == []
    assert LogState() == LogState(0, GENESIS)


def test_a_line_marked_as_recovered_excuses_only_the_one_before() -> None:
    first = encode_line("tested", {}, after=LogState())
    torn = first[:-5]
    marked = encode_line("log_recovered", {}, after=LogState(1, digest_line(torn)))
    assert [state.size for state in follow_lines([torn, marked], where="log")] == [1, 2]
    other = encode_line("tested", {}, after=LogState(1, digest_line(torn)))
    for lines in ([torn], [torn, torn, marked], [torn, other], [torn, marked, torn]):
        with pytest.raises(SecvecError, match="line"):
            list(follow_lines(lines, where="log"))


@pytest.mark.parametrize(
    ("token", "account"),
    [
        (
            {"sub": "system:serviceaccount:team:tuner"},
            "system:serviceaccount:team:tuner",
        ),
        ({}, None),
        (None, None),
    ],
)
def test_a_line_names_the_service_account_of_its_pod(
    token: Any, account: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if token is not None:
        claims = base64.urlsafe_b64encode(json.dumps(token).encode()).decode().rstrip("=")
        (tmp_path / "token").write_text(f"e30.{claims}.c2lnbmF0dXJl")
    monkeypatch.setattr(audit_chain, "_TOKEN", tmp_path / "token")
    audit_chain._service_account.cache_clear()
    line = encode_line("tested", {}, after=LogState())
    audit_chain._service_account.cache_clear()
    assert json.loads(line)["who"].get("service_account") == account
    assert b"signature" not in line and b"c2lnbmF0dXJl" not in line
