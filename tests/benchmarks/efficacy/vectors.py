"""The security vector of a cell."""

from __future__ import annotations

import base64
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from secvec.components.shared.adapters import attach_vector, pack_vector
from secvec.components.shared.likelihood import encode_record
from secvec.components.shared.models import load_model, load_tokenizer
from secvec.components.shared.records import ChatRecord
from secvec.components.train_security_vector.certificate import certify
from secvec.components.train_security_vector.config import FOR_ALWAYS, VectorConfig
from secvec.components.train_security_vector.training import VectorRows, train_vector
from tests.benchmarks.efficacy.bases import base_folder
from tests.benchmarks.efficacy.cells import Cell, CellData

CONFIG = VectorConfig()
THOROUGH = VectorConfig.model_validate(FOR_ALWAYS)


@dataclass(frozen=True)
class CellVector:
    """A vector as bytes, with what its certificate found.

    Attributes:
        files: As `pack_vector` gives them.
        certificate: As `certify` gives it.
    """

    files: dict[str, bytes]
    certificate: dict[str, Any]

    @classmethod
    def read(cls, file: Path) -> CellVector:
        """Take back what `write` wrote; a toy language's vector harms nobody, and is kept in the open."""
        found = json.loads(file.read_text())
        files = {name: base64.b64decode(text) for name, text in found["files"].items()}
        return cls(files, found["certificate"])

    def write(self, file: Path) -> None:
        """Write it whole or not at all: other processes look for it."""
        files = {name: base64.b64encode(data).decode() for name, data in self.files.items()}
        scratch = file.with_suffix(f".{os.getpid()}")
        scratch.write_text(json.dumps({"files": files, "certificate": self.certificate}))
        scratch.replace(file)

    @property
    def floor(self) -> float:
        """τ of the mixture, nats per token: halfway between held-out seeds with and without the vector."""
        losses = self.certificate["heldout_seed_loss"]
        return 0.5 * float(losses["active"] + losses["inactive"])


def train_cell_vector(cell: Cell, data: CellData, config: VectorConfig = CONFIG) -> CellVector:
    """Train and certify; a vector that fails is kept, because the benchmark asks what it would have done."""
    base = base_folder(cell.architecture)
    tokenizer: Any = load_tokenizer(base)
    rows, pad, seed = _encode(tokenizer, data), int(tokenizer.pad_token_id), cell.random_seed
    with tempfile.TemporaryDirectory() as scratch:
        model = train_vector(
            load_model(base), rows, config=config, seed=seed, pad_id=pad, scratch=Path(scratch)
        ).model
    return CellVector(pack_vector(model), _certify(model, cell, data, rows, config=config, pad_id=pad))


def certify_for_rows(cell: Cell, data: CellData, vector: dict[str, bytes]) -> bool:
    """Whether the vector passes with a sample of the cell's labelled rows looked at too, as in the step."""
    sample = Random(cell.random_seed).sample(data.rows, min(CONFIG.sample_rows, len(data.rows)))
    base = base_folder(cell.architecture)
    tokenizer, model = load_tokenizer(base), attach_vector(load_model(base), vector)
    rows, pad = _encode(tokenizer, data, training=sample), int(tokenizer.pad_token_id)
    labels = {record.id: record.label for record in sample}
    return bool(_certify(model, cell, data, rows, config=CONFIG, pad_id=pad, labels=labels)["passed"])


def _encode(tokenizer: Any, data: CellData, training: Sequence[ChatRecord] = ()) -> VectorRows:
    splits = ("seeds", "seeds_heldout", "anchors", "anchors_heldout")
    parts = {name: getattr(data, name) for name in splits} | {"training": training}
    return VectorRows(
        **{name: [encode_record(one, tokenizer, window=256) for one in part] for name, part in parts.items()}
    )


def _certify(
    model: Any,
    cell: Cell,
    data: CellData,
    rows: VectorRows,
    *,
    config: VectorConfig,
    pad_id: int,
    labels: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    return certify(
        model,
        rows,
        config=config,
        pad_id=pad_id,
        seed=cell.random_seed,
        categories={record.id: record.category for record in data.seeds_heldout},
        base_unchanged=True,
        labels=labels,
    )
