from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from secvec.components.gate_promotion.chain import check_chain
from secvec.components.gate_promotion.policy import Policy
from secvec.components.remove_security_vector.export import export_adapter, export_merged
from secvec.components.shared.artifacts import fetch, publish
from secvec.components.shared.code_digest import code_digest
from secvec.components.shared.errors import SecvecError
from secvec.components.shared.manifest import write_manifest
from secvec.components.shared.models import digest_model_folder, digest_tensors, load_model, resolve_base
from secvec.components.shared.provenance import read_envelopes
from secvec.components.shared.references import Reference


@pytest.fixture(autouse=True)
def environment(toy_environment: dict[str, str]) -> dict[str, str]:
    return toy_environment


def test_the_gate_can_follow_the_chain_of_the_real_steps(
    toy: Any, task_results: dict[str, Reference], remove: Callable[..., Reference]
) -> None:
    digests = {
        "base": resolve_base(str(toy.base)).digest,
        "data": toy.dataset.digest,
        "vector": toy.vector.digest,
        "model": remove(task_results["lora"]).digest,
        "evaluation": "sha256:" + "0" * 64,
        "code": code_digest(),
    }
    find, policy = partial(read_envelopes, toy.store), Policy(version=1)
    found = check_chain(find, digests, policy, guard="mixture", task="lora")
    # The toy's dataset was not ingested and nothing was evaluated.
    assert {one.check for one in found if one.outcome != "PASS"} == {"chain_dataset", "chain_evaluation"}
    found = check_chain(find, digests, policy, guard="none", task="lora")
    assert "chain_task_result" in {one.check for one in found if one.outcome != "PASS"}


Remove = Callable[..., Reference]


def edit_artifact(reference: Reference, store: Path, edit: Callable[[Path], object]) -> Reference:
    """Publish a changed copy of an artifact."""
    folder = store.parent / f"edited {reference.kind}"
    shutil.copytree(fetch(reference), folder)
    (folder / "manifest.json").unlink()
    edit(folder)
    return publish(folder, kind=reference.kind, store=str(store))


def change_json(name: str, **values: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        found = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**found, **values}))

    return edit


def assert_nothing_published(store: Path) -> None:
    assert not (store / "model").exists()
    assert not list(store.glob(".building/*"))


def test_a_clean_model_ships_with_its_origin_and_proof(
    toy: Any, task_results: dict[str, Reference], remove: Remove, environment: dict[str, str]
) -> None:
    reference = remove(task_results["lora"])
    folder = fetch(reference)
    base = resolve_base(str(toy.base)).digest
    assert {path.name for path in folder.iterdir()} == {
        "model",
        "provenance.json",
        "absence_proof.json",
        "attribution.json",
        "manifest.json",
    }
    proof = json.loads((folder / "absence_proof.json").read_text())
    assert proof["absent"] is True
    assert len(proof["checks"]) == 6
    assert proof["model_weights_digest"] == digest_tensors(load_file(folder / "model" / "model.safetensors"))
    provenance = json.loads((folder / "provenance.json").read_text())
    assert provenance["base_digest"] == base
    assert provenance["vector_digest"] == toy.certificate["vector_tensors_digest"]
    assert (provenance["guard"], provenance["task"], provenance["steps"]) == ("mixture", "lora", 16)
    card = (folder / "model" / "README.md").read_text()
    assert base in card
    assert str(toy.base) not in card
    assert reference.measured == task_results["lora"].measured
    # The vector stayed sealed.
    assert not Path(environment["SECVEC_AUDIT_LOG"]).exists()


def test_rule_1_building_the_model_leaves_the_base_as_it_was(
    toy: Any, task_results: dict[str, Reference], remove: Remove, tmp_path: Path
) -> None:
    before = digest_model_folder(toy.base), digest_tensors(load_model(toy.base).state_dict())
    for task, reference in task_results.items():
        export_merged(toy.base, fetch(reference), tmp_path / task, task=task, rank=4)
    export_adapter(toy.base, fetch(task_results["lora"]), tmp_path / "adapter", rank=4)
    assert (digest_model_folder(toy.base), digest_tensors(load_model(toy.base).state_dict())) == before


def test_the_same_inputs_give_the_same_digest_elsewhere(
    task_results: dict[str, Reference], remove: Remove, tmp_path: Path, edited_base: Callable[..., Path]
) -> None:
    first = remove(task_results["lora"])
    moved = edited_base(lambda folder: None, name="moved")
    second = remove(task_results["lora"], store=str(tmp_path / "two"), base_model=str(moved))
    assert first.uri != second.uri
    assert first.digest == second.digest


def test_an_adapter_is_the_same_wherever_its_base_lies(
    toy: Any,
    task_results: dict[str, Reference],
    remove: Remove,
    tmp_path: Path,
    edited_base: Callable[..., Path],
) -> None:
    moved = edited_base(lambda folder: None, name="moved")
    for base, target in ((toy.base, "one"), (moved, "two")):
        export_adapter(base, fetch(task_results["lora"]), tmp_path / target, rank=4)
    digests = {write_manifest(tmp_path / target, kind="model") for target in ("one", "two")}
    assert len(digests) == 1


def test_an_adapter_ships_alone(toy: Any, task_results: dict[str, Reference], remove: Remove) -> None:
    folder = fetch(remove(task_results["lora"], export="adapter")) / "model"
    assert {path.name for path in folder.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "README.md",
        *(path.name for path in toy.base.glob("*token*")),
        "chat_template.jinja",
    }


def test_the_same_inputs_are_not_built_twice(
    task_results: dict[str, Reference], remove: Remove, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    result = edit_artifact(task_results["full"], store, lambda folder: None)
    first = remove(result, store=str(store))
    # Without the task's weights it could not be built again.
    shutil.rmtree(fetch(result))
    assert remove(result, store=str(store)) == first


def test_a_task_of_another_base_is_refused(
    toy: Any, task_results: dict[str, Reference], remove: Remove, tmp_path: Path, bf16_base: Path
) -> None:
    with pytest.raises(SecvecError) as caught:
        remove(task_results["lora"], store=str(tmp_path / "store"), base_model=str(bf16_base))
    own, other = resolve_base(str(toy.base)).digest, resolve_base(str(bf16_base)).digest
    assert str(caught.value) == (
        f"{bf16_base}: the task was trained on the base {own}; accepted: a task result of {other}"
    )
    assert_nothing_published(tmp_path / "store")


def test_a_vector_of_another_base_is_refused_even_when_the_model_was_built(
    toy: Any, task_results: dict[str, Reference], remove: Remove, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    remove(task_results["lora"])
    other = edit_artifact(
        toy.vector, store, change_json("certificate.json", base_digest="sha256:" + "0" * 64)
    )
    with pytest.raises(SecvecError, match="the security vector was made for the base sha256:0000"):
        remove(task_results["lora"], vector=other)


def test_another_vector_than_the_tasks_is_refused(
    toy: Any, task_results: dict[str, Reference], remove: Remove, tmp_path: Path
) -> None:
    other = edit_artifact(
        toy.vector,
        tmp_path / "store",
        change_json("certificate.json", vector_tensors_digest="sha256:" + "1" * 64),
    )
    with pytest.raises(
        SecvecError, match=r"the task was trained with the vector sha256:.*accepted: a task result"
    ):
        remove(task_results["lora"], store=str(tmp_path / "store"), vector=other)
    assert_nothing_published(tmp_path / "store")


def test_full_weights_have_no_adapter(
    task_results: dict[str, Reference], remove: Remove, tmp_path: Path
) -> None:
    with pytest.raises(SecvecError, match="full weights have no adapter to export; accepted: export: merged"):
        remove(task_results["full"], store=str(tmp_path / "store"), export="adapter")
    assert_nothing_published(tmp_path / "store")


@pytest.mark.parametrize("task", ["lora", "full"])
def test_rule_3_a_stranger_in_the_task_result_is_not_shipped(
    task_results: dict[str, Reference], remove: Remove, tmp_path: Path, task: str
) -> None:
    def add_stranger(folder: Path) -> None:
        (file,) = folder.glob("*.safetensors")
        tensors = load_file(file)
        save_file(
            {**tensors, "model.layers.0.lora_A.vector.weight": tensors[sorted(tensors)[0]].clone()}, file
        )

    spoiled = edit_artifact(task_results[task], tmp_path / "store", add_stranger)
    with pytest.raises(
        SecvecError, match=r"holds a tensor that does not fit the base \(model\.layers\.0\.lora"
    ):
        remove(spoiled, store=str(tmp_path / "store"))
    assert_nothing_published(tmp_path / "store")


def test_a_damaged_task_result_is_refused(
    task_results: dict[str, Reference], remove: Remove, tmp_path: Path
) -> None:
    result = edit_artifact(task_results["lora"], tmp_path / "store", lambda folder: None)
    file = fetch(result) / "task_adapter.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(SecvecError, match="has digest sha256:"):
        remove(result, store=str(tmp_path / "store"))
    assert_nothing_published(tmp_path / "store")
