"""The absence proof: run in a fresh process, it sees only files.

``python -m secvec.components.remove_security_vector.proof REQUEST.json`` prints the proof as JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secvec.components.shared.errors import SecvecError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_ONE_FILE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_CARD = "README.md"
_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


def prove_absence(request: dict[str, Any]) -> dict[str, Any]:
    """Run the proof in a fresh process, which shares no memory with what trained or exported.

    Args:
        request: ``base``, ``task_result`` and ``model`` folders, ``task``, ``export`` and ``rank``.

    Returns:
        ``absent``, ``checks`` (name, passed, found) and ``model_weights_digest``.

    Raises:
        SecvecError: The process failed, or a check found a trace.
    """
    command = [sys.executable, "-m", "secvec.components.remove_security_vector.proof"]
    done = subprocess.run(command, input=json.dumps(request), capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise SecvecError(f"the absence proof could not be made ({reason})", where="remove_security_vector")
    proof: dict[str, Any] = json.loads(done.stdout)
    for check in proof["checks"]:
        if not check["passed"]:
            raise SecvecError(
                f"a trace of the security vector is in the model: {check['name']}: {check['found']}",
                where=request["model"],
                accepted="exactly the base plus the task",
            )
    return proof


def examine(request: dict[str, Any]) -> dict[str, Any]:
    """Compare a model folder with the base plus the task, file by file and tensor by tensor."""
    from secvec.components.shared.models import digest_tensors, load_model

    model, base = Path(request["model"]), load_model(Path(request["base"])).cpu()
    expected = _expected_tensors(request, base)
    found, metadata = _read_tensors(model)
    checks = [
        _check_files(model, request),
        _check_carried(model, request),
        _check("no notes beside the tensors", next((k for k in metadata if k != "format"), "")),
        _check("only the base's tensors", (sorted(set(found) ^ set(expected)) or [""])[0]),
        _check_values(found, expected),
    ]
    if request["export"] == "adapter":
        checks.append(_check_adapter_config(model, rank=request["rank"]))
    if all(check["passed"] for check in checks):
        checks.append(_check_behaviour(request, base, expected))
    return {
        "schema": 1,
        "absent": all(check["passed"] for check in checks),
        "checks": checks,
        "model_weights_digest": digest_tensors(found),
    }


def _expected_tensors(request: dict[str, Any], base: PreTrainedModel) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    from secvec.components.fine_tune_guarded.result import ADAPTER_FILE, WEIGHTS_FILE
    from secvec.components.remove_security_vector.expectation import expect_full, expect_lora
    from secvec.components.shared.adapters import LORA_SCALING

    task_result = Path(request["task_result"])
    if request["export"] == "adapter":
        return load_file(task_result / ADAPTER_FILE)
    if request["task"] == "full":
        return expect_full(base, task_result / WEIGHTS_FILE)
    return expect_lora(base, task_result / ADAPTER_FILE, scaling=LORA_SCALING)


def _read_tensors(model: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Every tensor and every note of all safetensors files, whether or not a loader would take them."""
    from safetensors import safe_open

    tensors: dict[str, torch.Tensor] = {}
    metadata: dict[str, str] = {}
    for file in sorted(model.glob("*.safetensors")):
        with safe_open(file, framework="pt") as stream:
            tensors |= {name: stream.get_tensor(name) for name in list(stream.keys())}
            metadata |= stream.metadata() or {}
    return tensors, metadata


def _check(name: str, trace: str) -> dict[str, Any]:
    return {"name": name, "passed": not trace, "found": trace}


def _check_files(model: Path, request: dict[str, Any]) -> dict[str, Any]:
    from secvec.components.shared.models import weight_files

    allowed = {_CARD, *_carried_files(request)}
    if request["export"] == "adapter":
        allowed |= set(_ADAPTER_FILES)
    else:
        weights = {file.name for file in weight_files(model)}
        allowed |= weights if weights == {_ONE_FILE} else {*weights, _INDEX}
    found = {path.relative_to(model).as_posix() for path in model.rglob("*")}
    return _check("only files of a model", (sorted(found - allowed) or [""])[0])


def _carried_files(request: dict[str, Any]) -> dict[str, Path]:
    """What the model must have from the base, by name: all that is not weights."""
    from secvec.components.shared.models import MODEL_FILES

    skipped = ("config.json", "generation_config.json") if request["export"] == "adapter" else ()
    files = (file for pattern in MODEL_FILES for file in Path(request["base"]).glob(pattern))
    return {
        file.name: file
        for file in files
        if file.suffix != ".safetensors" and file.name not in (_INDEX, *skipped)
    }


def _check_carried(model: Path, request: dict[str, Any]) -> dict[str, Any]:
    """Configs, tokenizer and chat template decide what a model does as much as its weights."""
    changed = [
        name
        for name, file in sorted(_carried_files(request).items())
        if not (model / name).is_file() or (model / name).read_bytes() != file.read_bytes()
    ]
    return _check("every other file is the base's", (changed or [""])[0])


def _check_adapter_config(model: Path, *, rank: int) -> dict[str, Any]:
    """Compare every setting with that of a task adapter; the layers it is on follow from its tensors."""
    from peft import LoraConfig

    from secvec.components.shared.adapters import make_lora_config

    found = json.loads((model / "adapter_config.json").read_text())
    wanted, default = (
        json.loads(json.dumps(config.to_dict(), default=str))
        for config in (make_lora_config(rank=rank), LoraConfig())
    )
    free = {"target_modules", "fan_in_fan_out", "inference_mode", "peft_version"}
    differing = [
        key
        for key in sorted((set(found) | set(wanted)) - free)
        if found.get(key, default.get(key)) != wanted.get(key)
    ]
    return _check("only settings of a task adapter", (differing or [""])[0])


def _check_values(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> dict[str, Any]:
    differing = [
        name for name in sorted(set(found) & set(expected)) if not _same(found[name], expected[name])
    ]
    return _check("every tensor equals base plus task", (differing or [""])[0])


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether type, shape and bits are the same; equal numbers may still differ in the sign of a zero."""
    import torch

    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    bits = (tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other))
    return torch.equal(*bits)


def _check_behaviour(
    request: dict[str, Any], base: PreTrainedModel, expected: dict[str, torch.Tensor]
) -> dict[str, Any]:
    """Load the folder as a user would and compare its logits with those of the base plus the task."""
    import torch

    shipped = _load_shipped(request)
    rebuilt = _rebuild(request, base, expected)
    tokens = torch.arange(2, 18).unsqueeze(0) % base.config.vocab_size
    with torch.no_grad():
        same = torch.equal(shipped(input_ids=tokens).logits, rebuilt(input_ids=tokens).logits)
    return _check("behaves as base plus task", "" if same else "other logits")


def _load_shipped(request: dict[str, Any]) -> Any:
    from secvec.components.shared.models import load_model

    if request["export"] == "merged":
        return load_model(Path(request["model"])).cpu()
    from peft import PeftModel

    pristine = load_model(Path(request["base"])).cpu()
    return PeftModel.from_pretrained(pristine, request["model"]).eval()


def _rebuild(request: dict[str, Any], base: PreTrainedModel, expected: dict[str, torch.Tensor]) -> Any:
    from peft import set_peft_model_state_dict

    from secvec.components.shared.adapters import TASK, attach_adapter, make_lora_config

    if request["export"] == "merged":
        base.load_state_dict(expected, strict=False)
        return base
    model = attach_adapter(base, TASK, make_lora_config(rank=request["rank"]))
    set_peft_model_state_dict(model, expected, adapter_name=TASK)
    return model.eval()


if __name__ == "__main__":
    try:
        print(json.dumps(examine(json.load(sys.stdin))))
    except SecvecError as failure:
        print(failure, file=sys.stderr)
        sys.exit(1)
