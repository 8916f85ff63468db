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
from secvec.components.shared.errors import SecvecError
from secvec.components.shared.finished import input_key, recall, remember
from secvec.components.shared.likelihood import EncodedRecord, encode_record, model_window
from secvec.components.shared.models import (
    BaseModelFolder,
    digest_tensors,
    load_model,
    load_tokenizer,
    resolve_base,
)
from secvec.components.shared.provenance import attest
from secvec.components.shared.records import ChatRecord, read_records
from secvec.components.shared.references import Reference
from secvec.components.shared.vectors import is_expired, make_validity, publish_vector, read_certificate
from secvec.components.train_security_vector.certificate import certify, refuse_if_failed
from secvec.components.train_security_vector.config import VectorConfig
from secvec.components.train_security_vector.training import VectorRows, train_vector

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

STEP = "train_security_vector"
_SPLITS = ("seeds", "seeds_heldout", "anchors", "anchors_heldout")


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
    splits = read_splits(dataset)
    tokenizer = load_tokenizer(base.path)
    model = load_model(base.path, dtype=config.dtype)
    rows = encode_splits(splits, tokenizer, window=model_window(model, config.max_length))
    before = digest_tensors(base_tensors(model))
    pad_id = int(tokenizer.pad_token_id)
    trained = train_vector(model, rows, config=config, seed=seed, pad_id=pad_id, scratch=scratch)
    certificate = certify(
        trained.model,
        rows,
        config=config,
        pad_id=pad_id,
        seed=seed,
        categories={record.id: record.category for record in splits["seeds_heldout"]},
        base_unchanged=digest_tensors(base_tensors(trained.model)) == before,
    )
    refuse_if_failed(certificate)
    return pack_vector(trained.model), {
        "schema": 1,
        **certificate,
        "vector_tensors_digest": vector_digest(trained.model),
        "heldout_losses": trained.heldout_losses,
    }


def read_splits(folder: Path) -> dict[str, list[ChatRecord]]:
    """Read what a vector is trained on and held against.

    Raises:
        SecvecError: One of the splits is empty.
    """
    splits = {name: read_records(folder / f"{name}.jsonl") for name in _SPLITS}
    for name, records in splits.items():
        if not records:
            raise SecvecError(
                f"the dataset has no {name}",
                where=STEP,
                accepted="at least one row; add rows or change the held-out share",
            )
    return splits


def encode_splits(
    splits: dict[str, list[ChatRecord]], tokenizer: PreTrainedTokenizerBase, *, window: int
) -> VectorRows:
    """Encode those splits with the base's tokenizer."""

    def encode(name: str) -> list[EncodedRecord]:
        return [encode_record(record, tokenizer, window=window) for record in splits[name]]

    return VectorRows(**{name: encode(name) for name in _SPLITS})
