"""A run on the champion's own inputs stops after ingestion; one byte more of data, and it trains.

The champion is one that the gate has really promoted; nothing is trained to make it.
"""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from secvec.components.gate_promotion.step import gate_promotion
from secvec.components.ingest_data.config import IngestConfig, Sources
from secvec.components.ingest_data.step import ingest_data
from secvec.components.shared.choices import digest_choices
from secvec.components.shared.errors import SecvecError
from secvec.components.shared.tracking import connect
from secvec.pipelines.guarded_fine_tuning.config import RunConfig
from secvec.pipelines.local import run_locally
from secvec.pipelines.summary import show_summary, write_summary

_COMPONENTS = Path(__file__).parents[1] / "components"


def load(step: str) -> Any:
    path = _COMPONENTS / step / "conftest.py"
    spec = importlib.util.spec_from_file_location(f"secvec_{step}_fixtures", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_gate = load("gate_promotion")
registry, environment, gate = _gate.registry, _gate.environment, _gate.gate


@pytest.fixture
def config(gate: Any, tmp_path: Path) -> RunConfig:
    """A run whose exact inputs made the champion."""
    world = load("ingest_data").World(tmp_path / "sources")
    sources = Sources.read(world.sources, where="sources")
    dataset = ingest_data(sources=sources, store=gate.store, config=IngestConfig())
    case = gate.case()
    model = gate.model(provenance=gate.provenance(data_digest=dataset.digest))
    case = replace(case, dataset=dataset, model=model)
    case = replace(case, evaluation=gate.evaluation(case))
    config = RunConfig(
        **world.sources,
        base_model=case.base_model,
        policy=case.policy.model_dump(mode="json"),
        model_name=case.model_name,
        store=gate.store,
        seed=3,
        skip_unchanged=True,
    )
    choices = {name: getattr(config, name) for name in ("guard", "task", "seed", "control_arm", "overrides")}
    gate_promotion(**vars(case), choices=digest_choices(**choices))
    return config


def steps_of(output: Path) -> list[str]:
    events = [json.loads(line) for line in (output / "events.jsonl").read_text().splitlines()]
    return [event["step"] for event in events if event["event"] == "step_started"]


def test_nothing_is_trained_until_a_byte_changes(config: RunConfig, tmp_path: Path) -> None:
    output = tmp_path / "output"
    (output / "tmp").mkdir(parents=True)
    console = Console(file=StringIO(), width=200)
    outcome = run_locally(config, output=output, console=console)
    assert steps_of(output) == ["open_mlflow_run", "ingest_data", "compare_champion", "record_outcome"]
    summary = write_summary(outcome, config=config, output=output)
    assert (summary["verdict"], summary["arms"], summary["report"]) == ("UNCHANGED", {}, "")
    assert (summary["mlflow"]["model_name"], summary["mlflow"]["model_version"]) == (config.model_name, "1")
    show_summary(summary, output=output, console=console)
    assert "nothing has changed since" in console.file.getvalue()  # type: ignore[attr-defined]
    run = connect().get_run(outcome.run_id)
    assert (run.info.status, run.data.tags["secvec.verdict"]) == ("FINISHED", "UNCHANGED")

    rows = Path(config.training_data[0])
    rows.write_bytes(rows.read_bytes().replace(b"answer 1", b"answer 7", 1))
    (output / "events.jsonl").unlink()
    # The bench's base is no model that can be trained: it is enough to see that training began.
    with pytest.raises(SecvecError, match="train_security_vector"):
        run_locally(config, output=output, console=console)
    assert steps_of(output)[1:] == [
        "ingest_data",
        "compare_champion",
        "train_security_vector",
        "record_outcome",
    ]
    newest = connect().search_runs([run.info.experiment_id], order_by=["attributes.start_time DESC"])[0]
    assert newest.info.status == "FAILED"
    assert newest.data.tags["secvec.state"] == "FAILED"
