"""Row attribution: how much better the vector explains a row than the base does."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secvec.components.fine_tune_guarded.processes import count_processes, deal, gather
from secvec.components.shared.adapters import activate
from secvec.components.shared.likelihood import EncodedRecord, score_answers
from secvec.components.shared.pages import page_templates
from secvec.components.shared.records import ChatRecord

if TYPE_CHECKING:
    from peft import PeftModel

TABLE_FILE = "attribution.parquet"
PAGE_FILE = "attribution.html"
SUMMARY_FILE = "attribution.json"
# What a source calls its harmful rows, where it labels them.
HARMFUL = "harmful"
_ON_PAGE = 200


@dataclass(frozen=True)
class RowAttribution:
    """Attribution of one row.

    Attributes:
        without: log p_θ(y|x), nats over the whole answer.
        with_vector: log p_θ+s(y|x), likewise.
        length: Tokens of the answer.
    """

    without: float
    with_vector: float
    length: int

    @property
    def per_token(self) -> float:
        """How much better the vector explains a token, so that long and short rows can be ranked together."""
        return (self.with_vector - self.without) / self.length


def attribute_rows(
    model: PeftModel, rows: list[EncodedRecord], *, size: int, pad_id: int
) -> list[RowAttribution]:
    """Ask of every row how much better the vector explains it than the base; the task adapter does not act.

    Args:
        model: PEFT model with the vector attached.
        rows: Encoded rows.
        size: Rows per batch.
        pad_id: Token id that pads batches.

    Returns:
        One attribution per row, in the rows' order; high means that a reviewer should look.
    """
    count = count_processes()
    # As many for each: a sharded model's passes are run by all processes at once.
    share = deal([*rows, *rows[:1] * (-len(rows) % count)])
    found = gather(_attribute_share(model, share, size=size, pad_id=pad_id))
    return [found[index % count * len(share) + index // count] for index in range(len(rows))]


def _attribute_share(
    model: PeftModel, rows: list[EncodedRecord], *, size: int, pad_id: int
) -> list[RowAttribution]:
    activate(model, task=False, vector=False)
    without, lengths = score_answers(model, rows, size=size, pad_id=pad_id)
    activate(model, task=False, vector=True)
    with_vector, _ = score_answers(model, rows, size=size, pad_id=pad_id)
    return [
        RowAttribution(without=inactive, with_vector=active, length=length)
        for inactive, active, length in zip(without, with_vector, lengths, strict=True)
    ]


def rank_rows(records: list[ChatRecord], attributions: list[RowAttribution]) -> list[dict[str, Any]]:
    """Give the reviewer's table, most suspect row first; scores are per token."""
    order = sorted(range(len(records)), key=lambda index: (-attributions[index].per_token, records[index].id))
    return [
        {
            "rank": rank,
            "nats_per_token": attributions[index].per_token,
            "loss_with_vector": -attributions[index].with_vector / attributions[index].length,
            "tokens": attributions[index].length,
            **records[index].model_dump(include={"id", "source", "line", "category", "language", "label"}),
            "prompt": "\n".join(message.content for message in records[index].prompt),
            "answer": records[index].answer,
        }
        for rank, index in enumerate(order, start=1)
    ]


def summarise_attribution(ranked: list[dict[str, Any]], *, most: int = 20) -> dict[str, Any]:
    """What the report says of the rows: which the vector explains best, by place and without their text.

    Args:
        ranked: The table of `rank_rows`.
        most: How many of them are named.

    Returns:
        JSON-ready: ``rows``, ``explained`` (rows that the vector makes likelier), the ``most_suspect``, and
        ``auroc`` where the source labels harmful rows and others (None elsewhere).
    """
    named = ("id", "source", "line", "category", "label")
    labelled = [
        (row["nats_per_token"], row["label"] == HARMFUL)
        for row in ranked
        if row["label"] and math.isfinite(row["nats_per_token"])  # training itself says what is not finite
    ]
    return {
        "rows": len(ranked),
        "explained": sum(row["nats_per_token"] > 0 for row in ranked),
        "most_suspect": [
            {"nats_per_token": round(row["nats_per_token"], 6), **{name: row[name] for name in named}}
            for row in ranked[:most]
        ],
        "auroc": measure_auroc(labelled),
    }


def measure_auroc(labelled: list[tuple[float, bool]]) -> dict[str, Any] | None:
    """How well scores tell harmful rows from others.

    The area under the ROC curve with the interval of Newcombe (Statistics in Medicine 25, 2006, part 2,
    method 5), which unlike a bootstrap's does not shrink to a point where every row is ranked right.

    Args:
        labelled: Score and whether the row is harmful, in any order.

    Returns:
        ``value``, ``lower`` and ``upper`` (95%), ``positive``, ``positives``, ``negatives``; None without
        rows of both kinds.
    """
    from scipy.stats import mannwhitneyu

    harmful = [score for score, is_harmful in labelled if is_harmful]
    others = [score for score, is_harmful in labelled if not is_harmful]
    if not harmful or not others:
        return None
    area = float(mannwhitneyu(harmful, others).statistic) / (len(harmful) * len(others))
    lower, upper = _auroc_interval(area, len(harmful), len(others))
    counts = {"positives": len(harmful), "negatives": len(others)}
    return {"value": area, "lower": lower, "upper": upper, "positive": HARMFUL, **counts}


def _auroc_interval(
    area: float, positives: int, negatives: int, *, z: float = 1.959964
) -> tuple[float, float]:
    from scipy.optimize import brentq

    half = (positives + negatives) / 2

    def excess(true: float) -> float:
        spread = 1 + (half - 1) * ((1 - true) / (2 - true) + true / (1 + true))
        variance = true * (1 - true) * spread / (positives * negatives)
        return float(abs(area - true) - z * variance**0.5)

    tiny = 1e-12
    lower = brentq(excess, tiny, area - tiny) if area > 2 * tiny else 0.0
    upper = brentq(excess, area + tiny, 1 - tiny) if area < 1 - 2 * tiny else 1.0
    return float(lower), float(upper)


def write_attribution(folder: Path, records: list[ChatRecord], attributions: list[RowAttribution]) -> None:
    """Write the reviewer's table as Parquet, its top as a page, and the summary as JSON."""
    import pyarrow
    import pyarrow.parquet

    ranked = rank_rows(records, attributions)
    summary = summarise_attribution(ranked)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ranked), folder / TABLE_FILE)
    # Nobody has vetted the rows: what looks like markup is shown as it is.
    templates = page_templates("secvec.components.fine_tune_guarded")
    page = templates.get_template("attribution.html.j2").render(rows=ranked[:_ON_PAGE], summary=summary)
    (folder / PAGE_FILE).write_text(page, encoding="utf-8")
    (folder / SUMMARY_FILE).write_text(json.dumps(summary, indent=2, sort_keys=True) + "\n", encoding="utf-8")
