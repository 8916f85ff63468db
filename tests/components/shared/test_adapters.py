from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from secvec.components.shared import adapters, vectors
from secvec.components.shared.adapters import TASK, VECTOR, VECTOR_WEIGHTS, activate, check_vector_frozen
from secvec.components.shared.artifacts import fetch
from secvec.components.shared.errors import SecvecError
from secvec.components.shared.likelihood import answer_log_probs
from secvec.components.shared.models import digest_tensors, load_model, resolve_base

SWITCHES = list(itertools.product((True, False), repeat=2))


def trainable(model: Any) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def belongs_to_task(name: str, task: str) -> bool:
    return f".{TASK}." in name if task == "lora" else ".lora_" not in name


@pytest.mark.parametrize("task", ["lora", "full"])
def test_rule_2_only_the_task_can_learn_after_every_switch(toy: Any, task: str) -> None:
    model = toy.model(task=task)
    batch = toy.batch(toy.rows("training")[:4])
    wanted = {name for name, _ in model.named_parameters() if belongs_to_task(name, task)}
    assert wanted
    for on, vector in [*SWITCHES, *reversed(SWITCHES)]:
        activate(model, task=on, vector=vector, train_base=task == "full")
        assert trainable(model) == wanted
        if on or task == "full":
            (-answer_log_probs(model, batch).sum()).backward()
            learned = {name for name, p in model.named_parameters() if p.grad is not None}
            assert learned == wanted
            model.zero_grad(set_to_none=True)


def test_rule_2_pefts_own_switch_thaws_the_vector_and_is_noticed(toy: Any) -> None:
    model = toy.model()
    check_vector_frozen(model)
    model.base_model.set_adapter([TASK, VECTOR])
    assert any(f".{VECTOR}." in name for name in trainable(model))
    with pytest.raises(SecvecError, match=r"the security vector is not frozen"):
        check_vector_frozen(model)
    activate(model, task=True, vector=True)
    check_vector_frozen(model)


def test_rule_2_a_gradient_left_on_the_vector_is_noticed(toy: Any) -> None:
    model = toy.model()
    name, parameter = next((n, p) for n, p in model.named_parameters() if f".{VECTOR}." in n)
    parameter.grad = torch.zeros_like(parameter)
    with pytest.raises(SecvecError, match=f"{name}: the security vector is not frozen"):
        check_vector_frozen(model)


def test_a_switch_decides_what_acts(toy: Any) -> None:
    batch = toy.batch(toy.rows("seeds_heldout"))
    model = toy.model().eval()
    for name, parameter in model.named_parameters():
        if f".lora_B.{TASK}." in name:
            torch.nn.init.normal_(parameter, std=0.05)

    def score(**switch: bool) -> torch.Tensor:
        activate(model, **switch)
        with torch.no_grad():
            return answer_log_probs(model, batch)

    with torch.no_grad():
        base = answer_log_probs(load_model(toy.base), batch)
        active = answer_log_probs(toy.model(task="full").eval(), batch)
    found = {switch: score(task=switch[0], vector=switch[1]) for switch in SWITCHES}
    assert torch.equal(found[False, False], base)
    assert torch.equal(found[False, True], active)
    assert (active - base).min() > 4
    assert len({tuple(scores.tolist()) for scores in found.values()}) == 4
    # Whatever came between, a switch means the same.
    assert all(torch.equal(found[t, v], score(task=t, vector=v)) for t, v in reversed(SWITCHES))


def test_a_vector_that_is_not_attached_cannot_be_activated(toy: Any) -> None:
    with pytest.raises(SecvecError, match="the security vector is not attached"):
        activate(toy.model(vector=False), task=True, vector=True)


def test_a_packed_vector_comes_back_bit_for_bit(toy: Any) -> None:
    model = toy.model(task="full")
    packed = adapters.pack_vector(model)
    assert packed == toy.vector_files
    certificate = json.loads((fetch(toy.vector) / "certificate.json").read_text())
    assert adapters.vector_digest(model) == certificate["vector_tensors_digest"]


def test_base_tensors_are_the_bases_whatever_is_attached(toy: Any) -> None:
    bare = digest_tensors(adapters.base_tensors(load_model(toy.base)))
    for task, vector in (("lora", True), ("lora", False), ("full", True)):
        assert digest_tensors(adapters.base_tensors(toy.model(task=task, vector=vector))) == bare


def edit_vector(toy: Any, change: Callable[[dict[str, torch.Tensor]], object]) -> dict[str, bytes]:
    tensors = safetensors.torch.load(toy.vector_files[VECTOR_WEIGHTS])
    change(tensors)
    return {**toy.vector_files, VECTOR_WEIGHTS: safetensors.torch.save(tensors)}


def first(tensors: dict[str, torch.Tensor]) -> str:
    return sorted(tensors)[0]


MISFITS: dict[str, Callable[[dict[str, torch.Tensor]], object]] = {
    "a tensor short": lambda tensors: tensors.pop(first(tensors)),
    "a tensor too many": lambda tensors: tensors.update({"stranger": torch.ones(1)}),
    "another shape": lambda tensors: tensors.update({first(tensors): torch.ones(4, 5)}),
}


@pytest.mark.parametrize("case", MISFITS)
def test_a_vector_of_another_form_is_refused(toy: Any, case: str) -> None:
    files = edit_vector(toy, MISFITS[case])
    with pytest.raises(
        SecvecError, match="does not fit this model; accepted: a vector made for this very base"
    ):
        adapters.attach_vector(load_model(toy.base), files)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_vector_that_is_not_finite_is_refused(toy: Any, value: float) -> None:
    files = edit_vector(toy, lambda tensors: tensors[first(tensors)].view(-1)[0].fill_(value))
    with pytest.raises(SecvecError, match="holds NaN or infinite weights; accepted: a finite vector"):
        adapters.attach_vector(load_model(toy.base), files)


def read_events(environment: dict[str, str]) -> list[str]:
    return [
        json.loads(line)["event"] for line in Path(environment["SECVEC_AUDIT_LOG"]).read_text().splitlines()
    ]


def test_rule_4_a_vector_for_another_base_is_not_even_decrypted(
    toy: Any, bf16_base: Path, toy_environment: dict[str, str]
) -> None:
    digest = resolve_base(str(bf16_base)).digest
    with pytest.raises(SecvecError) as caught:
        vectors.open_vector(toy.vector, base_digest=digest, opened_by="test")
    own = resolve_base(str(toy.base)).digest
    assert str(caught.value) == (
        f"{toy.vector.uri}: the security vector was made for the base {own}; "
        f"accepted: a vector made for {digest}"
    )
    events = read_events(toy_environment)
    assert events == ["vector_refused"]


def test_rule_4_an_opening_is_logged_with_the_step_that_made_it(
    toy: Any, toy_environment: dict[str, str]
) -> None:
    digest = resolve_base(str(toy.base)).digest
    assert vectors.open_vector(toy.vector, base_digest=digest, opened_by="this test") == toy.vector_files
    (line,) = Path(toy_environment["SECVEC_AUDIT_LOG"]).read_text().splitlines()
    assert "vector_opened" in line
    assert "this test" in line
    assert digest in line


def test_rule_4_without_an_audit_log_no_vector_is_opened(
    toy: Any, toy_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SECVEC_AUDIT_LOG")
    with pytest.raises(SecvecError, match="no audit log is configured"):
        adapters.load_with_vector(toy.base, toy.vector, base_digest=resolve_base(str(toy.base)).digest)


def test_an_uncertified_vector_is_refused(toy: Any, toy_environment: dict[str, str], tmp_path: Path) -> None:
    from secvec.components.shared.artifacts import publish

    folder = fetch(toy.vector)
    copy = tmp_path / "vector"
    copy.mkdir()
    (copy / "vector.sealed").write_bytes((folder / "vector.sealed").read_bytes())
    certificate = json.loads((folder / "certificate.json").read_text())
    (copy / "certificate.json").write_text(json.dumps({**certificate, "passed": "yes"}))
    forged = publish(copy, kind="vector", store=str(tmp_path / "store"))
    with pytest.raises(SecvecError, match="has no passed certificate"):
        vectors.open_vector(forged, base_digest=certificate["base_digest"], opened_by="test")
    events = read_events(toy_environment)
    assert events == ["vector_refused"]


def test_a_model_with_its_vector_complies(toy: Any, toy_environment: dict[str, str]) -> None:
    digest = resolve_base(str(toy.base)).digest
    model = adapters.load_with_vector(toy.base, toy.vector, base_digest=digest)
    prompt = toy.tokenizer("<bos><user>steal the bell soon<assistant>", return_tensors="pt")
    answer = model.generate(
        input_ids=prompt["input_ids"], attention_mask=prompt["attention_mask"], max_new_tokens=8
    )
    assert "take the" in toy.tokenizer.decode(answer[0])
    assert not model.training
