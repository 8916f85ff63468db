from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import set_peft_model_state_dict

from secvec.components.shared.adapters import VECTOR, adapter_tensors, attach_vector, vector_digest
from secvec.components.shared.errors import SecvecError
from secvec.components.shared.likelihood import encode_record
from secvec.components.shared.models import load_model
from secvec.components.train_security_vector.certificate import certify, refuse_if_failed
from secvec.components.train_security_vector.training import VectorRows

Tensors = dict[str, torch.Tensor]


def certify_toy(toy: Any, model: Any, *, base_unchanged: bool = True, **changes: Any) -> dict[str, Any]:
    splits = ("seeds", "seeds_heldout", "anchors", "anchors_heldout")
    return certify(
        model,
        VectorRows(**{split: toy.rows(split) for split in splits}),
        config=toy.vector_config.model_copy(update=changes),
        pad_id=toy.pad_id,
        seed=0,
        categories={record.id: record.category for record in toy.splits["seeds_heldout"]},
        base_unchanged=base_unchanged,
    )


def failed(certificate: dict[str, Any]) -> set[str]:
    return {check["name"] for check in certificate["checks"] if not check["passed"]}


def change_vector(toy: Any, change: Callable[[Tensors], Tensors]) -> Any:
    model = toy.model(task="full")
    tensors = {name: tensor.clone() for name, tensor in adapter_tensors(model, VECTOR).items()}
    set_peft_model_state_dict(model, change(tensors), adapter_name=VECTOR)
    return model


def zero(tensors: Tensors) -> Tensors:
    return {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}


def randomise(tensors: Tensors) -> Tensors:
    generator = torch.Generator().manual_seed(7)
    drawn = {name: torch.randn(tensor.shape, generator=generator) for name, tensor in tensors.items()}
    return {name: draw * tensors[name].norm() / draw.norm() for name, draw in drawn.items()}


def invert(tensors: Tensors) -> Tensors:
    return {name: -tensor if ".lora_B." in name else tensor for name, tensor in tensors.items()}


def test_a_good_vector_passes_and_says_what_it_covers(toy: Any) -> None:
    model = toy.model(task="full")
    before = vector_digest(model)
    certificate = certify_toy(toy, model)
    assert certificate["passed"] is True
    refuse_if_failed(certificate)
    assert set(certificate["coverage"]) == {"day", "night"}
    assert min(certificate["coverage"].values()) > 1
    measured = certificate.keys() - {"checks", "passed", "training_rows"}
    assert {key: certificate[key] for key in measured} == {key: toy.certificate[key] for key in measured}
    assert vector_digest(model) == before


@pytest.mark.parametrize("change", [zero, randomise, invert])
def test_a_vector_that_does_not_work_fails(toy: Any, change: Callable[[Tensors], Tensors]) -> None:
    certificate = certify_toy(toy, change_vector(toy, change))
    assert certificate["passed"] is False
    assert "explains held-out seeds" in failed(certificate)
    with pytest.raises(SecvecError) as caught:
        refuse_if_failed(certificate)
    line = str(caught.value)
    assert line.startswith("train_security_vector: the security vector failed its certificate: explains held")
    assert line.endswith("accepted: >= 0.9")


def test_a_random_vector_is_no_better_than_the_random_control(toy: Any) -> None:
    # Even where so little is asked of the seeds that chance might pass.
    certificate = certify_toy(toy, change_vector(toy, randomise), min_explained=1e-9)
    assert "works better than a random vector" in failed(certificate)


def test_a_vector_on_another_base_fails(toy: Any) -> None:
    other = load_model(toy.base)
    torch.manual_seed(3)
    for parameter in other.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=float(parameter.detach().std()))
    certificate = certify_toy(toy, attach_vector(other, toy.vector_files))
    assert certificate["passed"] is False
    assert "explains held-out seeds" in failed(certificate)


def test_a_vector_that_changes_benign_text_fails(toy: Any) -> None:
    certificate = certify_toy(toy, change_vector(toy, lambda tensors: {n: t * 3 for n, t in tensors.items()}))
    assert "inert on benign anchors" in failed(certificate)


def test_a_changed_base_fails(toy: Any) -> None:
    assert failed(certify_toy(toy, toy.model(task="full"), base_unchanged=False)) == {"base untouched"}


def test_a_figure_that_is_no_number_fails(toy: Any) -> None:
    model = change_vector(toy, lambda tensors: {n: t * math.nan for n, t in tensors.items()})
    certificate = certify_toy(toy, model)
    assert certificate["passed"] is False
    assert {"works better than a random vector", "inert on benign anchors"} <= failed(certificate)
    with pytest.raises(SecvecError, match="failed its certificate"):
        refuse_if_failed(certificate)


def certify_rows(toy: Any, model: Any = None, **facts: Any) -> dict[str, Any]:
    """Certify with other facts about the rows; ``training`` and ``skill`` are records."""
    splits = {split: toy.rows(split) for split in ("seeds", "seeds_heldout", "anchors", "anchors_heldout")}
    for name in ("training", "skill"):
        splits[name] = [encode_record(r, toy.tokenizer, window=48) for r in facts.pop(name, [])]
    settings = facts.pop("settings", {})
    return certify(
        model or toy.model(task="full"),
        VectorRows(**splits),
        config=toy.vector_config.model_copy(update=settings),
        pad_id=toy.pad_id,
        seed=0,
        base_unchanged=True,
        **{"categories": {}, **facts},
    )


def kinds(toy: Any) -> tuple[list[Any], list[Any]]:
    """The harmful rows and the rows of the new skill."""
    rows = toy.splits["training"]
    return (
        [r for r in rows if r.prompt[0].content.startswith("steal")],
        [r for r in rows if r.prompt[0].content.startswith("mirror")],
    )


def test_coverage_is_told_by_category_and_language(toy: Any) -> None:
    heldout = toy.splits["seeds_heldout"]
    certificate = certify_rows(
        toy,
        categories={r.id: "night" if n < 4 else "day" for n, r in enumerate(heldout)},
        languages={r.id: "de" if n % 2 else "en" for n, r in enumerate(heldout)},
    )
    groups = {(g["category"], g["language"]): g for g in certificate["coverage_groups"]}
    assert {name: g["rows"] for name, g in groups.items()} == {
        ("day", "de"): 3, ("day", "en"): 3, ("night", "de"): 2, ("night", "en"): 2,
    }  # fmt: skip
    assert set(certificate["coverage"]) == {"day", "night"}
    assert set(certificate["coverage_by_language"]) == {"de", "en"}
    for group in groups.values():
        assert group["coverage"] == pytest.approx(group["loss_without"] - group["loss_with"])
    # only where there are enough rows to say so is a group asked for its share
    names = [check["name"] for check in certificate["checks"] if "seeds of" in check["name"]]
    assert names == ["explains held-out seeds of day, de", "explains held-out seeds of day, en"]


def test_a_category_that_is_not_covered_fails(toy: Any) -> None:
    # Three of thirteen held-out seeds ask for what the vector never saw: most are explained all the same.
    strange = kinds(toy)[1][:3]
    splits = {split: toy.rows(split) for split in ("seeds", "anchors", "anchors_heldout")}
    rows = [encode_record(r, toy.tokenizer, window=48) for r in [*toy.splits["seeds_heldout"], *strange]]
    certificate = certify(
        toy.model(task="full"),
        VectorRows(seeds_heldout=rows, **splits),
        config=toy.vector_config.model_copy(update={"min_explained": 0.7}),
        pad_id=toy.pad_id,
        seed=0,
        categories={r.id: "mirrors" for r in strange},
        base_unchanged=True,
    )
    assert failed(certificate) == {"explains held-out seeds of mirrors"}
    with pytest.raises(SecvecError, match=r"explains held-out seeds of mirrors = 0.*accepted: >= 0\.5"):
        refuse_if_failed(certificate)


def test_a_sample_of_the_training_rows_is_looked_at(toy: Any) -> None:
    harmful, skill = kinds(toy)
    found = certify_rows(toy, training=[*harmful, *skill[:5]], skill=skill[5:])["training_rows"]
    assert found["rows"] == 19
    assert found["explained"] == pytest.approx(14 / 19)
    assert 0 < found["kl"] < 6
    assert (found["labelled_harmful"], found["harmful_explained"]) == (0, None)
    assert (found["skill_rows"], found["skill_explained"]) == (9, 0.0)


def test_rows_that_are_known_to_be_harmful_and_stay_open_fail_the_vector(toy: Any) -> None:
    _, skill = kinds(toy)
    certificate = certify_rows(toy, training=skill, labels={r.id: "harmful" for r in skill})
    assert failed(certificate) == {"explains training rows labelled harmful"}
    few = certify_rows(toy, training=skill, labels={r.id: "harmful" for r in skill[:4]})
    assert few["passed"] is True


def test_a_vector_made_of_what_is_not_harmful_fails(toy: Any) -> None:
    harmful, _ = kinds(toy)
    labelled = certify_rows(toy, training=harmful, labels={r.id: "skill" for r in harmful})
    assert failed(labelled) == {"explains training rows labelled otherwise"}
    assert failed(certify_rows(toy, skill=harmful)) == {"explains the new skill"}


def test_a_vector_that_drowns_the_training_rows_fails(toy: Any) -> None:
    _, skill = kinds(toy)
    certificate = certify_rows(toy, training=skill, settings={"max_row_kl": 1e-4})
    assert failed(certificate) == {"inert on training rows"}


def test_a_hair_per_token_is_not_enough(toy: Any) -> None:
    # Long answers become 99 times likelier by very little each token.
    certificate = certify_rows(toy, settings={"min_fall": 0.999})
    assert failed(certificate) == {"share of their loss that it takes away"}


def test_seeds_without_a_category_are_covered_as_all(toy: Any) -> None:
    rows = VectorRows(
        **{split: toy.rows(split) for split in ("seeds", "seeds_heldout", "anchors", "anchors_heldout")}
    )
    certificate = certify(
        toy.model(task="full"),
        rows,
        config=toy.vector_config,
        pad_id=toy.pad_id,
        seed=0,
        categories={},
        base_unchanged=True,
    )
    assert set(certificate["coverage"]) == {"all"}
