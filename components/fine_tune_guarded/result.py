"""What a training leaves: the task's tensors, and proof that it left the rest as it was."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secvec.components.fine_tune_guarded.config import Task
from secvec.components.fine_tune_guarded.processes import is_first, put_together
from secvec.components.shared.adapters import TASK, VECTOR, adapter_tensors, base_tensors, vector_digest
from secvec.components.shared.errors import SecvecError
from secvec.components.shared.models import digest_tensors

if TYPE_CHECKING:
    from peft import PeftModel

ADAPTER_FILE = "task_adapter.safetensors"
WEIGHTS_FILE = "task_weights.safetensors"


def digest_untouched(model: PeftModel, *, guarded: bool, task: Task) -> dict[str, str]:
    """Digests of what training must leave as it is: the vector, and under LoRA the base (rules 1 and 2)."""
    found = {}
    if guarded:
        found["the security vector"] = vector_digest(model)
    if task == "lora":
        found["the base"] = digest_tensors(base_tensors(model))
    return found


def check_untouched(before: Mapping[str, str], after: Mapping[str, str]) -> None:
    """Assert that nothing of it was changed.

    Raises:
        SecvecError: Something was.
    """
    for name, digest in before.items():
        if after[name] != digest:
            raise SecvecError(
                f"training changed {name}",
                where="fine_tune_guarded",
                accepted=f"the same bytes as before ({digest})",
            )


def write_result(model: PeftModel, *, task: Task, training: Mapping[str, Any], folder: Path) -> None:
    """Write the task's tensors and ``training.json``; of several processes, the first writes."""
    import safetensors.torch

    if task == "lora":
        tensors, file = adapter_tensors(model, TASK), ADAPTER_FILE
    else:
        learned = {name for name, _ in model.named_parameters() if f".{VECTOR}." not in name}
        names = {name.removeprefix("base_model.model.").replace(".base_layer.", ".") for name in learned}
        tensors = {name: tensor for name, tensor in base_tensors(model).items() if name in names}
        file = WEIGHTS_FILE
    saved = put_together(tensors)
    if is_first():
        safetensors.torch.save_file(saved, folder / file)
        (folder / "training.json").write_text(json.dumps(training, indent=2, sort_keys=True) + "\n")
