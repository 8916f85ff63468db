"""Row attribution: how much better the vector explains a row than the base does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secvec.components.fine_tune_guarded.processes import count_processes, deal, gather
from secvec.components.shared.adapters import activate
from secvec.components.shared.likelihood import EncodedRecord, score_answers
from secvec.components.shared.records import ChatRecord

if TYPE_CHECKING:
    from peft import PeftModel

SUMMARY_FILE = "attribution.json"


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


def summarise_attribution(
    records: list[ChatRecord], attributions: list[RowAttribution], *, most: int = 20
) -> dict[str, Any]:
    """What the report says of the rows: which the vector explains best, by place and without their text.

    Args:
        records: The rows.
        attributions: One per row.
        most: How many of them are named.

    Returns:
        JSON-ready: ``rows``, ``explained`` (rows that the vector makes likelier) and the ``most_suspect``.
    """
    order = sorted(range(len(records)), key=lambda index: (-attributions[index].per_token, records[index].id))
    return {
        "rows": len(records),
        "explained": sum(found.per_token > 0 for found in attributions),
        "most_suspect": [
            {
                "nats_per_token": round(attributions[index].per_token, 6),
                **records[index].model_dump(include={"id", "source", "line", "category", "label"}),
            }
            for index in order[:most]
        ],
    }


def write_attribution(file: Path, records: list[ChatRecord], attributions: list[RowAttribution]) -> None:
    """Write the reviewer's table as Parquet, most suspect row first."""
    import pyarrow
    import pyarrow.parquet

    order = sorted(range(len(records)), key=lambda index: (-attributions[index].per_token, records[index].id))
    table = pyarrow.table(
        {
            "rank": list(range(1, len(order) + 1)),
            "nats_per_token": [attributions[index].per_token for index in order],
            "loss_with_vector": [
                -attributions[index].with_vector / attributions[index].length for index in order
            ],
            "id": [records[index].id for index in order],
            "source": [records[index].source for index in order],
            "line": [records[index].line for index in order],
            "category": [records[index].category for index in order],
            "label": [records[index].label for index in order],
            "prompt": ["\n".join(m.content for m in records[index].prompt) for index in order],
            "answer": [records[index].answer for index in order],
        }
    )
    pyarrow.parquet.write_table(table, file)
