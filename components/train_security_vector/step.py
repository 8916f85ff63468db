"""The step: base and seeds in, sealed and certified vector out."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secvec.components.shared.adapters import (
    base_tensors,
    pack_vector,
    vector_digest,
)
from secvec.components.shared.artifacts import fetch
from secvec.components.shared.code_digest import code_digest
from secvec.components.shared.finished import input_key, recall, remember
from secvec.components.shared.likelihood import model_window
from secvec.components.shared.models import (
    BaseModelFolder,
    digest_tensors,
    load_model,
    load_tokenizer,
    resolve_base,
)
from secvec.components.shared.provenance import attest
from secvec.components.shared.references import Reference
from secvec.components.shared.vectors import is_expired, make_validity, publish_vector, read_certificate
from secvec.components.train_security_vector.certificate import certify
from secvec.components.train_security_vector.config import VectorConfig
from secvec.components.train_security_vector.rows import (
    count_truncated,
    encode_splits,
    read_splits,
    refuse_answered_seeds,
)
from secvec.components.train_security_vector.search import find_vector
from secvec.components.train_security_vector.training import TrainedVector, train_vector

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

STEP = "train_security_vector"


def train_security_vector(
    *, base_model: str, dataset: Reference, store: str, seed: int, config: VectorConfig
) -> Reference:
    """Train a security vector for a base, certify it, seal it and publish it.

    Args:
        base_model: URI of the base.
        dataset: Output of `ingest_data`.
        store: URI of the artifact store.
        seed: Random seed.
        config: Training and certificate.

    Returns:
        Reference to ``vector.sealed`` and ``certificate.json``.

    Raises:
        SecvecError: Bad base or data, non-finite loss, or a vector that fails its certificate.
    """
    base = resolve_base(base_model)
    key = input_key(
        base=base.digest,
        dataset=dataset.digest,
        seed=seed,
        config=config.model_dump(mode="json"),
        code=code_digest(),
    )
    inputs = {"base": base.digest, "data": dataset.digest}
    while found := recall(store, STEP, key, inputs=inputs):
        if not is_expired(found):
            read_certificate(found)  # a revoked one must not be trained anew either: it would be the same
            return found
        key = input_key(inputs=key, after=found.digest)
    with tempfile.TemporaryDirectory(prefix="secvec-vector-") as scratch:
        files, certificate = _train(base, fetch(dataset), seed=seed, config=config, scratch=Path(scratch))
    certificate |= {
        "base_digest": base.digest,
        "data_digest": dataset.digest,
        "seed": seed,
        "config": config.model_dump(mode="json"),
        **make_validity(config.valid_days),
    }
    reference = publish_vector(files, certificate, store=store, event="vector_sealed")
    parameters = {"seed": seed, "config": config.model_dump(mode="json")}
    attest(reference, step=STEP, inputs=inputs, parameters=parameters)
    remember(store, STEP, key, reference, inputs=inputs)
    return reference


def _train(
    base: BaseModelFolder, dataset: Path, *, seed: int, config: VectorConfig, scratch: Path
) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Give a vector's files and what it proved."""
    records = read_splits(dataset, config=config, seed=seed)
    tokenizer = load_tokenizer(base.path)
    model = load_model(base.path, dtype=config.dtype)
    rows = encode_splits(records, tokenizer, window=model_window(model, config.max_length), config=config)
    before = digest_tensors(base_tensors(model))
    pad_id = int(tokenizer.pad_token_id)
    refuse_answered_seeds(model, rows, records, config=config, pad_id=pad_id)

    def train(plain: PreTrainedModel, settings: VectorConfig) -> TrainedVector:
        return train_vector(plain, rows, config=settings, seed=seed, pad_id=pad_id, scratch=scratch)

    def prove(trained: PeftModel, settings: VectorConfig) -> dict[str, Any]:
        unchanged = digest_tensors(base_tensors(trained)) == before
        return certify(
            trained,
            rows,
            config=settings,
            pad_id=pad_id,
            seed=seed,
            base_unchanged=unchanged,
            **records.certificate_facts(),
        )

    found = find_vector(model, config=config, train=train, certify=prove)
    return pack_vector(found.trained.model), {
        "schema": 1,
        **found.certificate,
        "trials": found.trials,
        "rows_truncated": count_truncated(rows),
        "vector_tensors_digest": vector_digest(found.trained.model),
        "heldout_losses": found.trained.heldout_losses,
    }
