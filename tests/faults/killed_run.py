"""One run of the pipeline that may be killed on its way, and what it leaves."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import signal
import socket
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, get_args

from secvec.components.fine_tune_guarded.checkpoints import newest_complete, step_of
from secvec.components.shared.errors import SecvecError
from secvec.components.shared.manifest import MANIFEST_NAME, verify_manifest
from secvec.components.shared.references import Kind
from tests.faults.forked_run import ForkedProcess, start_command
from tests.faults.write_points import VARIABLE

_SECONDS = 900


class Run:
    """Runs of one config in one folder.

    Args:
        folder: Holds ``output`` and ``cache``.
        config: The run's config.
        log: Whether to write all write points to ``points.jsonl``.
    """

    def __init__(self, folder: Path, *, config: Path, log: bool = False) -> None:
        folder.mkdir(parents=True)
        self.folder, self.config = folder, config
        self.log = str(folder / "points.jsonl") if log else ""

    def run(self, kills: list[dict[str, Any]]) -> dict[str, Any]:
        """Run the command once, and kill it at the first of the planned points that it comes to.

        Returns:
            ``status`` (exit status of the command), ``said`` (what it printed), ``met`` (the point at which
            it was killed, or None), ``events`` and ``problems``.
        """
        said, events = self.folder / "said.txt", self.folder / "output" / "events.jsonl"
        for left in (said, events):
            left.unlink(missing_ok=True)
        # A short name, as sockets want; not a TemporaryDirectory, which any fork would remove at its end.
        short = Path(tempfile.mkdtemp(prefix="sv", dir="/tmp"))
        address = str(short / "s")
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(address)
            listening.listen()
            process = self._start(kills, address=address, said=said)
            killer = Killer(listening, process, kills)
            status = _wait(process, self.folder / "output")
            killer.end()
        shutil.rmtree(short)
        text = said.read_text(errors="replace") if said.exists() else ""
        return {
            "status": status,
            "said": text,
            "met": killer.met,
            "events": _read_events(events),
            "problems": _judge_end(status, text, killer.met),
        }

    def _start(self, kills: list[dict[str, Any]], *, address: str, said: Path) -> ForkedProcess:
        output, cache = self.folder / "output", self.folder / "cache"
        at = {kill["process"]: kill["number"] for kill in kills}
        settings = {"roots": [str(output), str(cache)], "log": self.log, "at": at, "listener": address}
        environment = {
            name: v for name, v in os.environ.items() if not name.startswith(("SECVEC_", "MLFLOW_"))
        }
        environment |= {"SECVEC_CACHE": str(cache), VARIABLE: json.dumps(settings)}
        arguments = ["run", "--config", str(self.config), "--output", str(output)]
        return start_command(arguments, environment=environment, log=said)


class Killer:
    """Waits for the run to come to the point, and kills it there."""

    def __init__(self, listening: socket.socket, command: ForkedProcess, kills: list[dict[str, Any]]) -> None:
        self.listening, self.command = listening, command
        self.kills = {kill["process"]: kill for kill in kills}
        self.kill: dict[str, Any] = {}
        self.met: dict[str, Any] | None = None
        self._thread = threading.Thread(target=self._serve, daemon=True)
        if kills:
            self._thread.start()

    def end(self) -> None:
        """Stop waiting."""
        self.listening.close()

    def _serve(self) -> None:
        self.listening.settimeout(_SECONDS)
        while True:
            try:
                meeting, _ = self.listening.accept()
            except OSError:
                return
            with meeting:
                self._meet(meeting)

    def _meet(self, meeting: socket.socket) -> None:
        point = json.loads(meeting.makefile().readline())
        if self.met:
            _send(meeting)  # what runs at the end of a run that was killed goes on
            return
        self.kill = self.kills[point["process"]]
        self.met = {**self.kill, **point}
        if not self.kill["delay"]:
            self._strike(point["pid"])
        if self.kill["delay"] or self.kill["signal"] == "SIGTERM":
            _send(meeting)
        if self.kill["delay"]:
            time.sleep(self.kill["delay"] / 1000)
            self._strike(point["pid"])

    def _strike(self, pid: int) -> None:
        number = getattr(signal, self.kill["signal"])
        if self.kill["target"] == "process":
            _signal(pid, number)
        elif number == signal.SIGTERM:
            _signal(self.command.pid, number)
        else:
            groups = {self.command.pid, *_sessions_below(self.command.pid)}
            for group in groups:
                _signal(-group, number)


def _send(meeting: socket.socket) -> None:
    try:
        meeting.sendall(b"g")
    except OSError:
        return  # it has died of the signal


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return  # it ended by itself meanwhile


def _sessions_below(pid: int) -> set[int]:
    """Process groups of all that a process has started."""
    parents: dict[int, tuple[int, int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(entry.parent.name)] = int(fields[1]), int(fields[2])
    found, below = set(), {pid}
    while below:
        below = {child for child, (parent, _) in parents.items() if parent in below}
        found |= {parents[child][1] for child in below}
    return found


def _wait(process: ForkedProcess, output: Path) -> int:
    status = process.wait(_SECONDS)
    # Steps outlive a command that was killed alone, and hold the folder: the next run would be refused.
    lock = output / ".lock"
    if lock.exists():
        with lock.open("w") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
    return status


def _judge_end(status: int, said: str, met: dict[str, Any] | None) -> list[str]:
    """What is wrong with how the command ended."""
    if not met:
        return [] if status == 0 else [f"nobody killed it, and it ended with status {status}: {said[-300:]}"]
    problems = []
    if status == 0 and not met["delay"]:
        problems.append(f"it was killed ({met['signal']} to the {met['target']}) and ended with status 0")
    # A run here begins with a fork, in whose hooks Python prints what a signal raises, and goes on.
    said = re.sub(r"Exception ignored in: .*?KeyboardInterrupt: ?\n", "", said, flags=re.DOTALL)
    if "Traceback" in said:
        problems.append(f"it printed a traceback: {said[said.index('Traceback') :][:2000]}")
    return problems


def _read_events(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]
    return [json.loads(line) for line in lines]


def look_at_leftovers(folder: Path) -> dict[str, Any]:
    """What a reader finds: the newest checkpoint of each training, results, and what does not verify."""
    store, work = folder / "output" / "store", folder / "cache" / "training"
    problems = [text for path in sorted(store.glob("[a-z]*/*")) for text in _check_visible(path)]
    for path in sorted(work.glob(f"*/checkpoint-*/{MANIFEST_NAME}")):
        problems += _verify(path.parent, digest=None)
    newest = {path.name: newest_complete(path) for path in work.glob("*") if path.is_dir()}
    records = (store / "finished" / "fine_tune_guarded").glob("*.json")
    return {
        "problems": problems,
        "checkpoints": {name: step_of(found) for name, found in newest.items() if found},
        "finished": [path.stem for path in records],
    }


def _check_visible(path: Path) -> list[str]:
    if path.parent.name in get_args(Kind):
        return _verify(path, digest=f"sha256:{path.name}")
    found = []
    for record in (one for one in path.rglob("*.json") if not one.name.startswith(".")):
        try:
            json.loads(record.read_bytes())
        except ValueError as error:
            found.append(f"{record} is torn: {error}")
    return found


def _verify(folder: Path, *, digest: str | None) -> list[str]:
    try:
        verify_manifest(folder, digest=digest)
    except SecvecError as error:
        return [f"visible and torn: {error}"]
    return []
