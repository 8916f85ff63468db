"""The step: sources in, one published dataset out.

Where the rows are too many for one machine, several read a share each, and the step puts them together.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

from secvec.components.ingest_data.config import EVALUATION, IngestConfig, SourceName, Sources
from secvec.components.ingest_data.merging import SourceResult, write_empty, write_known, write_source
from secvec.components.ingest_data.profile import describe_dataset
from secvec.components.ingest_data.profile_page import render_profile
from secvec.components.ingest_data.reading import (
    Share,
    SourcePlan,
    count_processors,
    make_reader,
    read_shards,
    read_source,
)
from secvec.components.ingest_data.shards import Job
from secvec.components.ingest_data.splits import PAGE_FILE, PROFILE_FILE, QUARANTINE_FILE, check_accounts
from secvec.components.ingest_data.tokens import bring_tokenizer
from secvec.components.ingest_data.workplace import keeping_shards
from secvec.components.shared.artifacts import building, fetch, publish
from secvec.components.shared.finished import input_key
from secvec.components.shared.provenance import attest
from secvec.components.shared.references import Reference

STEP = "ingest_data"
# Small sources first: the training rows, which may be many, are then compared with them while they stream by.
_ORDER: tuple[SourceName, ...] = (*EVALUATION, "harmful_seeds", "benign_anchors", "training_data")
_LAST: SourceName = "training_data"


def ingest_data(
    *, sources: Sources, store: str, config: IngestConfig, shares: Sequence[Reference] = ()
) -> Reference:
    """Read all sources into canonical chat records and publish them as one dataset.

    The dataset's digest depends on the names and bytes of the files and on the settings, not on where the
    files lie, nor on how many processes read them. A run that was killed is taken up by the next with the
    same sources and settings: shards that it finished are not read again.

    Args:
        sources: Where the rows lie.
        store: URI of the artifact store.
        config: How rows are read, split and refused.
        shares: Training rows that were read elsewhere with the same sources and settings; what is not among
            them is read here.

    Returns:
        Reference to a folder with one JSONL file of `ChatRecord` per set, ``quarantine.jsonl``,
        ``profile.json``, ``profile.html`` and, where rows are dropped, ``duplicates.jsonl``.

    Raises:
        SecvecError: A source is missing, empty, of an unknown format or shape, or too bad; no seeds or
            anchors are left to learn from or held out; a row, seed or anchor asks an evaluation prompt.
            Nothing is published then.
    """
    key = _make_key(sources, config)
    with building("dataset", store) as folder, keeping_shards(folder.parent, key) as work:
        for share in shares:
            _take_share(fetch(share), work)
        profile = _write_dataset(folder, work, sources=sources, config=config)
        text = json.dumps(profile, indent=2, sort_keys=True, ensure_ascii=False)
        (folder / PROFILE_FILE).write_text(text + "\n", encoding="utf-8")
        (folder / PAGE_FILE).write_text(render_profile(profile), encoding="utf-8")
        rows = {file: split["rows"] for file, split in profile["splits"].items()}
        reference = publish(folder, kind="dataset", store=store, about={"rows": rows})
    attest(reference, step=STEP, inputs=_list_inputs(profile), parameters=config.model_dump(mode="json"))
    return reference


def read_share(*, sources: Sources, store: str, config: IngestConfig, share: Share) -> Reference:
    """Read a share of the training rows, for `ingest_data` to put together with the others.

    The sources that training rows are compared with are read whole, in every share.

    Args:
        sources: Where the rows lie.
        store: URI of the artifact store.
        config: How rows are read.
        share: Which part of them.

    Returns:
        Reference to a folder with a folder for each shard.

    Raises:
        SecvecError: As `ingest_data`, for what it finds in its share.
    """
    key = input_key(all=_make_key(sources, config), share=[share.number, share.of])
    with building("share", store) as folder, keeping_shards(folder.parent, key) as work:
        reading = _Reading(work, sources=sources, config=config)
        (work / "compared").mkdir(exist_ok=True)
        with (work / "compared" / QUARANTINE_FILE).open("wb") as quarantine:
            for name in _ORDER[:-1]:
                reading.read(name, folder=work / "compared", quarantine=quarantine)
        plan = SourcePlan(_LAST, sources.uris(_LAST), config=config)
        read = make_reader(reading.job)
        shards = []
        for shard, (path, _) in read_shards(plan.make_shards(share), read, workers=reading.workers):
            plan.drop_files(shard.file)
            shards.append(path.name)
        plan.drop_files(len(plan.files))
        for one in shards:
            shutil.move(work / one, folder / one)
        about = {"share": share.number, "of": share.of, "shards": shards}
        (folder / "share.json").write_text(json.dumps(about) + "\n")
        return publish(folder, kind="share", store=store)


def _make_key(sources: Sources, config: IngestConfig) -> str:
    for name in _ORDER:
        sources.uris(name)
    return input_key(sources=sources, config=config.content())


def _take_share(folder: Path, work: Path) -> None:
    """Lay out finished shards as if they had been read here; one that is not whole is read anew."""
    for shard in (path for path in folder.iterdir() if path.is_dir()):
        shutil.copytree(shard, work / shard.name, copy_function=_link, dirs_exist_ok=True)


def _link(source: str, target: str) -> None:
    Path(target).unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy(source, target)


class _Reading:
    """Source after source, each compared with those before it."""

    def __init__(self, work: Path, *, sources: Sources, config: IngestConfig) -> None:
        self._sources, self._config = sources, config
        self.workers = config.workers or count_processors()
        self.job = Job(work=work, known=(), tokenizer=bring_tokenizer(config.tokenizer, work), config=config)
        self.results: dict[SourceName, SourceResult] = {}

    def read(self, name: SourceName, *, folder: Path, quarantine: BinaryIO) -> dict[str, dict[str, Any]]:
        """Read a source and write its files; gives rows and digest of each."""
        config, uris = self._config, self._sources.uris(name)
        if not uris:
            return write_empty(name, folder, config=config)
        plan = SourcePlan(name, uris, config=config)
        result = read_source(plan, make_reader(self.job), config=config, workers=self.workers)
        write_source(result, folder, quarantine, config=config)
        if name != _LAST:
            before = sum(one.rows - one.quarantined for one in self.results.values())
            limit = config.limits.max_compared_rows
            known = write_known(result, self.job.work, limit=limit, before=before)
            self.job = replace(self.job, known=(*self.job.known, (name, known)))
        self.results[name] = result
        return result.splits


def _write_dataset(folder: Path, work: Path, *, sources: Sources, config: IngestConfig) -> dict[str, Any]:
    reading = _Reading(work, sources=sources, config=config)
    splits: dict[str, dict[str, Any]] = {}
    with (folder / QUARANTINE_FILE).open("wb") as quarantine:
        for name in _ORDER:
            splits |= reading.read(name, folder=folder, quarantine=quarantine)
    results, tokenizer = reading.results, reading.job.tokenizer
    read_rows = {name: result.rows for name, result in results.items()}
    dropped = sum(result.dropped for result in results.values())
    check_accounts(folder, read_rows, dropped=dropped, config=config)
    profile = describe_dataset(folder, results, splits, config=config)
    return profile | {"tokenizer": f"sha256:{tokenizer.stem.removeprefix('tokenizer-')}" if tokenizer else ""}


def _list_inputs(profile: dict[str, Any]) -> dict[str, str]:
    """Digests of the files that were read, by source and place in it."""
    return {
        f"{name} {number}": file["digest"]
        for name, source in profile["sources"].items()
        for number, file in enumerate(source["files"], start=1)
    }
