"""The step: base and task result in, clean model and absence proof out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from secvec.components.remove_security_vector.config import RemovalConfig
from secvec.components.remove_security_vector.export import export_adapter, export_merged, write_model_card
from secvec.components.remove_security_vector.proof import prove_absence
from secvec.components.shared.artifacts import building, fetch, publish
from secvec.components.shared.code_digest import code_digest
from secvec.components.shared.errors import SecvecError
from secvec.components.shared.finished import input_key, recall, remember
from secvec.components.shared.models import BaseModelFolder, digest_model_folder, resolve_base
from secvec.components.shared.provenance import attest
from secvec.components.shared.references import Reference
from secvec.components.shared.vectors import read_certificate

STEP = "remove_security_vector"
_ATTRIBUTION = "attribution.json"
_CARRIED = (
    "base_digest",
    "data_digest",
    "vector_digest",
    "guard",
    "task",
    "steps",
    "seed",
    "code_digest",
)


def remove_security_vector(
    *, base_model: str, task_result: Reference, vector: Reference, store: str, config: RemovalConfig
) -> Reference:
    """Rebuild the clean model from the pristine base and the task result, and prove the vector absent.

    Args:
        base_model: URI of the base.
        task_result: Output of `fine_tune_guarded`.
        vector: Output of `train_security_vector`; only its digest is read, the vector stays sealed.
        store: URI of the artifact store.
        config: What ships.

    Returns:
        Reference to ``model/`` (exactly what ships), ``provenance.json``, ``absence_proof.json`` and, under a
        guard, ``attribution.json``: which training rows the vector explains best.

    Raises:
        SecvecError: Another base or vector than the task was trained with, or a trace of the vector.
    """
    base = resolve_base(base_model)
    key = input_key(
        base=base.digest,
        task_result=task_result.digest,
        vector=vector.digest,
        config=config.model_dump(mode="json"),
        code=code_digest(),
    )
    read_certificate(vector)  # what a revoked or expired vector guarded is not handed on, finished or not
    inputs = {"base": base.digest, "task_result": task_result.digest, "vector": vector.digest}
    if found := recall(store, STEP, key, inputs=inputs):
        return found.model_copy(update={"measured": task_result.measured})
    folder = fetch(task_result)
    training = json.loads((folder / "training.json").read_text())
    _check_origin(training, base, vector=vector)
    with building("model", store) as target:
        _build(base, folder, target, training=training, config=config)
        reference = publish(target, kind="model", store=store)
    attest(reference, step=STEP, inputs=inputs, parameters={"config": config.model_dump(mode="json")})
    remember(store, STEP, key, reference, inputs=inputs)
    return reference.model_copy(update={"measured": task_result.measured})


def _check_origin(training: dict[str, Any], base: BaseModelFolder, *, vector: Reference) -> None:
    if training["base_digest"] != base.digest:
        raise SecvecError(
            f"the task was trained on the base {training['base_digest']}",
            where=base.uri,
            accepted=f"a task result of {base.digest}",
        )
    certificate = read_certificate(vector, base_digest=base.digest)
    if training["guard"] != "none" and training["vector_digest"] != certificate["vector_tensors_digest"]:
        raise SecvecError(
            f"the task was trained with the vector {training['vector_digest']}",
            where=vector.uri,
            accepted=f"a task result of {certificate['vector_tensors_digest']}",
        )


def _build(
    base: BaseModelFolder,
    task_result: Path,
    target: Path,
    *,
    training: dict[str, Any],
    config: RemovalConfig,
) -> None:
    rank = int(training["config"]["rank"])
    model = target / "model"
    if config.export == "merged":
        export_merged(base.path, task_result, model, task=training["task"], rank=rank)
    elif training["task"] == "lora":
        export_adapter(base.path, task_result, model, rank=rank)
    else:
        raise SecvecError(
            "full weights have no adapter to export", where=STEP, accepted="export: merged, or task: lora"
        )
    provenance = {"schema": 1, **{name: training[name] for name in _CARRIED}, "config": training["config"]}
    write_model_card(model, provenance)
    proof = prove_absence(
        {
            "base": str(base.path),
            "task_result": str(task_result),
            "model": str(model),
            "task": training["task"],
            "export": config.export,
            "rank": rank,
        }
    )
    if digest_model_folder(base.path) != base.digest:
        raise SecvecError("the base changed while the model was rebuilt", where=base.uri)
    _write_json(target / "provenance.json", provenance)
    if (task_result / _ATTRIBUTION).is_file():
        shutil.copyfile(task_result / _ATTRIBUTION, target / _ATTRIBUTION)
    _write_json(target / "absence_proof.json", proof)


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
