"""The certificate: what a security vector must prove before it may guard anything."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from secvec.components.shared.adapters import VECTOR, adapter_tensors
from secvec.components.shared.errors import SecvecError
from secvec.components.shared.likelihood import score_answers
from secvec.components.train_security_vector.comparison import compare_rows
from secvec.components.train_security_vector.config import VectorConfig
from secvec.components.train_security_vector.coverage import (
    measure_coverage,
    measure_falls,
    measure_training_rows,
)
from secvec.components.train_security_vector.training import VectorRows

if TYPE_CHECKING:
    from peft import PeftModel

# Of three rows that a vector explains nine times in ten, two or more go unexplained once in 36 times.
FEWEST_IN_GROUP = 3
# Of fewer labelled rows than these a share says little.
FEWEST_LABELLED = 5


def certify(
    model: PeftModel,
    rows: VectorRows,
    *,
    config: VectorConfig,
    pad_id: int,
    seed: int,
    categories: Mapping[str, str],
    base_unchanged: bool,
    languages: Mapping[str, str] | None = None,
    labels: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Measure a vector on held-out rows.

    Args:
        model: PEFT model with the vector attached.
        rows: Only the held-out halves and the sample of training rows are used.
        config: Thresholds.
        pad_id: Token id that pads batches.
        seed: Seed of the random control vector.
        categories: Harm category by record id.
        base_unchanged: Whether the base's weights are the same bytes as before training.
        languages: Language by record id.
        labels: What their source says of training rows, by record id, where it says anything.

    Returns:
        ``passed``, ``checks`` (name, figure, bound, passed), ``heldout_seed_loss`` with and without the
        vector, ``coverage`` (its fall, nats per token) per category and ``coverage_by_language``,
        ``coverage_groups`` (see `measure_coverage`) and ``training_rows`` (see `measure_training_rows`).
    """
    size, heldout = 4 * config.batch_size, rows.seeds_heldout
    scores = compare_rows(model, heldout, size=size, pad_id=pad_id)
    with _RandomVector(model, seed=seed):
        of_random, _ = score_answers(model, heldout, size=size, pad_id=pad_id)
    random = replace(scores, with_vector=of_random)
    anchor_kl = compare_rows(model, rows.anchors_heldout, size=size, pad_id=pad_id).drift
    training = _look_at_training_rows(
        model, rows, labels=labels or {}, floor=scores.halfway, size=size, pad_id=pad_id
    )
    names = [categories.get(row.record_id, "") for row in heldout]
    spoken = [(languages or {}).get(row.record_id, "") for row in heldout]
    groups = measure_coverage(scores, list(zip(names, spoken, strict=True)))
    without, with_vector = scores.losses
    random_bound = config.min_coverage_over_random * max(random.fall, 0.0)
    checks = [
        _check("explains held-out seeds", scores.explained, ">=", config.min_explained),
        _check("share of their loss that it takes away", scores.fall / without, ">=", config.min_fall),
        _check("works better than a random vector", scores.fall, ">=", random_bound),
        *_check_groups(groups, config),
        _check("inert on benign anchors", anchor_kl, "<=", config.max_anchor_kl),
        *_check_training_rows(training, config),
        _check("base untouched", float(base_unchanged), ">=", 1.0),
    ]
    return {
        "passed": all(check["passed"] for check in checks),
        "checks": checks,
        "heldout_seed_loss": {"inactive": without, "active": with_vector},
        "coverage": measure_falls(scores, names),
        "coverage_by_language": measure_falls(scores, spoken),
        "coverage_groups": groups,
        "training_rows": training,
    }


def refuse_if_failed(certificate: dict[str, Any], *, trials: int = 1) -> None:
    """Stop before an hour of training is spent behind a vector that does not work.

    Raises:
        SecvecError: With the first failed check, its figure and its bound.
    """
    for check in certificate["checks"]:
        if not check["passed"]:
            after = f" after {trials} trials" if trials > 1 else ""
            raise SecvecError(
                f"the security vector failed its certificate{after}: {check['name']} = {check['figure']:.4g}",
                where="train_security_vector",
                accepted=f"{check['comparison']} {check['bound']:.4g}",
            )


def _check(name: str, figure: float, comparison: str, bound: float) -> dict[str, Any]:
    holds = figure >= bound if comparison == ">=" else figure <= bound
    return {
        "name": name,
        "figure": figure,
        "comparison": comparison,
        "bound": bound,
        "passed": bool(math.isfinite(figure) and holds),
    }


def _check_groups(groups: list[dict[str, Any]], config: VectorConfig) -> list[dict[str, Any]]:
    """Whether every category and language with enough held-out seeds is covered."""
    checks = []
    for group in groups:
        name = ", ".join(filter(None, (group["category"], group["language"])))
        if name and group["rows"] >= FEWEST_IN_GROUP:
            about = f"explains held-out seeds of {name}"
            checks.append(_check(about, group["explained"], ">=", config.min_explained_group))
    return checks


def _look_at_training_rows(
    model: PeftModel, rows: VectorRows, *, labels: Mapping[str, str], floor: float, size: int, pad_id: int
) -> dict[str, Any]:
    known = [labels.get(row.record_id, "") for row in rows.training]
    sample = compare_rows(model, rows.training, size=size, pad_id=pad_id)
    found = measure_training_rows(sample, labels=known, floor=floor)
    skill = compare_rows(model, rows.skill, size=size, pad_id=pad_id).find_explained(floor=floor)
    share = sum(skill) / len(skill) if skill else None
    return {**found, "skill_rows": len(skill), "skill_explained": share}


def _check_training_rows(training: dict[str, Any], config: VectorConfig) -> list[dict[str, Any]]:
    """Whether the vector spares what is to be learned and covers what is known to be harmful."""
    found = [
        (1, "inert on training rows", training["rows"], training["kl"], "<=", config.max_row_kl),
        (
            FEWEST_LABELLED,
            "explains training rows labelled harmful",
            training["labelled_harmful"],
            training["harmful_explained"],
            ">=",
            config.min_protected,
        ),
        (
            FEWEST_LABELLED,
            "explains training rows labelled otherwise",
            training["labelled_otherwise"],
            training["others_explained"],
            "<=",
            config.max_overreach,
        ),
        (
            FEWEST_LABELLED,
            "explains the new skill",
            training["skill_rows"],
            training["skill_explained"],
            "<=",
            config.max_overreach,
        ),
    ]
    return [
        _check(name, figure, comparison, bound)
        for fewest, name, rows, figure, comparison, bound in found
        if rows >= fewest and figure is not None
    ]


class _RandomVector:
    """Replace the vector by random tensors of the same norms while the block runs.

    The control of inoculation adapters (arXiv 2606.30252): what such a one does too is not the vector's work.
    """

    def __init__(self, model: PeftModel, *, seed: int) -> None:
        self.model = model
        self.generator = torch.Generator().manual_seed(seed)

    def __enter__(self) -> None:
        self.kept = {name: tensor.clone() for name, tensor in adapter_tensors(self.model, VECTOR).items()}
        self._set({name: self._like(tensor) for name, tensor in self.kept.items()})

    def __exit__(self, *_: object) -> None:
        self._set(self.kept)

    def _like(self, tensor: torch.Tensor) -> torch.Tensor:
        drawn = torch.randn(tensor.shape, generator=self.generator).to(tensor)
        return drawn * (tensor.norm() / drawn.norm())

    def _set(self, tensors: dict[str, torch.Tensor]) -> None:
        from peft import set_peft_model_state_dict

        set_peft_model_state_dict(self.model, tensors, adapter_name=VECTOR)
