"""A vector's settings are found by its certificate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from secvec.components.shared.adapters import base_tensors
from secvec.components.shared.errors import SecvecError
from secvec.components.shared.models import digest_tensors, load_model
from secvec.components.train_security_vector.certificate import certify
from secvec.components.train_security_vector.config import VectorConfig
from secvec.components.train_security_vector.search import change_settings, find_vector
from secvec.components.train_security_vector.training import VectorRows, train_vector


@pytest.fixture(autouse=True)
def environment(toy_environment: dict[str, str]) -> dict[str, str]:
    return toy_environment


def make_certificate(*failed: str, active: float = 0.5) -> dict[str, Any]:
    names = ("explains held-out seeds", "inert on benign anchors")
    return {
        "passed": not failed,
        "heldout_seed_loss": {"inactive": 2.0, "active": active},
        "checks": [{"name": name, "passed": name not in failed} for name in names],
    }


WEAK, BROAD = "explains held-out seeds", "inert on benign anchors"


@pytest.mark.parametrize(
    ("certificate", "ended_early", "changed"),
    [
        ({}, True, {"learning_rate": 1 / 5}),
        (make_certificate(WEAK, active=2.5), True, {"learning_rate": 1 / 5}),
        (make_certificate(BROAD), True, {"kl_weight": 4}),
        (make_certificate(WEAK), False, {"learning_rate": 2, "max_epochs": 2}),
        (make_certificate(WEAK), True, {"rank": 2, "learning_rate": 3}),
        (make_certificate(WEAK, BROAD), True, {"rank": 2, "kl_weight": 2, "max_epochs": 2}),
    ],
)
def test_what_failed_says_what_is_changed(
    certificate: dict[str, Any], ended_early: bool, changed: dict[str, float]
) -> None:
    before = VectorConfig()
    after = change_settings(before, certificate, ended_early=ended_early)
    values = {name: getattr(after, name) / getattr(before, name) for name in
              ("rank", "learning_rate", "kl_weight", "max_epochs")}  # fmt: skip
    assert {name: value for name, value in values.items() if value != 1} == pytest.approx(changed)


def test_settings_stay_within_what_they_may_be() -> None:
    config = VectorConfig(rank=200, learning_rate=0.09, max_epochs=900)
    for _ in range(4):
        config = change_settings(config, make_certificate(WEAK), ended_early=True)
        config = change_settings(config, make_certificate(WEAK), ended_early=False)
    assert VectorConfig.model_validate(config.model_dump()) == config


def search(toy: Any, scratch: Path, **settings: Any) -> Any:
    splits = ("seeds", "seeds_heldout", "anchors", "anchors_heldout")
    rows = VectorRows(**{split: toy.rows(split) for split in splits})
    base = load_model(toy.base)
    before = digest_tensors(base.state_dict())
    shared = {"seed": 0, "pad_id": toy.pad_id}

    def prove(model: Any, config: VectorConfig) -> dict[str, Any]:
        unchanged = digest_tensors(base_tensors(model)) == before
        return certify(model, rows, config=config, categories={}, base_unchanged=unchanged, **shared)

    return find_vector(
        base,
        config=VectorConfig(**settings),
        train=lambda base, config: train_vector(base, rows, config=config, scratch=scratch, **shared),
        certify=prove,
    )


def test_defaults_find_a_vector_of_another_language(toy: Any, tmp_path: Path) -> None:
    # Two dozen seeds of a language and a model that nothing was tuned for.
    found = search(toy, tmp_path)
    assert found.certificate["passed"] is True
    assert found.trials[-1]["passed"] is True
    assert not any(trial["passed"] for trial in found.trials[:-1])


def test_a_trial_that_fails_leaves_the_base_as_it_was(toy: Any, tmp_path: Path) -> None:
    # the first vector learns nothing; the certificate of the second says whether the base is untouched
    found = search(toy, tmp_path, rank=4, learning_rate=1e-3, max_epochs=2, batch_size=8, trials=6)
    assert len(found.trials) > 1
    assert {"name": "base untouched", "figure": 1.0, "comparison": ">=", "bound": 1.0, "passed": True} in (
        found.certificate["checks"]
    )
    assert list(found.trained.model.peft_config) == ["vector"]


def test_when_nothing_passes_the_nearest_is_named(toy: Any, tmp_path: Path) -> None:
    with pytest.raises(SecvecError) as caught:
        search(toy, tmp_path, learning_rate=1e-7, max_epochs=1, trials=2)
    assert str(caught.value).startswith(
        "train_security_vector: the security vector failed its certificate after 2 trials: explains held-out"
    )
