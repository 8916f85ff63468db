"""A source read shard by shard, in one process or several; the result does not depend on which."""

from __future__ import annotations

import hashlib
import itertools
import multiprocessing
import os
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from multiprocessing import connection
from pathlib import Path

from secvec.components.ingest_data.config import IngestConfig, SourceName
from secvec.components.ingest_data.files import SourceFile, bring_file, find_files, place_of
from secvec.components.ingest_data.hub import is_hub_uri
from secvec.components.ingest_data.merging import SourceResult
from secvec.components.ingest_data.overlap import refuse_evaluation
from secvec.components.ingest_data.rows import is_json_lines
from secvec.components.ingest_data.shards import SHARD_BYTES, Account, Job, Shard, read_shard, split_lines
from secvec.components.ingest_data.sources import check_file_count, check_source_counts
from secvec.components.shared.errors import SecvecError
from secvec.components.shared.manifest import digest_file
from secvec.components.shared.progress import Progress
from secvec.components.shared.storage import local_path, scheme_of

Read = Callable[[Shard], tuple[Path, Account]]


@dataclass(frozen=True)
class Share:
    """What one of several machines reads of a source: each n-th of its files, or of the shards of few files.

    Attributes:
        number: Which one, from 0.
        of: How many there are.
    """

    number: int
    of: int


class SourcePlan:
    """The shards of one source, made while its files are brought here one after the other.

    Attributes:
        files: Its files.
        digests: ``sha256:<hex>`` of each file, as far as they have been read.
    """

    def __init__(self, name: SourceName, uris: Sequence[str], *, config: IngestConfig) -> None:
        self.name = name
        found = [file for uri in uris for file in find_files(name, uri, config=config)]
        # In the order of their names, so that it is all the same in which order they are listed.
        self.files = sorted(found, key=lambda file: file.name)
        self.digests: dict[int, str] = {}
        self.formats: dict[int, str] = {}
        self._config = config
        self._kept: dict[int, ExitStack] = {}

    def count_bytes(self) -> int:
        """Count the bytes of those files that lie on this machine."""
        local = (
            local_path(f.uri) for f in self.files if not is_hub_uri(f.uri) and scheme_of(f.uri) == "file"
        )
        return sum(path.stat().st_size for path in local if path.is_file())

    def make_shards(self, share: Share | None = None) -> Iterator[Shard]:
        """Yield shards in the order of their rows: all of them, or those of a share.

        Files that no shard of the share is of are not brought here.
        """
        share = share or Share(0, 1)
        whole_files = len(self.files) >= share.of
        names: Counter[str] = Counter()
        for number, file in enumerate(self.files):
            names[file.name] += 1
            again = names[file.name]
            if whole_files and number % share.of != share.number:
                continue
            shards = self._cut(number, file, file.name if again == 1 else f"{file.name}#{again}")
            first, step = (0, 1) if whole_files else (share.number, share.of)
            yield from itertools.islice(shards, first, None, step)

    def drop_files(self, before: int) -> None:
        """Remove the private copies of files whose shards have all been read."""
        for number in [number for number in self._kept if number < before]:
            self._kept.pop(number).close()

    def _cut(self, number: int, file: SourceFile, name: str) -> Iterator[Shard]:
        place = place_of(self.name, file.uri)
        stack = self._kept[number] = ExitStack()
        local = stack.enter_context(bring_file(file, self.name, config=self._config))
        self.formats[number] = " ".join([local.format, local.packed]).strip()
        shard = partial(
            Shard, self.name, number, name, local.format, local.path, where=place, owned=local.owned
        )
        if local.path.stat().st_size > SHARD_BYTES and is_json_lines(local.path, local.format):
            whole = hashlib.sha256()
            yield from (shard(digest, span=span) for span, digest in split_lines(local.path, whole))
            self.digests[number] = local.digest or f"sha256:{whole.hexdigest()}"
            return
        digest = digest_file(local.path)
        self.digests[number] = local.digest or digest
        yield shard(digest.removeprefix("sha256:"), span=None)


def read_source(plan: SourcePlan, read: Read, *, config: IngestConfig, workers: int) -> SourceResult:
    """Read all of a source.

    Args:
        plan: Its shards.
        read: Reads one shard; can be sent to other processes.
        config: How rows are read.
        workers: How many processes read at once.

    Raises:
        SecvecError: A file cannot be read, none of its rows can be used, too many of the source's rows are
            refused, there is none, or it asks what the evaluation asks.
    """
    progress = Progress(f"read {plan.name}, MiB", plan.count_bytes() >> 20)
    result = SourceResult(plan.name, ignored=[one for file in plan.files for one in file.ignored])
    done = 0
    try:
        for shard, (folder, account) in read_shards(plan.make_shards(), read, workers=workers):
            if shard.file and len(result.counts) == shard.file:
                _finish_file(plan, result, config)
                plan.drop_files(shard.file)
            result.add(shard.file, folder, account)
            done += shard.size
            progress.total = max(progress.total, done >> 20)
            progress.move_to(done >> 20)
        _finish_file(plan, result, config)
    finally:
        plan.drop_files(len(plan.files))
    for number, count in enumerate(result.counts):
        count.digest, count.format = plan.digests[number], plan.formats[number]
    uris = place_of(plan.name, *(file.uri for file in plan.files[:20]))
    check_source_counts(plan.name, result.counts, where=uris, config=config)
    refuse_evaluation(plan.name, result.overlaps)
    return result


def _finish_file(plan: SourcePlan, result: SourceResult, config: IngestConfig) -> None:
    count = result.counts[-1]
    where = place_of(plan.name, plan.files[len(result.counts) - 1].uri)
    check_file_count(plan.name, count, where=where, config=config)


def read_shards(
    shards: Iterator[Shard], read: Read, *, workers: int
) -> Iterator[tuple[Shard, tuple[Path, Account]]]:
    """Read shards and yield what became of them, in their order."""
    first = list(itertools.islice(shards, 2))
    everything = itertools.chain(first, shards)
    one_by_one = workers == 1 or len(first) < 2
    found = ((s, read(s)) for s in everything) if one_by_one else _read_at_once(everything, read, workers)
    yield from found


def _read_at_once(
    shards: Iterator[Shard], read: Read, workers: int
) -> Iterator[tuple[Shard, tuple[Path, Account]]]:
    # Forking is unsafe where threads run, and the S3 client and Arrow have some.
    context = multiprocessing.get_context("spawn")
    waiting: deque[tuple[Shard, Future[tuple[Path, Account]]]] = deque()
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_parent)
    try:
        for shard in shards:
            waiting.append((shard, pool.submit(read, shard)))
            if len(waiting) > 2 * workers:
                done, future = waiting.popleft()
                yield done, future.result()
        while waiting:
            done, future = waiting.popleft()
            yield done, future.result()
    except BrokenProcessPool:
        raise SecvecError(
            "a process that read rows was killed, for memory if nobody did it by hand",
            where="ingest_data",
            accepted="more memory, or fewer workers in overrides.ingest_data.workers",
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _end_with_parent() -> None:
    """Let a worker end when the process that started it was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_watch, args=(parent.sentinel,), daemon=True).start()


def _watch(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(1)


def count_processors() -> int:
    """Count the processors that this process may use."""
    return len(os.sched_getaffinity(0))


def make_reader(job: Job) -> Read:
    """Give the function that reads one shard; it can be sent to other processes."""
    return partial(read_shard, job=job)
