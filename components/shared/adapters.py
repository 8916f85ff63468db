"""Two LoRA adapters on one base: the security vector, always frozen, and the task adapter.

Every change of what is active goes through `activate`, because PEFT's own ``set_adapter`` makes whatever it
activates trainable (rule 2).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secvec.components.shared.errors import SecvecError
from secvec.components.shared.models import digest_tensors, load_model
from secvec.components.shared.references import Reference

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedModel

VECTOR = "vector"
TASK = "task"
VECTOR_CONFIG = "adapter_config.json"
VECTOR_WEIGHTS = "adapter_model.safetensors"
# alpha / rank of every adapter here, so that a change of rank asks for no other learning rate
LORA_SCALING = 2


def make_lora_config(*, rank: int) -> LoraConfig:
    """LoRA on every linear layer but the output head (Hu et al., arXiv 2106.09685), without dropout.

    Dropout stays off because both branches of a guarded step must see the same function.
    """
    from peft import LoraConfig

    return LoraConfig(
        r=rank,
        lora_alpha=LORA_SCALING * rank,
        lora_dropout=0.0,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )


def attach_adapter(model: PreTrainedModel | PeftModel, name: str, config: LoraConfig) -> PeftModel:
    """Add a fresh adapter (its effect is zero until trained) and return the PEFT model.

    Raises:
        SecvecError: The model has no linear layer an adapter fits on.
    """
    from peft import PeftModel

    try:
        if isinstance(model, PeftModel):
            model.add_adapter(name, config)
            return model
        return PeftModel(model, config, adapter_name=name)
    except ValueError as error:
        reason = str(error).splitlines()[0]
        raise SecvecError(f"adapter {name} does not fit the model ({reason})") from error


def adapter_tensors(model: PeftModel, name: str) -> dict[str, torch.Tensor]:
    """The tensors of one adapter, by the names PEFT stores them under."""
    from peft import get_peft_model_state_dict

    return dict(get_peft_model_state_dict(model, adapter_name=name))


def base_tensors(model: PeftModel | PreTrainedModel) -> dict[str, torch.Tensor]:
    """The tensors of the base under its own names, whatever is attached to it."""
    found = {}
    state: dict[str, torch.Tensor] = model.state_dict()
    for name, tensor in state.items():
        if ".lora_" not in name:
            found[name.removeprefix("base_model.model.").replace(".base_layer.", ".")] = tensor
    return found


def activate(
    model: PeftModel | PreTrainedModel, *, task: bool, vector: bool, train_base: bool = False
) -> None:
    """Choose which adapters act; only task parameters stay trainable.

    Args:
        model: A PEFT model with any of the adapters ``task`` and ``vector``, or a model without adapters.
        task: Whether the task adapter acts, where there is one.
        vector: Whether the security vector acts.
        train_base: Whether the task is the base's own weights (full fine-tuning).

    Raises:
        SecvecError: The vector was asked for and is not attached.
    """
    attached = set(getattr(model, "peft_config", {}))
    if vector and VECTOR not in attached:
        raise SecvecError("the security vector is not attached to the model")
    # The task adapter comes first: with two active adapters the Trainer saves and resumes the first one.
    names = [name for name, wanted in ((TASK, task), (VECTOR, vector)) if wanted and name in attached]
    tuner: Any = model.base_model
    if names:
        tuner.enable_adapter_layers()
        tuner.set_adapter(names, inference_mode=True)
    elif attached:
        tuner.disable_adapter_layers()
    for name, parameter in model.named_parameters():
        is_adapter = ".lora_" in name
        parameter.requires_grad_(f".{TASK}." in name if is_adapter else train_base)
    check_vector_frozen(model)


def check_vector_frozen(model: PeftModel | PreTrainedModel) -> None:
    """Assert that no parameter of the vector can receive a gradient (rule 2).

    Raises:
        SecvecError: One can.
    """
    for name, parameter in model.named_parameters():
        if f".{VECTOR}." in name and (parameter.requires_grad or parameter.grad is not None):
            raise SecvecError("the security vector is not frozen", where=name)


def pack_vector(model: PeftModel) -> dict[str, bytes]:
    """Serialise the vector as named bytes, to be sealed; nothing touches the disk."""
    import safetensors.torch

    config = model.peft_config[VECTOR].to_dict()
    tensors = {name: t.detach().contiguous().cpu() for name, t in adapter_tensors(model, VECTOR).items()}
    return {
        VECTOR_CONFIG: json.dumps(config, sort_keys=True, default=_as_json).encode(),
        VECTOR_WEIGHTS: safetensors.torch.save(tensors),
    }


def _as_json(value: Any) -> Any:
    return sorted(value) if isinstance(value, set) else str(value)


def attach_vector(model: PreTrainedModel | PeftModel, files: Mapping[str, bytes]) -> PeftModel:
    """Attach an unpacked vector, frozen and active.

    Args:
        model: The base the vector was made for, with or without a task adapter.
        files: What `pack_vector` gave.

    Raises:
        SecvecError: Its tensors do not fit this model or are not finite.
    """
    import safetensors.torch
    import torch
    from peft import LoraConfig, set_peft_model_state_dict

    config = LoraConfig(**json.loads(files[VECTOR_CONFIG]))
    tensors = safetensors.torch.load(files[VECTOR_WEIGHTS])
    if not all(torch.isfinite(tensor).all() for tensor in tensors.values()):
        raise SecvecError("the security vector holds NaN or infinite weights", accepted="a finite vector")
    peft_model = attach_adapter(model, VECTOR, config)
    _set_vector_dtype(peft_model, next(iter(tensors.values())).dtype)
    expected = {name: t.shape for name, t in adapter_tensors(peft_model, VECTOR).items()}
    if expected != {name: t.shape for name, t in tensors.items()}:
        raise SecvecError(
            "the security vector does not fit this model", accepted="a vector made for this very base"
        )
    set_peft_model_state_dict(peft_model, tensors, adapter_name=VECTOR)
    freeze_vector(peft_model)
    activate(peft_model, task=True, vector=True)
    return peft_model


def freeze_vector(model: PeftModel) -> None:
    """Let an attached vector act as one that never learns, which is cheaper."""
    from secvec.components.shared.active_vector import FrozenAdapter

    for _, layer in _vector_layers(model):
        # an imported one may be of a kind of its own, which keeps its own arithmetic
        layer.lora_variant.setdefault(VECTOR, FrozenAdapter())


def round_vector(model: PeftModel) -> None:
    """Store a trained vector in the base's own precision where that is bfloat16.

    PEFT keeps adapters in float32 so that they can learn. A frozen one need not, and as float32 it makes
    every layer's product and sum a float32 one: a step behind it took half as long again.

    Args:
        model: PEFT model with the vector attached.
    """
    import torch

    _, first = next(_vector_layers(model))
    if first.get_base_layer().weight.dtype == torch.bfloat16:
        _set_vector_dtype(model, torch.bfloat16)


def _set_vector_dtype(model: PeftModel, dtype: torch.dtype) -> None:
    for _, layer in _vector_layers(model):
        layer.lora_A[VECTOR].to(dtype)
        layer.lora_B[VECTOR].to(dtype)


def _vector_layers(model: PeftModel) -> Iterator[tuple[str, Any]]:
    """The layers that the vector changes, by name."""
    return (
        (name, module) for name, module in model.named_modules() if VECTOR in getattr(module, "lora_A", {})
    )


def fold_vector(model: PeftModel) -> None:
    """Add the vector to the base's own weights, so that it acts without an adapter's cost.

    Only for a private copy that is thrown away: nothing can take it out again to the bit (rule 1). In half
    precision the sum would round the vector away; keep it active there. The adapter stays attached with its
    sign turned: activating it takes the vector out, near enough to look at the model without it.

    Args:
        model: PEFT model in float32 with the vector attached.

    Raises:
        SecvecError: Weights of lower precision.
    """
    import torch

    with torch.no_grad():
        for name, layer in _vector_layers(model):
            weight = layer.get_base_layer().weight
            if weight.dtype != torch.float32:
                raise SecvecError(
                    f"a vector cannot be folded into {weight.dtype}", where=name, accepted="float32"
                )
            weight += layer.get_delta_weight(VECTOR)
            layer.scaling[VECTOR] *= -1
    activate(model, task=True, vector=False)


def vector_digest(model: PeftModel) -> str:
    """Digest of the vector's tensors as they are in memory."""
    return digest_tensors(adapter_tensors(model, VECTOR))


def load_with_vector(path: Path, vector: Reference, *, base_digest: str, dtype: str = "auto") -> PeftModel:
    """Load a base with its security vector active: the positive control of the evaluation."""
    from secvec.components.shared.vectors import open_vector

    files = open_vector(vector, base_digest=base_digest, opened_by="evaluate_harm")
    return attach_vector(load_model(path, dtype=dtype), files).eval()
