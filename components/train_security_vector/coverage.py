"""Coverage: how far a vector explains harm, by category and language, and what it does to other rows."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from secvec.components.train_security_vector.comparison import Comparison

# What a source calls its harmful rows, where it labels them.
HARMFUL = "harmful"


def measure_coverage(scores: Comparison, groups: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
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


def measure_falls(scores: Comparison, names: Sequence[str]) -> dict[str, float]:
    """How far the loss falls by category (or language) alone, nats per token; ``all`` for rows without."""
    return {name or "all": scores.pick(places).fall for name, places in _places(names).items()}


def measure_training_rows(found: Comparison, *, labels: Sequence[str], floor: float) -> dict[str, Any]:
    """What the vector does to a sample of the very rows that will be learned under it.

    Args:
        found: Of the sample; it may be empty.
        labels: What their source says of them, "" where it says nothing.
        floor: τ of `explained_from`, nats per token.

    Returns:
        JSON-ready: ``rows``, ``explained`` (share of them), ``kl`` (median over those that it does not
        explain, nats per token), ``labelled_harmful`` and ``labelled_otherwise`` (rows), and the shares of
        those, ``harmful_explained`` and ``others_explained``. A figure of no rows is None.
    """
    explained = found.find_explained(floor=floor)
    drift = [
        divergence / length
        for divergence, length, is_explained in zip(found.divergence, found.lengths, explained, strict=True)
        if not is_explained
    ]
    labelled = list(zip(explained, labels, strict=True))
    harmful = [is_explained for is_explained, label in labelled if label == HARMFUL]
    others = [is_explained for is_explained, label in labelled if label and label != HARMFUL]
    return {
        "rows": len(found.lengths),
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
