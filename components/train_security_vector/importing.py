"""Vectors made elsewhere: a PEFT LoRA folder comes under custody once it has proved that it works."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import safetensors.torch
from peft import LoraConfig

from secvec.components.shared.adapters import (
    VECTOR_CONFIG,
    VECTOR_WEIGHTS,
    attach_vector,
    base_tensors,
    pack_vector,
    vector_digest,
)
from secvec.components.shared.artifacts import fetch
from secvec.components.shared.errors import SecvecError
from secvec.components.shared.likelihood import model_window
from secvec.components.shared.models import digest_tensors, load_model, load_tokenizer, resolve_base
from secvec.components.shared.references import Reference
from secvec.components.shared.storage import list_files
from secvec.components.shared.vectors import make_validity, open_vector, publish_vector
from secvec.components.train_security_vector.certificate import certify, refuse_if_failed
from secvec.components.train_security_vector.config import VectorConfig
from secvec.components.train_security_vector.rows import encode_splits, read_splits

# What PEFT writes beside an adapter and what does not matter here.
_IGNORED_FILES = {"README.md", ".gitattributes"}
_ACCEPTED_FILES = f"a folder with {VECTOR_CONFIG} and {VECTOR_WEIGHTS}, as PEFT saves a LoRA adapter"
# Settings of LoRA that are a vector's own; all others must be as PEFT has them by default.
_OWN = {"r", "lora_alpha", "target_modules", "rank_pattern", "alpha_pattern", "use_rslora", "fan_in_fan_out"}
# Settings that say where an adapter comes from or how it was trained, not what it does.
_MEANINGLESS = {
    "auto_mapping", "base_model_name_or_path", "inference_mode", "init_lora_weights", "lora_dropout",
    "megatron_core", "peft_type", "peft_version", "revision", "runtime_config", "task_type",
}  # fmt: skip


def import_vector(
    adapter: Path, *, base_model: str, dataset: Reference, store: str, seed: int, config: VectorConfig
) -> Reference:
    """Prove, seal and publish an adapter as the security vector of a base, then remove the plain files.

    Args:
        adapter: Folder with ``adapter_config.json`` and ``adapter_model.safetensors``.
        base_model: URI of the base that it acts on.
        dataset: Output of `ingest_data`; the certificate is proved on its held-out seeds and anchors.
        store: URI of the artifact store.
        seed: Seed of the random control vector.
        config: What the certificate asks.

    Returns:
        Reference to the sealed vector and its certificate. It has been opened again and compared.

    Raises:
        SecvecError: The folder holds something else, the adapter does not fit the base, or it fails its
            certificate; then nothing is published and the plain files stay.
    """
    files = _read_adapter(adapter)
    base = resolve_base(base_model)
    records = read_splits(fetch(dataset), config=config, seed=seed)
    tokenizer = load_tokenizer(base.path)
    plain = load_model(base.path, dtype=config.dtype)
    rows = encode_splits(records, tokenizer, window=model_window(plain, config.max_length), config=config)
    before = digest_tensors(base_tensors(plain))
    model = attach_vector(plain, files)
    certificate: dict[str, Any] = {
        "schema": 1,
        **certify(
            model,
            rows,
            config=config,
            pad_id=int(tokenizer.pad_token_id),
            seed=seed,
            base_unchanged=digest_tensors(base_tensors(model)) == before,
            **records.certificate_facts(),
        ),
        "base_digest": base.digest,
        "data_digest": dataset.digest,
        "vector_tensors_digest": vector_digest(model),
        "seed": seed,
        "config": config.model_dump(mode="json"),
        **make_validity(config.valid_days),
    }
    refuse_if_failed(certificate)
    packed = pack_vector(model)
    reference = publish_vector(packed, certificate, store=store, event="vector_imported")
    if open_vector(reference, base_digest=base.digest, opened_by="import_vector") != packed:
        raise SecvecError("does not open to what was sealed", where=reference.uri, accepted="a sound store")
    remove_plain_copy(adapter)
    return reference


def remove_plain_copy(adapter: Path) -> None:
    """Overwrite and remove an adapter's weights and config, and the folder if nothing else is in it.

    Overwriting is for disks that write in place; on others only an encrypted disk forgets.

    Raises:
        SecvecError: A file cannot be removed.
    """
    try:
        for name in (VECTOR_WEIGHTS, VECTOR_CONFIG):
            path = adapter / name
            with path.open("r+b") as stream:
                stream.write(bytes(path.stat().st_size))
                stream.flush()
            path.unlink()
        if not any(adapter.iterdir()):
            adapter.rmdir()
    except OSError as error:
        raise SecvecError(
            f"the plain vector cannot be removed ({error.strerror})",
            where=str(adapter),
            accepted="remove it by hand: the sealed one is published",
        ) from error


def _read_adapter(folder: Path) -> dict[str, bytes]:
    if not folder.is_dir():
        raise SecvecError("is no folder", where=str(folder), accepted=_ACCEPTED_FILES)
    found = set(list_files(folder))
    for name in sorted((found - _IGNORED_FILES) ^ {VECTOR_CONFIG, VECTOR_WEIGHTS}):
        problem = f"holds {name!r}" if name in found else f"lacks {name}"
        raise SecvecError(problem, where=str(folder), accepted=_ACCEPTED_FILES)
    config, weights = _read_config(folder / VECTOR_CONFIG), (folder / VECTOR_WEIGHTS).read_bytes()
    try:
        safetensors.torch.load(weights)
    except safetensors.SafetensorError as error:
        raise SecvecError(
            f"is no safetensors file ({error})", where=str(folder / VECTOR_WEIGHTS), accepted=_ACCEPTED_FILES
        ) from error
    return {VECTOR_CONFIG: json.dumps(config).encode(), VECTOR_WEIGHTS: weights}


def _read_config(path: Path) -> dict[str, Any]:
    """Give the settings that a vector may have; refuse an adapter that does more than LoRA."""

    try:
        written: Any = json.loads(path.read_bytes())
    except ValueError as error:
        raise SecvecError("is not JSON", where=str(path), accepted="a PEFT LoRA config") from error
    if not isinstance(written, dict) or written.get("peft_type") != "LORA":
        raise SecvecError("is no LoRA config", where=str(path), accepted='"peft_type": "LORA"')
    defaults = LoraConfig()
    known = {field.name for field in dataclasses.fields(defaults)}
    for name, value in written.items():
        if name in _OWN | _MEANINGLESS:
            continue
        if name not in known or _plain(value) != _plain(getattr(defaults, name)):
            raise SecvecError(f"has {name} = {value!r}", where=str(path), accepted="a plain LoRA adapter")
    return {
        **{name: written[name] for name in _OWN if name in written},
        "task_type": "CAUSAL_LM",
        "lora_dropout": 0.0,
    }


def _plain(value: Any) -> Any:
    """An empty setting is an empty setting, however it is written."""
    return value or None
