"""The step: sources in, one published dataset out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from secvec.components.ingest_data.config import EVALUATION, IngestConfig, SourceName, Sources
from secvec.components.ingest_data.overlap import Comparison
from secvec.components.ingest_data.profile import describe_dataset
from secvec.components.ingest_data.sources import SourceReader
from secvec.components.ingest_data.splits import PROFILE_FILE, QUARANTINE_FILE, check_accounts, write_source
from secvec.components.shared.artifacts import building, publish
from secvec.components.shared.provenance import attest
from secvec.components.shared.references import Reference

STEP = "ingest_data"
# Small sources first: the training rows, which may be many, are then compared with them while they stream by.
_ORDER: tuple[SourceName, ...] = (*EVALUATION, "harmful_seeds", "benign_anchors", "training_data")


def ingest_data(*, sources: Sources, store: str, config: IngestConfig) -> Reference:
    """Read all sources into canonical chat records and publish them as one dataset.

    The dataset's digest depends on the names and bytes of the files and on the settings, not on where the
    files lie.

    Args:
        sources: Where the rows lie.
        store: URI of the artifact store.
        config: How rows are read, split and refused.

    Returns:
        Reference to a folder with one JSONL file of `ChatRecord` per set, ``quarantine.jsonl`` and
        ``profile.json``.

    Raises:
        SecvecError: A source is missing, empty, of an unknown format or shape, or too bad; no seeds or
            anchors are left to learn from or held out; a row, seed or anchor asks an evaluation prompt.
            Nothing is published then.
    """
    for name in _ORDER:
        sources.uris(name)
    with building("dataset", store) as folder:
        readers, comparison = _write_records(folder, sources=sources, config=config)
        check_accounts(folder, {name: reader.rows for name, reader in readers.items()})
        profile = describe_dataset(folder, readers, comparison, config=config)
        text = json.dumps(profile, indent=2, sort_keys=True, ensure_ascii=False)
        (folder / PROFILE_FILE).write_text(text + "\n", encoding="utf-8")
        rows = {file: split["rows"] for file, split in profile["splits"].items()}
        reference = publish(folder, kind="dataset", store=store, about={"rows": rows})
    attest(reference, step=STEP, inputs=_list_inputs(profile), parameters=config.model_dump(mode="json"))
    return reference


def _list_inputs(profile: dict[str, Any]) -> dict[str, str]:
    """Digests of the files that were read, by source and place in it."""
    return {
        f"{name} {number}": file["digest"]
        for name, source in profile["sources"].items()
        for number, file in enumerate(source["files"], start=1)
    }


def _write_records(
    folder: Path, *, sources: Sources, config: IngestConfig
) -> tuple[dict[SourceName, SourceReader], Comparison]:
    readers: dict[SourceName, SourceReader] = {}
    comparison = Comparison()
    with (folder / QUARANTINE_FILE).open("w", encoding="utf-8", newline="\n") as quarantine:
        for name in _ORDER:
            uris = sources.uris(name)
            if not uris:
                write_source(folder, name, (), config=config)
                continue
            reader = readers[name] = SourceReader(
                name,
                uris,
                mapping=config.columns.get(name, {}),
                quarantine=quarantine,
                max_bad_share=config.max_bad_share,
            )
            write_source(folder, name, comparison.watch(name, reader.read()), config=config)
    return readers, comparison
