import json
import subprocess
import sys
from pathlib import Path

import pytest

from secvec.components.shared import audit
from secvec.components.shared.audit_chain import GENESIS
from secvec.components.shared.errors import SecvecError


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "audit" / "log.jsonl"
    monkeypatch.setenv("SECVEC_AUDIT_LOG", str(path))
    return path


WRITER = """
from secvec.components.shared import audit
from secvec.components.shared.audit_chain import GENESIS
for number in range(40):
    audit.append("tested", number=number)
"""


def test_each_line_is_bound_to_the_one_before(log: Path) -> None:
    for number in range(5):
        state = audit.append("tested", number=number)
    assert audit.verify(str(log)) == state
    assert state.size == 5
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    assert [entry["fields"]["number"] for entry in entries] == [0, 1, 2, 3, 4]
    assert entries[0]["previous"] == GENESIS
    assert {"user", "uid", "host"} <= set(entries[0]["who"])


def test_the_log_is_readable_by_its_owner_alone(log: Path) -> None:
    audit.append("tested")
    assert log.stat().st_mode & 0o777 == 0o600


def test_a_file_uri_names_the_same_log(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECVEC_AUDIT_LOG", log.as_uri())
    audit.append("tested")
    assert audit.verify(str(log)).size == 1


def test_line_breaks_and_control_characters_stay_inside_their_line(log: Path) -> None:
    text = 'a\nb\r\x00\x1b[31m\u2028"}\n{"event":"forged"'
    audit.append("tested", text=text)
    audit.append("tested")
    assert audit.verify(str(log)).size == 2
    assert json.loads(log.read_bytes().split(b"\n")[0])["fields"]["text"] == text


def edit(lines: list[bytes]) -> list[bytes]:
    return [lines[0], lines[1].replace(b'"number":1', b'"number":7'), *lines[2:]]


def respace(lines: list[bytes]) -> list[bytes]:
    return [lines[0].replace(b",", b", ", 1), *lines[1:]]


TAMPERS = {
    "edited": edit,
    "respaced": respace,
    "first line deleted": lambda lines: lines[1:],
    "middle line deleted": lambda lines: lines[:2] + lines[3:],
    "lines swapped": lambda lines: [lines[1], lines[0], *lines[2:]],
    "line repeated": lambda lines: [*lines[:2], lines[1], *lines[2:]],
    "last line cut": lambda lines: [*lines[:-1], lines[-1][:-10]],
    "junk line": lambda lines: [*lines[:2], b"junk", *lines[2:]],
    "empty line": lambda lines: [*lines, b""],
}


@pytest.mark.parametrize("name", TAMPERS)
def test_a_tampered_log_is_refused(log: Path, name: str) -> None:
    for number in range(5):
        audit.append("tested", number=number)
    lines = TAMPERS[name](log.read_bytes().splitlines())
    log.write_bytes(b"\n".join(lines) + b"\n")
    with pytest.raises(SecvecError, match="line"):
        audit.verify(str(log))


def test_two_writers_make_one_chain(log: Path) -> None:
    writers = [subprocess.Popen([sys.executable, "-c", WRITER]) for _ in range(2)]
    assert [writer.wait() for writer in writers] == [0, 0]
    assert audit.verify(str(log)).size == 80


@pytest.mark.parametrize("kept", [0.5, 1.0])
def test_a_line_torn_by_a_crash_is_kept_and_marked(log: Path, kept: float) -> None:
    audit.append("tested", number=1)
    whole = log.read_bytes()
    audit.append("tested", number=2)
    torn = log.read_bytes()[len(whole) : -1]
    log.write_bytes(whole + torn[: int(len(torn) * kept)])
    with pytest.raises(SecvecError, match="line 2 is not a whole audit entry"):
        audit.verify(str(log))
    audit.append("tested", number=3)
    assert audit.verify(str(log)).size == 4
    assert [json.loads(line)["event"] for line in log.read_bytes().splitlines()[2:]] == [
        "log_recovered",
        "tested",
    ]


def test_long_lines_are_resumed_from(log: Path) -> None:
    audit.append("tested", text="x" * 200_000)
    audit.append("tested", text="y" * 200_000)
    audit.append("tested")
    assert audit.verify(str(log)).size == 3


def test_a_log_that_ends_in_junk_is_not_written_to(log: Path) -> None:
    audit.append("tested")
    log.write_bytes(log.read_bytes() + b"junk\n")
    with pytest.raises(SecvecError, match="last line is not an audit entry"):
        audit.append("tested")


def test_no_log_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SECVEC_AUDIT_LOG", raising=False)
    with pytest.raises(SecvecError, match="SECVEC_AUDIT_LOG: no audit log is configured; accepted"):
        audit.append("tested")


@pytest.mark.parametrize("value", ["gopher://host/log", "file://elsewhere/log"])
def test_unknown_location(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("SECVEC_AUDIT_LOG", value)
    with pytest.raises(SecvecError, match="accepted"):
        audit.append("tested")


def test_a_log_that_cannot_be_written_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SECVEC_AUDIT_LOG", str(tmp_path / "file" / "log.jsonl"))
    with pytest.raises(SecvecError, match="cannot write the audit log"):
        audit.append("tested")


def test_a_full_disk_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECVEC_AUDIT_LOG", "/dev/full")
    with pytest.raises(SecvecError, match="cannot write the audit log"):
        audit.append("tested")


def test_values_json_has_not_are_refused(log: Path) -> None:
    with pytest.raises(SecvecError, match="cannot be logged"):
        audit.append("tested", figure=float("nan"))
    assert log.read_bytes() == b""


def test_many_events_are_appended_in_one_go(log: Path) -> None:
    audit.append("tested", number=0)
    state = audit.append_all([("tested", {"number": number}) for number in range(1, 100)])
    assert audit.verify() == state
    numbers = [json.loads(line)["fields"]["number"] for line in log.read_bytes().splitlines()]
    assert numbers == list(range(100))


def test_of_many_events_all_or_none_are_in_the_log(log: Path) -> None:
    audit.append("tested")
    before = log.read_bytes()
    with pytest.raises(SecvecError, match="cannot be logged"):
        audit.append_all([("tested", {"number": 1}), ("tested", {"number": float("nan")})])
    assert log.read_bytes() == before
    assert audit.append_all([]).size == 1


def test_one_wait_for_the_disk_serves_all(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits = []
    monkeypatch.setattr("os.fsync", waits.append)
    audit.append_all([("tested", {"number": number}) for number in range(50)])
    assert len(waits) == 1
    audit.append("tested")
    assert len(waits) == 2
    audit.note("tested")
    assert len(waits) == 2


def test_entries_are_read_in_order_without_what_a_crash_cut_short(log: Path, tmp_path: Path) -> None:
    audit.append("tested", number=1)
    with log.open("ab") as stream:
        stream.write(b'{"schema":1,"sequ')
    audit.append("tested", number=2)
    expected = [("tested", {"number": 1}), ("log_recovered", {}), ("tested", {"number": 2})]
    for location in ("", str(log), log.as_uri()):
        found = [(entry["event"], entry["fields"]) for entry in audit.read_entries(location)]
        assert found == expected
    with pytest.raises(SecvecError, match=r"gone\.jsonl: cannot read the audit log"):
        list(audit.read_entries(str(tmp_path / "gone.jsonl")))
