"""The security vector of a cell."""

from __future__ import annotations

import base64
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secvec.components.shared.adapters import pack_vector
from secvec.components.shared.likelihood import encode_record
from secvec.components.shared.models import load_model, load_tokenizer
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
    rows = VectorRows(
        **{
            name: [encode_record(record, tokenizer, window=256) for record in getattr(data, name)]
            for name in ("seeds", "seeds_heldout", "anchors", "anchors_heldout")
        }
    )
    pad, seed = int(tokenizer.pad_token_id), cell.random_seed
    with tempfile.TemporaryDirectory() as scratch:
        model = train_vector(
            load_model(base), rows, config=config, seed=seed, pad_id=pad, scratch=Path(scratch)
        ).model
    categories = {record.id: record.category for record in data.seeds_heldout}
    certificate = certify(
        model, rows, config=config, pad_id=pad, seed=seed, categories=categories, base_unchanged=True
    )
    return CellVector(pack_vector(model), certificate)
