"""The profile of a dataset: what was read, what was refused, and what its sources share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from secvec.components.ingest_data.config import SOURCE_NAMES, IngestConfig, SourceName
from secvec.components.ingest_data.merging import SourceResult
from secvec.components.ingest_data.sources import FileCount
from secvec.components.ingest_data.splits import DUPLICATES_FILE, QUARANTINE_FILE, count_lines
from secvec.components.shared.manifest import digest_file


def describe_dataset(
    folder: Path,
    results: Mapping[SourceName, SourceResult],
    splits: Mapping[str, dict[str, Any]],
    *,
    config: IngestConfig,
) -> dict[str, Any]:
    """Describe a dataset whose records are all written, as JSON.

    Nothing in it depends on when, where or from which folder or bucket the rows were read, or by how many
    processes.
    """
    extra = [QUARANTINE_FILE] + [DUPLICATES_FILE] * (folder / DUPLICATES_FILE).exists()
    ordered = [name for name in SOURCE_NAMES if name in results]
    return {
        "schema": 1,
        "config": config.content(),
        "sources": {name: _describe_source(results[name]) for name in ordered},
        "splits": {
            **splits,
            **{
                file: {"rows": count_lines(folder / file), "digest": digest_file(folder / file)}
                for file in extra
            },
        },
        "ngram_overlap": {
            name: {earlier: results[name].ngram_rows[earlier] for earlier in results[name].overlaps}
            for name in ordered
            if config.ngram_tokens
        },
        "overlap": {
            name: {
                earlier: {"same_rows": overlap.same_rows, "same_prompts": overlap.same_prompts}
                for earlier, overlap in results[name].overlaps.items()
            }
            for name in ordered
        },
    }


def _describe_source(result: SourceResult) -> dict[str, Any]:
    return {
        "rows": result.rows,
        "used": result.rows - result.quarantined - result.dropped,
        "quarantined": result.quarantined,
        "duplicates": result.dropped,
        "reasons": dict(sum((count.reasons for count in result.counts), Counter[str]())),
        "distinct_rows": result.distinct_rows,
        "distinct_prompts": result.distinct_prompts,
        "content": f"sha256:{result.content}",
        "near_duplicates": result.near,
        "over_long": sum(count.over_long for count in result.counts),
        "figures": result.figures.describe(),
        "normalised": sum(count.normalised for count in result.counts),
        "ignored_files": result.ignored,
        "files": [_describe_file(count) for count in result.counts],
    }


def _describe_file(file: FileCount) -> dict[str, Any]:
    return {
        "name": file.name,
        "format": file.format,
        "digest": file.digest,
        "rows": file.rows,
        "used": file.used,
        "quarantined": file.reasons.total(),
        "columns_used": dict(file.shapes),
    }
