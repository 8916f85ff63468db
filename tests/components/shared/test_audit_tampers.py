"""Random tampering with a log and its checkpoints is always found; ordinary logs never raise an alarm."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from secvec.components.shared import audit
from secvec.components.shared.audit_checkpoints import verify_log, write_checkpoint
from secvec.components.shared.errors import SecvecError
from secvec.components.shared.signing_keys import ensure_signing_key

LINES = 8
TAMPERS = 1500
CLEAN = 150


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A log with two checkpoints, the last of which is pinned elsewhere."""
    path = tmp_path / "log.jsonl"
    for name in ("SECVEC_TRUSTED_KEYS", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SECVEC_SIGNING_KEY", str(ensure_signing_key(tmp_path / "signing")))
    monkeypatch.setenv("SECVEC_AUDIT_LOG", str(path))
    write_log(LINES // 2)
    write_checkpoint()
    monkeypatch.setenv("SECVEC_AUDIT_PIN", str(tmp_path / "pin"))
    write_log(LINES // 2)
    write_checkpoint()
    return path


def write_log(lines: int) -> None:
    for number in range(lines):
        audit.note("tested", number=number, share=number / 7, text=f"é{number}\n")


def flip_a_bit(content: bytes, draw: random.Random) -> bytes:
    changed = bytearray(content)
    changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def truncate(content: bytes, draw: random.Random) -> bytes:
    return content[: draw.randrange(len(content))]


def delete_a_line(content: bytes, draw: random.Random) -> bytes:
    lines = content.splitlines(keepends=True)
    del lines[draw.randrange(len(lines))]
    return b"".join(lines)


def swap_two_lines(content: bytes, draw: random.Random) -> bytes:
    lines = content.splitlines(keepends=True)
    one, other = draw.sample(range(len(lines)), 2)
    lines[one], lines[other] = lines[other], lines[one]
    return b"".join(lines)


def replay_a_line(content: bytes, draw: random.Random) -> bytes:
    lines = content.splitlines(keepends=True)
    lines.insert(draw.randrange(len(lines) + 1), draw.choice(lines))
    return b"".join(lines)


def edit_a_digit(content: bytes, draw: random.Random) -> bytes:
    digits = [position for position, byte in enumerate(content) if chr(byte).isdigit()]
    changed = bytearray(content)
    position = draw.choice(digits)
    changed[position] = ord(draw.choice("0123456789".replace(chr(changed[position]), "")))
    return bytes(changed)


OPERATIONS: list[Callable[[bytes, random.Random], bytes]] = [
    flip_a_bit,
    truncate,
    delete_a_line,
    swap_two_lines,
    replay_a_line,
    edit_a_digit,
]


@pytest.mark.parametrize("tampers", [TAMPERS, pytest.param(4 * TAMPERS, marks=pytest.mark.slow)])
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda one: one.__name__)
def test_no_random_tamper_of_the_log_goes_unseen(
    log: Path, operation: Callable[..., bytes], tampers: int
) -> None:
    draw = random.Random(operation.__name__)
    content = log.read_bytes()
    for _ in range(tampers // len(OPERATIONS)):
        log.write_bytes(operation(content, draw))
        with pytest.raises(SecvecError):
            verify_log()


def test_no_random_bit_flip_of_a_checkpoint_goes_unseen(log: Path) -> None:
    draw = random.Random(0)
    kept = log.with_name("log.jsonl.checkpoints")
    content = kept.read_bytes().rstrip(b"\n")
    for _ in range(TAMPERS // 6):
        kept.write_bytes(flip_a_bit(content, draw) + b"\n")
        with pytest.raises(SecvecError):
            verify_log()


def test_another_log_in_its_place_is_found(log: Path) -> None:
    kept = log.with_name("log.jsonl.checkpoints")
    log.unlink()
    kept.unlink()
    write_log(LINES)
    assert audit.verify().size == LINES
    with pytest.raises(SecvecError, match="is another log"):
        verify_log()


@pytest.mark.parametrize("runs", [CLEAN, pytest.param(1000, marks=pytest.mark.slow)])
def test_an_ordinary_log_raises_no_alarm(log: Path, runs: int) -> None:
    draw = random.Random(0)
    size = LINES
    for _ in range(runs):
        lines = draw.randrange(3)
        write_log(lines)
        size += lines
        if draw.random() < 0.2:
            write_checkpoint()
        assert verify_log().state.size == size
