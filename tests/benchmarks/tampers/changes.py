"""Ways to tamper: with the content of a file, with files, and with the folder around them."""

from __future__ import annotations

import random
import shutil

from secvec.components.shared.audit_chain import encode_lines, follow_lines
from tests.benchmarks.tampers.targets import Target

PIECES = 16  # what has no lines is cut into so many for deletions and reorderings


def flip_a_bit(content: bytes, draw: random.Random) -> bytes:
    """One bit."""
    changed = bytearray(content)
    changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def edit_a_character(content: bytes, draw: random.Random) -> bytes:
    """One digit or letter for another, so that what was text is text."""
    places = [place for place, byte in enumerate(content) if chr(byte).isascii() and chr(byte).isalnum()]
    changed = bytearray(content)
    for place in [draw.choice(places)] if places else []:
        kind = "0123456789" if chr(content[place]).isdigit() else "abcdefghijklmnopqrstuvwxyzABCDEF"
        changed[place] = ord(draw.choice(kind))
    return bytes(changed)


def truncate(content: bytes, draw: random.Random) -> bytes:
    """The beginning only."""
    return content[: draw.randrange(len(content))]


def extend(content: bytes, draw: random.Random) -> bytes:
    """More at the end."""
    return content + draw.randbytes(draw.randint(1, 20))


def delete_a_piece(content: bytes, draw: random.Random) -> bytes:
    """One piece less."""
    pieces = cut(content)
    del pieces[draw.randrange(len(pieces))]
    return b"".join(pieces)


def reorder(content: bytes, draw: random.Random) -> bytes:
    """Two pieces in each other's place."""
    pieces = cut(content)
    if len(pieces) > 1:
        one, other = draw.sample(range(len(pieces)), 2)
        pieces[one], pieces[other] = pieces[other], pieces[one]
    return b"".join(pieces)


def replay_a_piece(content: bytes, draw: random.Random) -> bytes:
    """One piece once more, somewhere."""
    pieces = cut(content)
    pieces.insert(draw.randrange(len(pieces) + 1), draw.choice(pieces))
    return b"".join(pieces)


def cut(content: bytes) -> list[bytes]:
    """Lines, or equal pieces where there is but one."""
    lines = content.splitlines(keepends=True)
    step = max(1, len(content) // PIECES)
    return lines if len(lines) > 1 else [content[at : at + step] for at in range(0, len(content), step)]


def roll_back(content: bytes, draw: random.Random) -> bytes:
    """A log as it was some lines ago: a whole chain."""
    lines = content.splitlines(keepends=True)
    return b"".join(lines[: draw.randrange(1, len(lines))])


def fork(content: bytes, draw: random.Random) -> bytes:
    """A log that took another turn some lines ago: a whole chain, of as many lines or more."""
    lines = content.splitlines()
    kept = lines[: draw.randrange(1, len(lines))]
    *_, state = follow_lines(kept, where="a fork")
    events = [("gate_judged", {"outcome": "PASS", "nonce": draw.randrange(10**9)})]
    more = encode_lines(events * (len(lines) - len(kept) + draw.randrange(2)), after=state)
    return b"".join(line + b"\n" for line in kept + more)


CHANGES = [flip_a_bit, edit_a_character, truncate, extend, delete_a_piece, reorder, replay_a_piece]
LOG_CHANGES = [*CHANGES, roll_back, fork]


def tamper(target: Target, draw: random.Random) -> str:
    """Change one thing about a target; gives what was done, or nothing when that changed nothing."""
    moves = [name for name, possible in (("move", target.others), ("folder", target.folder)) if possible]
    kind = draw.choice(["content", "content", *moves])
    if kind == "content":
        path = draw.choice([file for file in target.files if file.stat().st_size])
        change = draw.choice(LOG_CHANGES if target.lines else CHANGES)
        content = path.read_bytes()
        changed = change(content, draw)
        path.write_bytes(changed)
        return "" if target.same(content, changed) else change.__name__
    return (move_files if kind == "move" else change_folder)(target, draw)


def move_files(target: Target, draw: random.Random) -> str:
    """Put another model's file in a file's place, exchange two files, or remove one."""
    path = draw.choice(target.files)
    action = draw.choice(["replay", "swap", "remove"])
    content = path.read_bytes()
    if action == "remove":
        path.unlink()
        return action
    other = draw.choice(target.others if action == "replay" else target.files)
    foreign = other.read_bytes()
    path.write_bytes(foreign)
    if action == "swap":
        other.write_bytes(content)
    return "" if target.same(content, foreign) else action


def change_folder(target: Target, draw: random.Random) -> str:
    """Add a file that a loader may pick up, or let a link stand for a file."""
    assert target.folder
    if draw.random() < 0.5:
        names = ["adapter_config.json", "adapter_model.safetensors", "pytorch_model.bin", "modeling.py", "x"]
        (target.folder / f"{draw.choice(['', 'deep-'])}{draw.choice(names)}").write_bytes(draw.randbytes(9))
        return "add a file"
    path = draw.choice(target.files)
    elsewhere = target.folder.parent / "elsewhere"
    shutil.copy(path, elsewhere)
    path.unlink()
    path.symlink_to(elsewhere)
    return "link"
