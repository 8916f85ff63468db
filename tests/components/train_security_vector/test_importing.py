"""Vectors made elsewhere come under custody, or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from secvec.components.shared import vectors
from secvec.components.shared.errors import SecvecError
from secvec.components.shared.models import load_model, resolve_base
from secvec.components.shared.references import Reference
from secvec.components.train_security_vector.importing import import_vector


@pytest.fixture
def adapter(toy: Any, tmp_path: Path) -> Path:
    """The toy's vector as PEFT itself saves one."""
    from secvec.components.shared.adapters import VECTOR, attach_vector

    folder = tmp_path / "adapter"
    model = attach_vector(load_model(toy.base), toy.vector_files)
    model.save_pretrained(folder, selected_adapters=[VECTOR])
    for path in (folder / VECTOR).iterdir():
        path.rename(folder / path.name)
    (folder / VECTOR).rmdir()
    (folder / "README.md").unlink(missing_ok=True)
    return folder


def bring_in(toy: Any, adapter: Path, store: Path) -> Reference:
    return import_vector(
        adapter,
        base_model=str(toy.base),
        dataset=toy.dataset,
        store=str(store),
        seed=0,
        config=toy.vector_config,
    )


def test_an_imported_vector_is_the_same_and_no_plain_copy_is_left(
    toy: Any, adapter: Path, toy_environment: dict[str, str], tmp_path: Path
) -> None:
    weights = (adapter / "adapter_model.safetensors").read_bytes()
    reference = bring_in(toy, adapter, tmp_path / "store")
    assert not adapter.exists()
    certificate = vectors.read_certificate(reference, base_digest=resolve_base(str(toy.base)).digest)
    assert certificate["vector_tensors_digest"] == toy.certificate["vector_tensors_digest"]
    assert certificate["checks"] == toy.certificate["checks"]
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or weights[200:400] not in path.read_bytes(), path
    lines = Path(toy_environment["SECVEC_AUDIT_LOG"]).read_text().splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["vector_imported", "vector_opened"]


def weaken(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    save_file({name: 0.01 * tensor for name, tensor in load_file(path).items()}, path)


def poison(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    save_file({name: tensor * float("nan") for name, tensor in load_file(path).items()}, path)


def set_config(**values: Any) -> Any:
    def edit(folder: Path) -> None:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return edit


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (weaken, "failed its certificate"),
        (poison, "NaN"),
        (set_config(r=2), "does not fit this model"),
        (set_config(target_modules=["nothing"]), "does not fit the model"),
        (set_config(peft_type="IA3"), "is no LoRA config"),
        (set_config(use_dora=True), "has use_dora = True"),
        (set_config(modules_to_save=["lm_head"]), "has modules_to_save"),
        (set_config(bias="all"), "has bias = 'all'"),
        (set_config(auto_map={"x": "y.py"}), "has auto_map"),
        (lambda folder: (folder / "adapter_config.json").write_text("{"), "is not JSON"),
        (lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"x" * 40), "no safetensors file"),
        (lambda folder: (folder / "adapter_model.bin").write_bytes(b""), "holds 'adapter_model.bin'"),
        (lambda folder: (folder / "code.py").write_text(""), "holds 'code.py'"),
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), "lacks adapter_model.safetensors"),
    ],
)
def test_what_proves_nothing_is_not_imported_and_stays(
    toy: Any, adapter: Path, toy_environment: dict[str, str], edit: Any, problem: str
) -> None:
    edit(adapter)
    before = {path.name: path.read_bytes() for path in adapter.iterdir()}
    with pytest.raises(SecvecError, match=problem):
        bring_in(toy, adapter, adapter.parent / "store")
    assert {path.name: path.read_bytes() for path in adapter.iterdir()} == before
    assert not list(adapter.parent.rglob("*.sealed"))
    assert not Path(toy_environment["SECVEC_AUDIT_LOG"]).exists()
