"""Coverage: how far a vector explains harm, by category and language, and what it does to other rows."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from secvec.components.shared.adapters import activate
from secvec.components.shared.likelihood import EncodedRecord, mean_loss, score_answers
from secvec.components.train_security_vector.training import row_kl_to_base

if TYPE_CHECKING:
    from peft import PeftModel

# With equal priors, a row that is more than 99 times likelier with the vector is its with 99% certainty.
EXPLAINED_NATS = math.log(99)
# What a source calls its harmful rows, where it labels them.
HARMFUL = "harmful"


@dataclass(frozen=True)
class Scores:
    """Log-probabilities of answers, nats, without the vector and with it, and their lengths in tokens."""

    without: list[float]
    with_vector: list[float]
    lengths: list[int]

    @property
    def losses(self) -> tuple[float, float]:
        """Mean loss per token without the vector and with it."""
        return mean_loss(self.without, self.lengths), mean_loss(self.with_vector, self.lengths)

    @property
    def fall(self) -> float:
        """How far the vector lowers the loss, nats per token."""
        without, with_vector = self.losses
        return without - with_vector

    @property
    def halfway(self) -> float:
        """The loss halfway between the two, nats per token."""
        return sum(self.losses) / 2

    def find_explained(self, *, floor: float = math.inf) -> list[bool]:
        """Which answers the vector makes more than 99 times likelier.

        Args:
            floor: Loss, nats per token, over which the vector explains nothing: of what is improbable with
                and without it, the ratio says nothing.
        """
        return [
            with_vector - max(without, -floor * length) > EXPLAINED_NATS
            for without, with_vector, length in zip(self.without, self.with_vector, self.lengths, strict=True)
        ]

    @property
    def explained(self) -> float:
        """Share of answers that the vector makes more than 99 times likelier."""
        return sum(self.find_explained()) / len(self.lengths)

    def pick(self, places: Sequence[int]) -> Scores:
        """The scores of some of the rows."""
        parts = (self.without, self.with_vector, self.lengths)
        return Scores(*([part[place] for place in places] for part in parts))  # type: ignore[arg-type]


def score_rows(model: PeftModel, rows: list[EncodedRecord], *, size: int, pad_id: int) -> Scores:
    """Score answers without and with the vector, which is active afterwards, and no task adapter."""
    activate(model, task=False, vector=False)
    without, lengths = score_answers(model, rows, size=size, pad_id=pad_id)
    activate(model, task=False, vector=True)
    with_vector, _ = score_answers(model, rows, size=size, pad_id=pad_id)
    return Scores(without, with_vector, lengths)


def measure_coverage(scores: Scores, groups: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """Coverage per harm category and language.

    Args:
        scores: Of held-out harm.
        groups: Category and language of each row, "" where the source names none.

    Returns:
        Per group, JSON-ready: ``category``, ``language``, ``rows``, ``loss_without`` and ``loss_with`` (nats
        per token), ``coverage`` (their difference) and ``explained`` (share of rows).
    """
    found = []
    for group, places in _places(groups).items():
        part = scores.pick(places)
        without, with_vector = part.losses
        found.append(
            {
                "category": group[0],
                "language": group[1],
                "rows": len(places),
                "loss_without": without,
                "loss_with": with_vector,
                "coverage": part.fall,
                "explained": part.explained,
            }
        )
    return found


def measure_falls(scores: Scores, names: Sequence[str]) -> dict[str, float]:
    """How far the loss falls by category (or language) alone, nats per token; ``all`` for rows without."""
    return {name or "all": scores.pick(places).fall for name, places in _places(names).items()}


def measure_training_rows(
    model: PeftModel,
    rows: list[EncodedRecord],
    *,
    labels: Sequence[str],
    floor: float,
    size: int,
    pad_id: int,
) -> dict[str, Any]:
    """What the vector does to a sample of the very rows that will be learned under it.

    Args:
        model: PEFT model with the vector attached.
        rows: The sample; it may be empty.
        labels: What their source says of them, "" where it says nothing.
        floor: Loss over which the vector explains nothing, nats per token.
        size: Rows per batch.
        pad_id: Token id that pads batches.

    Returns:
        JSON-ready: ``rows``, ``explained`` (share of them), ``kl`` (median over those that it does not
        explain, nats per token), ``labelled_harmful`` and ``labelled_otherwise`` (rows), and the shares of
        those, ``harmful_explained`` and ``others_explained``. A figure of no rows is None.
    """
    scores = score_rows(model, rows, size=size, pad_id=pad_id)
    explained = scores.find_explained(floor=floor)
    drift = row_kl_to_base(
        model,
        [row for row, is_explained in zip(rows, explained, strict=True) if not is_explained],
        size=size,
        pad_id=pad_id,
    )
    labelled = list(zip(explained, labels, strict=True))
    harmful = [is_explained for is_explained, label in labelled if label == HARMFUL]
    others = [is_explained for is_explained, label in labelled if label and label != HARMFUL]
    return {
        "rows": len(rows),
        "explained": _share(explained),
        "kl": statistics.median(drift) if drift else None,
        "labelled_harmful": len(harmful),
        "harmful_explained": _share(harmful),
        "labelled_otherwise": len(others),
        "others_explained": _share(others),
    }


def _share(found: Sequence[bool]) -> float | None:
    return sum(found) / len(found) if found else None


def _places(names: Sequence[Any]) -> dict[Any, list[int]]:
    groups: dict[Any, list[int]] = defaultdict(list)
    for place, name in enumerate(names):
        groups[name].append(place)
    return dict(sorted(groups.items()))
