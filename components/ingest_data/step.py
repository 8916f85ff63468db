"""The step: sources in, one published dataset out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from secvec.components.ingest_data.config import EVALUATION, IngestConfig, SourceName, Sources
from secvec.components.ingest_data.merging import SourceResult, write_empty, write_known, write_source
from secvec.components.ingest_data.profile import describe_dataset
from secvec.components.ingest_data.profile_page import render_profile
from secvec.components.ingest_data.reading import SourcePlan, count_processors, make_reader, read_source
from secvec.components.ingest_data.shards import Job
from secvec.components.ingest_data.splits import PAGE_FILE, PROFILE_FILE, QUARANTINE_FILE, check_accounts
from secvec.components.ingest_data.tokens import bring_tokenizer
from secvec.components.ingest_data.workplace import keeping_shards
from secvec.components.shared.artifacts import building, publish
from secvec.components.shared.finished import input_key
from secvec.components.shared.provenance import attest
from secvec.components.shared.references import Reference

STEP = "ingest_data"
# Small sources first: the training rows, which may be many, are then compared with them while they stream by.
_ORDER: tuple[SourceName, ...] = (*EVALUATION, "harmful_seeds", "benign_anchors", "training_data")
_LAST: SourceName = "training_data"


def ingest_data(*, sources: Sources, store: str, config: IngestConfig) -> Reference:
    """Read all sources into canonical chat records and publish them as one dataset.

    The dataset's digest depends on the names and bytes of the files and on the settings, not on where the
    files lie, nor on how many processes read them. A run that was killed is taken up by the next with the
    same sources and settings: shards that it finished are not read again.

    Args:
        sources: Where the rows lie.
        store: URI of the artifact store.
        config: How rows are read, split and refused.

    Returns:
        Reference to a folder with one JSONL file of `ChatRecord` per set, ``quarantine.jsonl``,
        ``profile.json``, ``profile.html`` and, where rows are dropped, ``duplicates.jsonl``.

    Raises:
        SecvecError: A source is missing, empty, of an unknown format or shape, or too bad; no seeds or
            anchors are left to learn from or held out; a row, seed or anchor asks an evaluation prompt.
            Nothing is published then.
    """
    for name in _ORDER:
        sources.uris(name)
    key = input_key(sources=sources, config=config.content())
    with building("dataset", store) as folder, keeping_shards(folder.parent, key) as work:
        profile = _write_dataset(folder, work, sources=sources, config=config)
        text = json.dumps(profile, indent=2, sort_keys=True, ensure_ascii=False)
        (folder / PROFILE_FILE).write_text(text + "\n", encoding="utf-8")
        (folder / PAGE_FILE).write_text(render_profile(profile), encoding="utf-8")
        rows = {file: split["rows"] for file, split in profile["splits"].items()}
        reference = publish(folder, kind="dataset", store=store, about={"rows": rows})
    attest(reference, step=STEP, inputs=_list_inputs(profile), parameters=config.model_dump(mode="json"))
    return reference


def _write_dataset(folder: Path, work: Path, *, sources: Sources, config: IngestConfig) -> dict[str, Any]:
    tokenizer = bring_tokenizer(config.tokenizer, work)
    plans = {name: SourcePlan(name, uris, config=config) for name in _ORDER if (uris := sources.uris(name))}
    results: dict[SourceName, SourceResult] = {}
    splits: dict[str, dict[str, Any]] = {}
    known: tuple[tuple[SourceName, Path], ...] = ()
    with (folder / QUARANTINE_FILE).open("wb") as quarantine:
        for name in _ORDER:
            if name not in plans:
                splits |= write_empty(name, folder, config=config)
                continue
            read = make_reader(Job(work=work, known=known, tokenizer=tokenizer, config=config))
            workers = config.workers or count_processors()
            result = results[name] = read_source(plans[name], read, config=config, workers=workers)
            write_source(result, folder, quarantine, config=config)
            splits |= result.splits
            if name != _LAST:
                before = sum(one.rows - one.quarantined for one in results.values() if one is not result)
                limit = config.limits.max_compared_rows
                known = (*known, (name, write_known(result, work, limit=limit, before=before)))
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
