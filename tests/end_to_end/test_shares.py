"""Training rows that several tasks of the pipeline read, run by KFP as it is compiled."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import yaml

from secvec.components.ingest_data.config import IngestConfig, Sources
from secvec.components.ingest_data.step import ingest_data
from secvec.pipelines.guarded_fine_tuning.config import read_run_config
from tests.faults.small_run import prepare_small_run


def test_a_run_that_reads_in_shares_trains_on_the_same_dataset(tmp_path: Path) -> None:
    path = prepare_small_run(tmp_path / "inputs")
    path.write_text(
        yaml.safe_dump(yaml.safe_load(path.read_text()) | {"ingest_shares": 2, "control_arm": False})
    )
    environment = {**os.environ, "SECVEC_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    command = "from secvec.pipelines.command import main; main()"
    arguments = ["run", "--config", str(path), "--output", str(tmp_path / "output")]
    done = subprocess.run(
        [sys.executable, "-c", command, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for number in (1, 2):
        assert f"read_share ({number} of 2): done" in done.stdout + done.stderr
    config = read_run_config(path)
    names = Sources.model_fields
    sources = Sources.read({name: getattr(config, name) for name in names}, where="sources")
    alone = ingest_data(sources=sources, store=str(tmp_path / "alone"), config=IngestConfig())
    summary = json.loads((tmp_path / "output" / "summary.json").read_text())
    assert summary["digests"]["data"] == alone.digest
    assert len(list((tmp_path / "output" / "store" / "share").iterdir())) == 2
