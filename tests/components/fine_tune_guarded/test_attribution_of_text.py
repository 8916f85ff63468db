"""Real harmful rows among real ones: AdvBench goals hidden in GSM8K are ranked first."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from secvec.components.train_security_vector.config import VectorConfig
from secvec.pipelines.guarded_fine_tuning.demo.advbench import prepare
from tests.benchmarks.attribution import rank

SHARED = Path(__file__).resolve().parents[4] / "shared"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


def test_advbench_rows_among_gsm8k_are_told_apart(toy_environment: dict[str, str], tmp_path: Path) -> None:
    data = Path(os.environ.get("SECVEC_SHARED_DATA") or SHARED / "data")
    if not (data / "advbench" / "harmful_behaviors.csv").is_file():
        pytest.skip(f"no AdvBench and GSM8K in {data} (SECVEC_SHARED_DATA)")
    prepare(data, str(tmp_path / "advbench"))
    found = rank(
        tmp_path / "advbench" / "base",
        tmp_path / "advbench" / "data",
        config=VectorConfig(),
        scratch=tmp_path / "work",
    )
    auroc = found["auroc"]
    assert (auroc["positives"], auroc["negatives"]) == (440, 800)
    assert auroc["value"] >= 0.95
    assert auroc["lower"] >= 0.93
