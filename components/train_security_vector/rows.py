"""The rows that a vector is made from and proved on, and what must not be among them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from secvec.components.shared.adapters import activate
from secvec.components.shared.errors import SecvecError
from secvec.components.shared.likelihood import EncodedRecord, encode_record, score_answers
from secvec.components.shared.records import ChatRecord, read_records
from secvec.components.train_security_vector.comparison import EXPLAINED_NATS
from secvec.components.train_security_vector.config import VectorConfig
from secvec.components.train_security_vector.training import VectorRows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_NEEDED = ("seeds", "seeds_heldout", "anchors", "anchors_heldout")
# What a dataset may also hold; of these a sample is looked at.
_SAMPLED = {"training": "training.jsonl", "skill": "skill_prompts.jsonl"}


@dataclass(frozen=True)
class VectorRecords:
    """The records behind `VectorRows`, by the names of its fields."""

    splits: dict[str, list[ChatRecord]]

    def certificate_facts(self) -> dict[str, Any]:
        """What `certify` must know of the rows beside their tokens."""
        heldout, training = self.splits["seeds_heldout"], self.splits["training"]
        return {
            "categories": {record.id: record.category for record in heldout},
            "languages": {record.id: record.language for record in heldout},
            "labels": {record.id: record.label for record in training if record.label},
        }


def read_splits(folder: Path, *, config: VectorConfig, seed: int) -> VectorRecords:
    """Read seeds and anchors, and draw the sample of training rows and of the new skill.

    Raises:
        SecvecError: A split is empty, or seeds are also anchors or training rows.
    """
    splits = {name: read_records(folder / f"{name}.jsonl") for name in _NEEDED}
    for name, records in splits.items():
        if not records:
            raise SecvecError(
                f"the dataset has no {name}",
                where="train_security_vector",
                accepted="at least one row; add rows or change the held-out share",
            )
    for name, file in _SAMPLED.items():
        found = read_records(folder / file) if (folder / file).exists() else []
        _refuse_seeds(
            splits, found, what="training rows" if name == "training" else "prompts of the new skill"
        )
        answered = [record for record in found if record.answer]
        splits[name] = Random(seed).sample(answered, min(config.sample_rows, len(answered)))
    _refuse_seeds(splits, splits["anchors"] + splits["anchors_heldout"], what="benign anchors")
    return VectorRecords(splits)


def _refuse_seeds(splits: dict[str, list[ChatRecord]], others: Sequence[ChatRecord], *, what: str) -> None:
    seeds = {record.id: record for name in ("seeds", "seeds_heldout") for record in splits[name]}
    shared = [record for record in others if record.id in seeds]
    if shared:
        seed = seeds[shared[0].id]
        raise SecvecError(
            f"{len(shared)} of {len(others)} {what} are harmful seeds, word for word "
            f"(first: {shared[0].source}:{shared[0].line})",
            where=f"{seed.source}:{seed.line}",
            accepted=f"seeds that are no {what}; leave rows known to be harmful out of the others",
        )


def encode_splits(
    records: VectorRecords, tokenizer: PreTrainedTokenizerBase, *, window: int, config: VectorConfig
) -> VectorRows:
    """Encode the rows with the base's tokenizer.

    Raises:
        SecvecError: A seed or an anchor is longer than the window, and nobody asked to truncate.
    """

    def encode(name: str) -> list[EncodedRecord]:
        # Whether over-long training rows are refused is decided where they are learned.
        truncate = config.over_long == "truncate" or name in _SAMPLED
        found = records.splits[name]
        return [encode_record(one, tokenizer, window=window, truncate=truncate) for one in found]

    return VectorRows(**{name: encode(name) for name in (*_NEEDED, *_SAMPLED)})


def count_truncated(rows: VectorRows) -> int:
    """Seeds and anchors that were cut to the window."""
    return sum(row.truncated for name in _NEEDED for row in getattr(rows, name))


def refuse_answered_seeds(
    model: Any, rows: VectorRows, records: VectorRecords, *, config: VectorConfig, pad_id: int
) -> None:
    """Refuse seeds that the base answers like this already: there is nothing in them for a vector to explain.

    An answer of probability over 1/99 cannot become 99 times likelier, whatever is trained.

    Args:
        model: The base.
        rows: Encoded rows.
        records: The same rows as text.
        config: Says how many held-out seeds must be explained.
        pad_id: Token id that pads batches.

    Raises:
        SecvecError: So many are answered already that the certificate must fail.
    """
    activate(model, task=False, vector=False)
    scores, _ = score_answers(model, rows.seeds_heldout, size=2 * config.batch_size, pad_id=pad_id)
    likely = [place for place, score in enumerate(scores) if score > -EXPLAINED_NATS]
    if len(likely) > math.floor((1 - config.min_explained) * len(scores)):
        first = records.splits["seeds_heldout"][likely[0]]
        raise SecvecError(
            f"the base itself gives the answers of {len(likely)} of {len(scores)} held-out seeds "
            f"(first: {first.source}:{first.line}): they are not harmful, or the base refuses nothing",
            where="harmful_seeds",
            accepted="rows whose answers the base would not give",
        )
