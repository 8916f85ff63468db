"""Rule 3: the vector is absent from what ships, and whatever brings it back is found."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, set_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from secvec.components.fine_tune_guarded.result import ADAPTER_FILE, WEIGHTS_FILE
from secvec.components.remove_security_vector.proof import _check_behaviour, examine, prove_absence
from secvec.components.shared.adapters import TASK, VECTOR, activate, adapter_tensors
from secvec.components.shared.errors import SecvecError
from secvec.components.shared.models import load_model

Request = dict[str, Any]
EXPORTS = [("lora", "merged"), ("lora", "adapter"), ("full", "merged")]


@pytest.fixture(autouse=True)
def environment(toy_environment: dict[str, str]) -> dict[str, str]:
    return toy_environment


def failed(proof: dict[str, Any]) -> dict[str, str]:
    assert proof["absent"] is all(check["passed"] for check in proof["checks"])
    return {check["name"]: check["found"] for check in proof["checks"] if not check["passed"]}


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=torch.arange(1, 21).unsqueeze(0)).logits


def base_plus_task(toy: Any, request: Request) -> Any:
    """The base with its task as it was trained, put together by hand."""
    if request["task"] == "full":
        model = load_model(toy.base)
        model.load_state_dict(load_file(Path(request["task_result"]) / WEIGHTS_FILE))
        return model
    model = toy.model(vector=False)
    set_peft_model_state_dict(
        model, load_file(Path(request["task_result"]) / ADAPTER_FILE), adapter_name=TASK
    )
    return model


@pytest.mark.parametrize(("task", "export"), EXPORTS)
def test_rule_3_a_clean_model_passes_and_is_base_plus_task(
    toy: Any, clean: Callable[..., Request], task: str, export: str
) -> None:
    request = clean(task, export)
    proof = examine(request)
    assert failed(proof) == {}
    assert proof["checks"][-1]["name"] == "behaves as base plus task"
    shipped: Any = (
        load_model(Path(request["model"]))
        if export == "merged"
        else PeftModel.from_pretrained(load_model(toy.base), request["model"])
    )
    expected = logits(base_plus_task(toy, request))
    if (task, export) == ("lora", "merged"):
        torch.testing.assert_close(logits(shipped), expected, rtol=1e-4, atol=1e-4)
    else:
        assert torch.equal(logits(shipped), expected)
    assert (logits(load_model(toy.base)) - expected).abs().max() > 0.1


def test_rule_3_the_proof_is_made_in_a_fresh_process(clean: Callable[..., Request]) -> None:
    request = clean()
    proof = prove_absence(request)
    assert proof["absent"] is True
    assert proof == examine(request)


def trained_with_vector(toy: Any, request: Request) -> Any:
    """The model as training leaves it in memory: task and vector attached."""
    model = toy.model()
    set_peft_model_state_dict(
        model, load_file(Path(request["task_result"]) / ADAPTER_FILE), adapter_name=TASK
    )
    return model


def ship(model: Any, request: Request) -> None:
    """Replace the weights of a clean folder by another model's."""
    staged = Path(request["model"]).parent / "staged"
    model.save_pretrained(staged)
    shutil.copyfile(staged / "model.safetensors", Path(request["model"]) / "model.safetensors")


def ship_unmerged_base(toy: Any, request: Request) -> None:
    ship(trained_with_vector(toy, request).get_base_model(), request)
    written = load_file(Path(request["model"]) / "model.safetensors")
    assert any(f".lora_B.{VECTOR}." in name for name in written)


def ship_both_merged(toy: Any, request: Request) -> None:
    model = trained_with_vector(toy, request)
    activate(model, task=True, vector=True)
    with pytest.raises(SecvecError, match="the adapter vector is frozen"):
        model.merge_and_unload()
    for module in model.modules():
        getattr(module, "lora_variant", {}).clear()  # whoever attaches it by other means can
    ship(model.merge_and_unload(), request)


def ship_stray_adapter(toy: Any, request: Request) -> None:
    staged = Path(request["model"]).parent / "staged"
    toy.model(task="full").save_pretrained(staged)
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copyfile(staged / VECTOR / file, Path(request["model"]) / file)


NAMED = {
    "get_base_model().save_pretrained()": (ship_unmerged_base, "only the base's tensors", ".base_layer."),
    "merge_and_unload() of both": (ship_both_merged, "every tensor equals base plus task", "weight"),
    "a stray adapter": (ship_stray_adapter, "only files of a model", "adapter_config.json"),
}


@pytest.mark.parametrize("case", NAMED)
def test_rule_3_the_known_ways_to_ship_a_vector_are_found(
    toy: Any, clean: Callable[..., Request], case: str
) -> None:
    request = clean()
    spoil, check, trace = NAMED[case]
    spoil(toy, request)
    assert trace in failed(examine(request))[check]


def test_rule_3_a_trace_is_one_line(toy: Any, clean: Callable[..., Request]) -> None:
    request = clean()
    ship_both_merged(toy, request)
    with pytest.raises(SecvecError) as caught:
        prove_absence(request)
    line = str(caught.value)
    assert line.startswith(
        f"{request['model']}: a trace of the security vector is in the model: every tensor"
    )
    assert line.endswith("; accepted: exactly the base plus the task")


@pytest.mark.parametrize("spoil", [ship_both_merged, ship_stray_adapter])
def test_what_the_proof_refuses_really_carries_the_vector(
    toy: Any, clean: Callable[..., Request], spoil: Callable[[Any, Request], None]
) -> None:
    request = clean()
    before = logits(load_model(Path(request["model"])))
    spoil(toy, request)
    # As its user would load it.
    after = logits(AutoModelForCausalLM.from_pretrained(request["model"]))
    active = trained_with_vector(toy, request)
    activate(active, task=True, vector=True)
    torch.testing.assert_close(after, logits(active), rtol=1e-3, atol=1e-3)
    assert (after - before).abs().max() > 1


def edit_tensors(change: Callable[[dict[str, torch.Tensor]], object], **notes: str) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        (file,) = folder.glob("*.safetensors")
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file, metadata={"format": "pt", **notes})

    return edit


def flip_bit(tensors: dict[str, torch.Tensor]) -> None:
    tensors[sorted(tensors)[-1]].view(torch.int32).view(-1)[-1] ^= 1


def edit_json(name: str, *, without: str = "", **values: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        found = {**json.loads((folder / name).read_text()), **values}
        found.pop(without, None)
        (folder / name).write_text(json.dumps(found))

    return edit


def append_to(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text((folder / name).read_text() + " ")  # type: ignore[func-returns-value]


def hide_second_weights(folder: Path) -> None:
    """Sorted before the model's own file, so that reading all files in order would let that one win."""
    tensors = {name: tensor + 1 for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "hidden.safetensors", metadata={"format": "pt"})


TRACES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a flipped bit": (edit_tensors(flip_bit), "every tensor equals base plus task"),
    "an extra tensor": (
        edit_tensors(lambda tensors: tensors.update({"extra.weight": torch.ones(2)})),
        "only the base's tensors",
    ),
    "a lost tensor": (
        edit_tensors(lambda tensors: tensors.pop(sorted(tensors)[0])),
        "only the base's tensors",
    ),
    "another type": (
        edit_tensors(lambda tensors: tensors.update({n: t.double() for n, t in tensors.items()})),
        "every tensor equals base plus task",
    ),
    "the same bytes as another type": (
        edit_tensors(lambda tensors: tensors.update({n: t.view(torch.int32) for n, t in tensors.items()})),
        "every tensor equals base plus task",
    ),
    "the same bytes in another shape": (
        edit_tensors(lambda tensors: tensors.update({n: t.reshape(-1) for n, t in tensors.items()})),
        "every tensor equals base plus task",
    ),
    "notes in the header": (edit_tensors(lambda tensors: None, vector="AAAA"), "no notes beside the tensors"),
    "an extra file": (lambda folder: (folder / "notes.txt").write_text("x"), "only files of a model"),
    "an extra folder": (lambda folder: (folder / "original").mkdir(), "only files of a model"),
    "a hidden file": (lambda folder: (folder / ".vector").write_text("x"), "only files of a model"),
    "a pickle": (lambda folder: (folder / "pytorch_model.bin").write_bytes(b"x"), "only files of a model"),
    "a changed tokenizer": (append_to("tokenizer.json"), "every other file is the base's"),
    "a changed tokenizer config": (append_to("tokenizer_config.json"), "every other file is the base's"),
    "a changed chat template": (append_to("chat_template.jinja"), "every other file is the base's"),
    "a lost chat template": (
        lambda folder: (folder / "chat_template.jinja").unlink(),
        "every other file is the base's",
    ),
    "a tokenizer file that the base lacks": (
        lambda folder: (folder / "added_tokens.json").write_text("{}"),
        "only files of a model",
    ),
}
MERGED_TRACES: dict[str, tuple[Callable[[Path], object], str]] = {
    "auto_map": (
        edit_json("config.json", auto_map={"AutoModelForCausalLM": "evil.Evil"}),
        "every other file is the base's",
    ),
    "another setting": (edit_json("config.json", rms_norm_eps=0.1), "every other file is the base's"),
    "other generation settings": (
        edit_json("generation_config.json", bad_words_ids=[[9]]),
        "every other file is the base's",
    ),
    "a second file of weights": (hide_second_weights, "only files of a model"),
    "an index that no loader reads": (
        lambda folder: (folder / "model.safetensors.index.json").write_text("{}"),
        "only files of a model",
    ),
}
ADAPTER_TRACES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a stronger adapter": (
        edit_json("adapter_config.json", lora_alpha=80),
        "only settings of a task adapter",
    ),
    "another method": (edit_json("adapter_config.json", use_rslora=True), "only settings of a task adapter"),
    "a base that is named": (
        edit_json("adapter_config.json", base_model_name_or_path="evil/base"),
        "only settings of a task adapter",
    ),
    "remote code": (
        edit_json("adapter_config.json", auto_mapping={"parent_library": "evil"}),
        "only settings of a task adapter",
    ),
    "a second adapter": (lambda folder: (folder / VECTOR).mkdir(), "only files of a model"),
}
CASES = [("merged", name, *trace) for name, trace in {**TRACES, **MERGED_TRACES}.items()] + [
    ("adapter", name, *trace) for name, trace in {**TRACES, **ADAPTER_TRACES}.items()
]


@pytest.mark.parametrize(
    ("export", "edit", "check"),
    [pytest.param(export, edit, check, id=f"{export}: {name}") for export, name, edit, check in CASES],
)
def test_rule_3_any_trace_is_found(
    clean: Callable[..., Request], export: str, edit: Callable[[Path], object], check: str
) -> None:
    request = clean("lora", export)
    edit(Path(request["model"]))
    assert check in failed(examine(request))


@pytest.mark.parametrize("export", ["merged", "adapter"])
def test_rule_3_other_behaviour_than_base_plus_task_is_found(
    toy: Any, clean: Callable[..., Request], export: str
) -> None:
    request = clean("lora", export)
    (file,) = Path(request["model"]).glob("*.safetensors")
    tensors = load_file(file)
    assert _check_behaviour(request, load_model(toy.base), tensors)["passed"]
    tensors[sorted(tensors)[-1]] += 0.1
    assert not _check_behaviour(request, load_model(toy.base), tensors)["passed"]


def add_the_vector(toy: Any, tensors: dict[str, torch.Tensor]) -> None:
    tensors |= {f"{name}.{VECTOR}": t for name, t in adapter_tensors(toy.model(), VECTOR).items()}


def lose_half(toy: Any, tensors: dict[str, torch.Tensor]) -> None:
    del tensors[next(name for name in tensors if "lora_B" in name)]


def name_a_foreign_layer(toy: Any, tensors: dict[str, torch.Tensor]) -> None:
    for part in ("lora_A", "lora_B"):
        known = next(tensor for name, tensor in tensors.items() if part in name)
        tensors[f"base_model.model.foreign.{part}.weight"] = known.clone()


@pytest.mark.parametrize("edit", [add_the_vector, lose_half, name_a_foreign_layer])
def test_rule_3_a_task_result_with_a_tensor_that_is_no_part_of_it_is_refused(
    toy: Any, clean: Callable[..., Request], tmp_path: Path, edit: Callable[[Any, Any], None]
) -> None:
    request = clean()
    tensors = load_file(Path(request["task_result"]) / ADAPTER_FILE)
    edit(toy, tensors)
    save_file(tensors, tmp_path / ADAPTER_FILE)
    with pytest.raises(SecvecError, match="holds a tensor that is no part of the task"):
        examine({**request, "task_result": str(tmp_path)})


def test_a_proof_that_cannot_be_made_is_no_proof(clean: Callable[..., Request]) -> None:
    request = {name: value for name, value in clean().items() if name != "base"}
    with pytest.raises(
        SecvecError, match=r"remove_security_vector: the absence proof could not be made \(KeyE"
    ):
        prove_absence(request)


def test_exports_note_nothing_but_their_format(clean: Callable[..., Request]) -> None:
    with safe_open(Path(clean()["model"]) / "model.safetensors", framework="pt") as stream:
        assert stream.metadata() == {"format": "pt"}


def test_rule_3_settings_that_another_version_of_peft_writes_are_no_trace(
    clean: Callable[..., Request],
) -> None:
    request = clean("lora", "adapter")
    edit_json("adapter_config.json", peft_version="0.1.0")(Path(request["model"]))
    assert failed(examine(request)) == {}
    # A key that is not there has PEFT's default, whatever a task adapter should have.
    edit_json("adapter_config.json", without="use_rslora")(Path(request["model"]))
    assert failed(examine(request)) == {}
    edit_json("adapter_config.json", without="r")(Path(request["model"]))
    assert failed(examine(request)) == {"only settings of a task adapter": "r"}
