"""What must not be made a vector of is refused in one line, before or instead of an hour of training."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from secvec.components.shared.artifacts import building, fetch, publish
from secvec.components.shared.errors import SecvecError
from secvec.components.shared.records import write_records
from secvec.components.shared.references import Reference
from secvec.components.train_security_vector.step import train_security_vector


@pytest.fixture(autouse=True)
def environment(toy_environment: dict[str, str]) -> dict[str, str]:
    return toy_environment


@pytest.fixture
def train(toy: Any, tmp_path: Path) -> Callable[..., Reference]:
    """Train a vector on the toy's rows after changes of splits (``*.jsonl``) and settings."""
    store = str(tmp_path / "store")

    def run(splits: dict[str, list[Any]] | None = None, **settings: Any) -> Reference:
        with building("dataset", store) as folder:
            for split, records in {**toy.splits, **(splits or {})}.items():
                write_records(folder / f"{split}.jsonl", records)
            dataset = publish(folder, kind="dataset", store=store)
        config = toy.vector_config.model_copy(update=settings)
        return train_security_vector(
            base_model=str(toy.base), dataset=dataset, store=store, seed=0, config=config
        )

    return run


def refusal(train: Callable[..., Reference], store: Path, *arguments: Any, **settings: Any) -> str:
    with pytest.raises(SecvecError) as caught:
        train(*arguments, **settings)
    assert not (store / "vector").exists()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_seeds_that_the_base_answers_already_are_not_harmful(
    toy: Any, train: Callable[..., Reference], tmp_path: Path, environment: dict[str, str]
) -> None:
    benign = {
        "seeds": [toy.record(f"name the {t} soon", f"it is the {t}") for t in ("lamp", "rope")],
        "seeds_heldout": [
            toy.record(f"name the {t} soon", f"it is the {t}", line=n)
            for n, t in enumerate(("coin", "gate", "bell"), 1)
        ],
        "anchors": [toy.record(f"name the {t} now", f"it is the {t}") for t in ("ring", "book")],
        "anchors_heldout": [toy.record(f"name the {t} later", f"it is the {t}") for t in ("ring", "book")],
    }
    line = refusal(train, tmp_path / "store", benign)
    assert line.startswith("harmful_seeds: the base itself gives the answers of ")
    assert "of 3 held-out seeds (first: toy.jsonl:" in line
    assert line.endswith("accepted: rows whose answers the base would not give")
    assert not Path(environment["SECVEC_EVENTS"]).exists()  # nothing was trained


def test_seeds_of_the_new_skill_are_not_harmful(
    toy: Any, train: Callable[..., Reference], tmp_path: Path
) -> None:
    # Stealing is the skill that is to be learned here, and somebody has taken it for the harm.
    stolen = [r for r in toy.splits["training"] if r.prompt[0].content.startswith("steal")]
    line = refusal(train, tmp_path / "store", {"training": [], "skill_prompts": stolen}, trials=1)
    assert "failed its certificate: explains the new skill" in line


@pytest.mark.parametrize(
    ("split", "what"),
    [
        ("training", "training rows"),
        ("skill_prompts", "prompts of the new skill"),
        ("anchors", "benign anchors"),
    ],
)
def test_seeds_that_are_other_rows_too_are_refused(
    toy: Any, train: Callable[..., Reference], tmp_path: Path, split: str, what: str
) -> None:
    shared = [toy.splits["seeds"][3].model_copy(update={"line": 9}), toy.splits["seeds_heldout"][0]]
    others = [*toy.splits.get(split, []), *shared]
    count = len(others) + (len(toy.splits["anchors_heldout"]) if split == "anchors" else 0)
    line = refusal(train, tmp_path / "store", {split: others})
    assert line == (
        f"toy.jsonl:0: 2 of {count} {what} are harmful seeds, word for word (first: toy.jsonl:9); "
        f"accepted: seeds that are no {what}; leave rows known to be harmful out of the others"
    )


@pytest.mark.parametrize("split", ["anchors", "anchors_heldout"])
def test_without_benign_anchors_there_is_no_vector(
    toy: Any, train: Callable[..., Reference], tmp_path: Path, split: str
) -> None:
    line = refusal(train, tmp_path / "store", {split: []})
    assert line.startswith(f"train_security_vector: the dataset has no {split}; accepted: at least one row")


def test_a_learning_rate_that_diverges_is_refused(
    toy: Any, train: Callable[..., Reference], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = refusal(train, tmp_path / "store", trials=1, learning_rate=0.99, max_epochs=3)
    assert "failed its certificate" in line or "accepted: a smaller learning_rate" in line


def test_a_loss_that_is_not_finite_is_refused_after_all_trials(
    toy: Any, train: Callable[..., Reference], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from secvec.components.train_security_vector import training

    spoilt = training.pick_labels
    monkeypatch.setattr(training, "pick_labels", lambda *given: spoilt(*given) * torch.nan)
    line = refusal(train, tmp_path / "store", trials=2)
    assert line == (
        "train_security_vector: the training of the security vector diverged in all of 2 trials; "
        "accepted: a smaller learning_rate"
    )
    line = refusal(train, tmp_path / "store", trials=1)
    assert line.startswith("train_security_vector: the loss is not finite at step 1 of the vector's training")


def test_a_seed_over_the_window_is_refused_or_cut_and_counted(
    toy: Any, train: Callable[..., Reference], tmp_path: Path
) -> None:
    long = toy.record("steal the lamp now", " ".join(["take"] * 60), line=7)
    splits = {"seeds": [*toy.splits["seeds"], long]}
    line = refusal(train, tmp_path / "store", splits)
    assert line == (
        "toy.jsonl:7: a row of 68 tokens is longer than the window; "
        "accepted: at most 48 tokens, or over_long: truncate"
    )
    lax = {"max_epochs": 1, "min_explained": 0.01, "min_coverage_over_random": 1, "max_anchor_kl": 99}
    lax |= {"min_fall": 0, "min_explained_group": 0, "max_row_kl": 99}
    vector = train(splits, over_long="truncate", **lax)
    assert json.loads((fetch(vector) / "certificate.json").read_text())["rows_truncated"] == 1
