from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from secvec.components.shared.adapters import (
    adapter_tensors,
    attach_vector,
    base_tensors,
    pack_vector,
    vector_digest,
)
from secvec.components.shared.artifacts import building, fetch, publish
from secvec.components.shared.errors import SecvecError
from secvec.components.shared.models import digest_model_folder, digest_tensors, load_model
from secvec.components.shared.records import write_records
from secvec.components.train_security_vector.step import train_security_vector
from secvec.components.train_security_vector.training import VectorRows, _VectorTrainer, train_vector

# A vector that is trained for a moment passes these.
LAX = {"max_epochs": 2, "min_explained": 0.01, "min_coverage_over_random": 1.0, "max_anchor_kl": 99.0}
LAX |= {"min_fall": 0.0, "min_explained_group": 0.0, "max_row_kl": 99.0}


@pytest.fixture(autouse=True)
def environment(toy_environment: dict[str, str]) -> dict[str, str]:
    return toy_environment


def encode(toy: Any) -> VectorRows:
    splits = ("seeds", "seeds_heldout", "anchors", "anchors_heldout")
    return VectorRows(**{split: toy.rows(split) for split in splits})


def train_briefly(toy: Any, base: Any, scratch: Path, **changes: Any) -> Any:
    config = toy.vector_config.model_copy(update={"max_epochs": 1, **changes})
    return train_vector(base, encode(toy), config=config, seed=0, pad_id=toy.pad_id, scratch=scratch)


def publish_dataset(toy: Any, store: str, **splits: Any) -> Any:
    with building("dataset", store) as folder:
        for split, records in {**toy.splits, **splits}.items():
            write_records(folder / f"{split}.jsonl", records)
        return publish(folder, kind="dataset", store=store)


def files_under(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_rule_1_training_a_vector_leaves_the_base_as_it_was(
    toy: Any, bf16_base: Path, tmp_path: Path, kind: str
) -> None:
    folder = toy.base if kind == "float32" else bf16_base
    model = load_model(folder)
    assert str(model.dtype) == f"torch.{kind}"
    on_disk, in_memory = digest_model_folder(folder), digest_tensors(model.state_dict())
    trained = train_briefly(toy, model, tmp_path / "scratch")
    assert any(bool(t.any()) for n, t in adapter_tensors(trained.model, "vector").items() if ".lora_B." in n)
    assert digest_tensors(base_tensors(trained.model)) == in_memory
    assert digest_model_folder(folder) == on_disk


def test_rule_2_a_trained_vector_leaves_training_frozen(toy: Any, tmp_path: Path) -> None:
    trained = train_briefly(toy, load_model(toy.base), tmp_path)
    assert not [name for name, p in trained.model.named_parameters() if p.requires_grad]
    assert not trained.model.training


def test_a_vector_of_a_bfloat16_base_is_certified_and_sealed_as_such(
    toy: Any, bf16_base: Path, tmp_path: Path
) -> None:
    trained = train_briefly(toy, load_model(bf16_base), tmp_path)
    tensors = adapter_tensors(trained.model, "vector")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    again = attach_vector(load_model(bf16_base), pack_vector(trained.model))
    assert vector_digest(again) == vector_digest(trained.model)


def test_rule_4_the_vector_is_nowhere_on_the_disk(
    toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    config = toy.vector_config
    store = str(tmp_path / "store")
    dataset = publish_dataset(toy, store)
    reference = train_security_vector(
        base_model=str(toy.base), dataset=dataset, store=store, seed=0, config=config
    )
    folder = fetch(reference)
    assert {path.name for path in folder.iterdir()} == {"vector.sealed", "certificate.json", "manifest.json"}
    # The same inputs train the same vector, so that its bytes are known from the toy's.
    certificate = json.loads((folder / "certificate.json").read_text())
    assert certificate["vector_tensors_digest"] == toy.certificate["vector_tensors_digest"]
    secrets = [t.numpy().tobytes() for t in adapter_tensors(toy.model(task="full"), "vector").values()]
    found = files_under(tmp_path)
    assert len(found) > 8
    assert not [path for path in found for secret in secrets if secret in path.read_bytes()]
    assert not [path for path in found if path.name.startswith("adapter_")]


def test_the_same_inputs_are_not_trained_twice(toy: Any, tmp_path: Path, environment: dict[str, str]) -> None:
    store = str(tmp_path / "store")
    dataset = publish_dataset(toy, store)
    config = toy.vector_config.model_copy(update=LAX)
    arguments = {"base_model": str(toy.base), "dataset": dataset, "store": store, "config": config}
    first = train_security_vector(**arguments, seed=0)
    events = Path(environment["SECVEC_EVENTS"])
    assert "train vector" in events.read_text()
    events.unlink()
    assert train_security_vector(**arguments, seed=0) == first
    assert not events.exists()


@pytest.mark.parametrize("split", ["seeds", "seeds_heldout", "anchors", "anchors_heldout"])
def test_an_empty_split_is_refused(toy: Any, tmp_path: Path, split: str) -> None:
    store = str(tmp_path / "store")
    dataset = publish_dataset(toy, store, **{split: []})
    with pytest.raises(SecvecError) as caught:
        train_security_vector(
            base_model=str(toy.base), dataset=dataset, store=store, seed=0, config=toy.vector_config
        )
    assert str(caught.value) == (
        f"train_security_vector: the dataset has no {split}; "
        "accepted: at least one row; add rows or change the held-out share"
    )
    assert not (tmp_path / "store" / "vector").exists()


def test_a_vector_that_fails_its_certificate_is_not_published(toy: Any, tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    dataset = publish_dataset(toy, store)
    config = toy.vector_config.model_copy(update={"max_epochs": 1, "learning_rate": 1e-6, "trials": 1})
    with pytest.raises(SecvecError, match="failed its certificate: explains held-out seeds"):
        train_security_vector(base_model=str(toy.base), dataset=dataset, store=store, seed=0, config=config)
    assert not list((tmp_path / "store").glob("vector*"))
    assert not files_under(tmp_path / "store" / ".building")


def test_a_base_that_gives_nan_is_refused(toy: Any, tmp_path: Path) -> None:
    model = load_model(toy.base)
    with torch.no_grad():
        model.lm_head.weight[0, 0] = math.nan
    with pytest.raises(
        SecvecError, match="the loss is not finite at step 1 of the vector's training; accepted"
    ):
        train_briefly(toy, model, tmp_path)


def test_a_longer_window_than_the_models_is_refused(toy: Any, tmp_path: Path) -> None:
    config = toy.vector_config.model_copy(update={"max_length": 49})
    with pytest.raises(SecvecError, match="max_length 49 is over the model's window; accepted: at most 48"):
        train_security_vector(
            base_model=str(toy.base), dataset=toy.dataset, store=str(tmp_path / "s"), seed=0, config=config
        )


def test_seeds_are_fit_and_anchors_kept(toy: Any) -> None:
    losses = toy.certificate["heldout_losses"]
    assert losses[-1] < losses[0] / 2
    assert len(losses) <= toy.vector_config.max_epochs


def test_training_ends_when_nothing_is_gained_and_keeps_the_best(toy: Any, tmp_path: Path) -> None:
    trained = train_briefly(toy, load_model(toy.base), tmp_path, max_epochs=60, patience=1)
    assert trained.epochs < 60
    assert trained.epochs == len(trained.heldout_losses)
    *earlier, last = trained.heldout_losses
    assert last > 0.95 * min(earlier)  # the last pass was idle, and the ones before it were not
    assert all(later < before for before, later in itertools.pairwise(earlier))
    fewer = train_briefly(toy, load_model(toy.base), tmp_path, max_epochs=trained.epochs, patience=1)
    assert vector_digest(trained.model) == vector_digest(fewer.model)


def test_the_rate_falls_within_each_pass_and_half_as_many_anchors_go_along(
    toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute_loss, seen = _VectorTrainer.compute_loss, []

    def watched(self: Any, model: Any, inputs: Any, *rest: Any, **named: Any) -> Any:
        seen.append((self.optimizer.param_groups[0]["lr"], len(inputs["input_ids"]), self.anchors))
        return compute_loss(self, model, inputs, *rest, **named)

    monkeypatch.setattr(_VectorTrainer, "compute_loss", watched)
    train_briefly(toy, load_model(toy.base), tmp_path, batch_size=6, max_epochs=3, learning_rate=1e-2)
    # 24 seeds, four steps a pass: a quarter of a cosine's way each
    falling = [1e-2 * (1 + math.cos(math.pi * step / 4)) / 2 for step in range(4)]
    assert [rate for rate, _, _ in seen] == pytest.approx(3 * falling)
    assert {(rows, anchors) for _, rows, anchors in seen} == {(9, 3)}


def test_another_seed_makes_another_vector(toy: Any, tmp_path: Path) -> None:
    digests = {
        vector_digest(
            train_vector(
                load_model(toy.base),
                encode(toy),
                config=toy.vector_config.model_copy(update={"max_epochs": 1}),
                seed=seed,
                pad_id=0,
                scratch=tmp_path,
            ).model
        )
        for seed in (0, 0, 1)
    }
    assert len(digests) == 2


def test_a_vector_is_published_on_s3(toy: Any, s3_bucket: str) -> None:
    reference = train_security_vector(
        base_model=str(toy.base),
        dataset=publish_dataset(toy, s3_bucket),
        store=s3_bucket,
        seed=0,
        config=toy.vector_config.model_copy(update=LAX),
    )
    assert reference.uri.startswith(f"{s3_bucket}/vector/")
    assert json.loads((fetch(reference) / "certificate.json").read_text())["passed"] is True
