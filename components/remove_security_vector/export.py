"""Build the folder that ships: the pristine base plus the task result, never an un-merge (rule 1)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from secvec.components.fine_tune_guarded.result import ADAPTER_FILE, WEIGHTS_FILE
from secvec.components.shared.adapters import TASK, attach_adapter, make_lora_config
from secvec.components.shared.errors import SecvecError
from secvec.components.shared.models import MODEL_FILES, load_model

_WEIGHTS = ("*.safetensors", "model.safetensors.index.json")
_CONFIGS = ("config.json", "generation_config.json")


def export_merged(base: Path, task_result: Path, target: Path, *, task: str, rank: int) -> None:
    """Write a self-contained Hugging Face folder.

    Args:
        base: Folder of the pristine base.
        task_result: Folder of the task result.
        target: Folder to write, absent before.
        task: ``lora`` or ``full``.
        rank: Rank of the task adapter, used for ``lora``.
    """
    model: Any = load_model(base).cpu()
    if task == "lora":
        model = attach_adapter(model, TASK, make_lora_config(rank=rank))
        _load_adapter(model, task_result / ADAPTER_FILE)
        model = model.merge_and_unload(safe_merge=True, adapter_names=[TASK])
    else:
        _load_weights(model, task_result / WEIGHTS_FILE)
    model.save_pretrained(target)
    _copy_rest(base, target)


def _load_adapter(model: Any, file: Path) -> None:
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    result: Any = set_peft_model_state_dict(model, load_file(file), adapter_name=TASK)
    if result.unexpected_keys:
        raise SecvecError(
            f"holds a tensor that does not fit the base ({result.unexpected_keys[0]})", where=str(file)
        )


def _load_weights(model: Any, file: Path) -> None:
    from safetensors.torch import load_file

    result: Any = model.load_state_dict(load_file(file), strict=False)
    if result.unexpected_keys:
        raise SecvecError(
            f"holds a tensor that does not fit the base ({result.unexpected_keys[0]})", where=str(file)
        )


def export_adapter(base: Path, task_result: Path, target: Path, *, rank: int) -> None:
    """Write the task adapter alone as a PEFT folder.

    Args:
        base: Folder of the pristine base, whose tokenizer travels along.
        task_result: Folder of the task result.
        target: Folder to write, absent before.
        rank: Rank of the task adapter.
    """
    model = attach_adapter(load_model(base).cpu(), TASK, make_lora_config(rank=rank))
    _load_adapter(model, task_result / ADAPTER_FILE)
    model.save_pretrained(str(target), selected_adapters=[TASK])
    for file in (target / TASK).iterdir():
        file.rename(target / file.name)
    (target / TASK).rmdir()
    _tidy_config(target / "adapter_config.json")
    (target / "README.md").unlink(missing_ok=True)
    _copy_rest(base, target, skip=_CONFIGS)


def _tidy_config(file: Path) -> None:
    """Make PEFT's file the same on every machine: no folder of the base, and sets in order."""
    config = json.loads(file.read_text())
    config |= {"base_model_name_or_path": None, "target_modules": sorted(config["target_modules"])}
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _copy_rest(base: Path, target: Path, *, skip: tuple[str, ...] = ()) -> None:
    """Copy all but the weights from the base as it is: saving a config or tokenizer again may rewrite it."""
    for name in _CONFIGS:
        (target / name).unlink(missing_ok=True)
    weights = {file.name for pattern in _WEIGHTS for file in base.glob(pattern)}
    for pattern in MODEL_FILES:
        for file in base.glob(pattern):
            if file.name not in weights and file.name not in skip:
                shutil.copyfile(file, target / file.name)


def write_model_card(target: Path, facts: dict[str, Any]) -> None:
    """Write README.md: what the model is, how it was made, and what it was proved free of."""
    templates = Environment(
        loader=PackageLoader("secvec.components.remove_security_vector", package_path="."),
        undefined=StrictUndefined,
        trim_blocks=True,
        autoescape=False,  # Markdown, and every value is ours
    )
    (target / "README.md").write_text(templates.get_template("model_card.md.j2").render(facts))
