"""Counts every place where a process of a run writes, and lets it be killed at one of them.

A write point is the moment before a file under the run's folders is opened for writing, renamed, linked,
removed, synchronised or written by a library, a folder made or removed, or a database transaction committed.
Reports of progress are none: how many there are depends on the clock.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

VARIABLE = "SECVEC_WRITE_POINTS"
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_ALWAYS = ("os.rename", "os.link", "os.symlink", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")
_UNCOUNTED = ("events.jsonl", "run.log", "__pycache__")


class WritePoints:
    """The write points of one process.

    Args:
        process: Its name: ``command``, ``worker`` or the step.
        roots: Folders that count.
        log: File to which each point is appended, or nothing.
        at: Number of the point to be killed at, from 1, by process.
        listener: Socket of whoever kills.
    """

    def __init__(
        self, process: str, *, roots: list[str], log: str, at: dict[str, int], listener: str
    ) -> None:
        self.process, self.roots = process, tuple(roots)
        self.at = at.get(process, 0)
        self.listener, self.number, self.inside = listener, 0, False
        self.log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND) if log else -1

    def pass_by(self, event: str, path: str) -> None:
        """Count a point, and wait there for what is to come if it is the one."""
        if self.inside or not path.startswith(self.roots) or any(name in path for name in _UNCOUNTED):
            return
        self.inside = True
        try:
            self.number += 1
            line = {"process": self.process, "number": self.number, "event": event, "path": path}
            if self.log >= 0:
                os.write(self.log, json.dumps(line).encode() + b"\n")
            if self.number == self.at:
                self._meet(line)
        finally:
            self.inside = False

    def _meet(self, line: dict[str, Any]) -> None:
        with socket.socket(socket.AF_UNIX) as meeting:
            meeting.connect(self.listener)
            meeting.sendall(json.dumps({**line, "pid": os.getpid()}).encode() + b"\n")
            meeting.recv(1)

    def hear(self, event: str, details: tuple[Any, ...]) -> None:
        """Take an audit event of the interpreter (`sys.addaudithook`)."""
        if event == "open":
            path, _, flags = details
            if isinstance(flags, int) and flags & _WRITING:
                self.pass_by("open", _absolute(path))
        elif event in _ALWAYS:
            folder = details[-1] if event in ("os.remove", "os.mkdir", "os.rmdir") else -1
            target = details[1] if event in ("os.rename", "os.link", "os.symlink") else details[0]
            self.pass_by(event.removeprefix("os."), _absolute(target, folder))


def _absolute(path: Any, folder: Any = -1) -> str:
    try:
        text = f"/proc/self/fd/{path}" if isinstance(path, int) else os.fsdecode(path)
        if isinstance(folder, int) and folder >= 0 and not text.startswith("/"):
            return f"{Path(f'/proc/self/fd/{folder}').readlink()}/{text}"
        return str(Path(text).readlink()) if isinstance(path, int) else text
    except (TypeError, OSError):
        return ""


_current: WritePoints | None = None


def install(process: str) -> None:
    """Count the write points of this process, as the environment says, and no more those of its parent."""
    global _current
    settings = os.environ.get(VARIABLE)
    if not settings:
        return
    first, _current = _current is None, WritePoints(process, **json.loads(settings))
    if first:
        _listen()


def _listen() -> None:
    import safetensors.torch
    import sqlalchemy
    import torch

    def pass_by(event: str, path: str) -> None:
        assert _current
        _current.pass_by(event, path)

    sys.addaudithook(lambda event, details: _current.hear(event, details) if _current else None)
    _wrap(os, "fsync", lambda descriptor: pass_by("fsync", _absolute(descriptor)))
    _wrap(torch, "save", lambda what, file, *_: pass_by("torch.save", str(file)))
    _wrap(safetensors.torch, "save_file", lambda what, file, *_: pass_by("save_file", str(file)))
    sqlalchemy.event.listen(
        sqlalchemy.Engine,
        "commit",
        lambda connection: pass_by("commit", str(connection.engine.url.database)),
    )


def _wrap(module: Any, name: str, before: Callable[..., None]) -> None:
    function = getattr(module, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        before(*args)
        return function(*args, **kwargs)

    setattr(module, name, wrapped)
