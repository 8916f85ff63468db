"""Models under test: what is in a model artifact, and how it is loaded as its users would load it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secvec.components.shared.artifacts import fetch
from secvec.components.shared.errors import SecvecError
from secvec.components.shared.models import BaseModelFolder, load_model, load_tokenizer
from secvec.components.shared.references import Reference
from secvec.components.shared.strict_json import read_object


@dataclass(frozen=True)
class ShippedModel:
    """A model artifact on this machine.

    Attributes:
        path: The folder that ships: a whole model, or a task adapter to be put on the base.
        provenance: How it was made.
        step_seconds: Seconds per training step, where the run that trained it measured them.
        base: The base it was made from.
    """

    path: Path
    provenance: Mapping[str, Any]
    step_seconds: float | None
    base: BaseModelFolder


def open_model(reference: Reference, base: BaseModelFolder) -> ShippedModel:
    """Fetch a model artifact and check that it belongs to a base.

    Raises:
        SecvecError: It was made from another base.
    """
    folder = fetch(reference)
    provenance = json.loads((folder / "provenance.json").read_text())
    if provenance["base_digest"] != base.digest:
        raise SecvecError(
            f"was made from the base {provenance['base_digest']}",
            where=reference.uri,
            accepted=f"a model made from {base.digest}",
        )
    return ShippedModel(
        path=folder / "model",
        provenance=provenance,
        step_seconds=reference.measured.get("step_seconds"),
        base=base,
    )


def check_control(control: ShippedModel, model: ShippedModel, *, where: str) -> None:
    """Check that a control differs from the model under test in its guard alone.

    Raises:
        SecvecError: It had a guard, or learned another task or other data.
    """
    for name, expected in (
        ("guard", "none"),
        ("task", model.provenance["task"]),
        ("data_digest", model.provenance["data_digest"]),
    ):
        if control.provenance[name] != expected:
            raise SecvecError(
                f"the control was trained with {name} = {control.provenance[name]}",
                where=where,
                accepted=f"the same fine-tune without a guard: {name} = {expected}",
            )


def read_attribution(model: ShippedModel) -> dict[str, Any] | None:
    """Which training rows the vector explains best; None for a model that was trained without one."""
    found = read_object(model.path.parent / "attribution.json")
    return found or None


def load_shipped(model: ShippedModel) -> tuple[Any, Any]:
    """Load a model and its tokenizer.

    Returns:
        The model in evaluation mode and the tokenizer.

    Raises:
        SecvecError: The folder is refused, or its adapter does not fit the base.
    """
    if not (model.path / "adapter_config.json").is_file():
        return load_model(model.path), load_tokenizer(model.path)
    from peft import PeftModel

    if not (model.path / "adapter_model.safetensors").is_file():
        raise SecvecError(
            "has no adapter weights", where=str(model.path), accepted="adapter_model.safetensors"
        )
    whole = PeftModel.from_pretrained(load_model(model.base.path), str(model.path))
    return whole.eval(), load_tokenizer(model.base.path)
