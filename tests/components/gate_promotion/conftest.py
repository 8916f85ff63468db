"""What the gate's tests are given: cases in a store with a real sqlite registry, and a bench without."""

import os
import shutil
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from secvec.components.shared import tracking
from secvec.components.shared.signing_keys import ensure_signing_key

# Test folders are no packages: helpers beside the tests are found by their plain names.
sys.path.insert(0, str(Path(__file__).parent))

from gate_bench import BOUND, DIGESTS, Bench
from gate_cases import DIGEST, Case, Gate, make_model, make_statistics


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setenv("SECVEC_SIGNING_KEY", str(ensure_signing_key(tmp_path / "signing")))
    monkeypatch.setenv("SECVEC_PROVENANCE_KEY", str(ensure_signing_key(tmp_path / "builder")))
    for name in ("SECVEC_TRUSTED_KEYS", "SECVEC_TRUSTED_BUILDERS"):
        monkeypatch.delenv(name, raising=False)
    make_model(tmp_path / "model" / "model", seed=1)
    return Bench(
        folder=tmp_path,
        parts={
            "statistics": make_statistics(dict(BOUND)),
            "provenance": {
                "schema": 1,
                "base_digest": DIGESTS["base"],
                "data_digest": DIGESTS["data"],
                "vector_digest": DIGEST,
                "guard": "mixture",
                "task": "lora",
            },
            "absence_proof": {
                "schema": 1,
                "absent": True,
                "checks": [{"name": "names", "passed": True, "found": ""}],
            },
            "certificate": {
                "schema": 1,
                "passed": True,
                "checks": [{"name": "works", "figure": 1.0, "bound": 0.5, "passed": True}],
                "base_digest": DIGESTS["base"],
                "vector_tensors_digest": DIGEST,
            },
        },
    )


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A sqlite store with the MLflow tables in it: creating them takes seconds.

    ``SECVEC_TEST_REGISTRY`` names a folder that keeps an empty one for sessions that come in thousands.
    """
    folder = tmp_path_factory.mktemp("mlflow")
    uri, kept = f"sqlite:///{folder}/mlflow.db", os.environ.get("SECVEC_TEST_REGISTRY")
    if kept and (Path(kept) / "mlflow.db").is_file():
        shutil.copy(Path(kept) / "mlflow.db", folder)
    else:
        tracking.initialise(uri, f"file://{folder}/artifacts")
        if kept:
            Path(kept).mkdir(exist_ok=True)
            shutil.copy(folder / "mlflow.db", kept)
    yield uri
    shutil.rmtree(folder)


@pytest.fixture
def environment(tmp_path: Path, registry: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SECVEC_SIGNING_KEY", str(ensure_signing_key(tmp_path / "signing")))
    monkeypatch.setenv("SECVEC_PROVENANCE_KEY", str(ensure_signing_key(tmp_path / "builder")))
    monkeypatch.setenv("SECVEC_AUDIT_LOG", str(tmp_path / "audit.jsonl"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", registry)
    for name in ("SECVEC_TRUSTED_KEYS", "SECVEC_TRUSTED_BUILDERS", "MLFLOW_RUN_ID", "KFP_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def gate(environment: Path, request: pytest.FixtureRequest) -> Gate:
    # One registry serves all tests: model names must differ between them.
    start = abs(hash(request.node.nodeid)) % 10**9 * 1000
    return Gate(environment, names=count(start))


@pytest.fixture
def case(gate: Gate) -> Case:
    return gate.case()
