"""The folder of finished shards: kept when a run is killed, so that the next one goes on from there."""

from __future__ import annotations

import fcntl
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from secvec.components.shared.errors import SecvecError
from secvec.components.shared.storage import local_errors


@contextmanager
def keeping_shards(parent: Path, key: str) -> Iterator[Path]:
    """Yield the folder for the shards of one job, as an interrupted run of the same job left it.

    It is removed at the end, and when the step refuses its input; a process that is killed leaves it. A
    second process that does the same job at the same time gets a folder of its own.

    Args:
        parent: Where scratch folders lie.
        key: What the job is.
    """
    folder = parent / f"ingest-{key[:32]}"
    with local_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("wb")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            folder = Path(tempfile.mkdtemp(prefix="ingest-", dir=parent))
        try:
            yield folder
        except SecvecError:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        shutil.rmtree(folder, ignore_errors=True)
