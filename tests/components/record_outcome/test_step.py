from __future__ import annotations

import json
from pathlib import Path

import pytest

from secvec.components.record_outcome.step import record_outcome
from secvec.components.shared import tracking
from secvec.components.shared.artifacts import publish
from secvec.components.shared.run_records import record_verdict


@pytest.fixture(scope="module")
def mlflow(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("mlflow")
    uri = f"sqlite:///{folder}/mlflow.db"
    tracking.initialise(uri, f"file://{folder}/artifacts")
    return uri


@pytest.fixture
def store(mlflow: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow)
    for name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    return str(tmp_path / "store")


def test_a_run_that_failed_is_recorded_and_ended(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KFP_RUN_ID", "failed")
    record_outcome(state="FAILED", error="ingest-data: exit code 1", store=store, run="failed")
    run = tracking.connect().get_run(tracking.current_run())
    assert run.info.status == "FAILED"
    assert run.data.tags["secvec.state"] == "FAILED"
    assert run.data.tags["secvec.error"] == "ingest-data: exit code 1"
    assert run.data.tags["secvec.verdict"] == "none"


def test_a_run_that_was_judged_tells_its_verdict(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KFP_RUN_ID", "judged")
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "verdict.json").write_text(json.dumps({"outcome": "FAIL"}))
    verdict = publish(tmp_path / "v", kind="verdict", store=store)
    record_verdict(verdict, store=store, run="judged")
    record_outcome(state="SUCCEEDED", error="", store=store, run="judged")
    run = tracking.connect().get_run(tracking.current_run())
    assert (run.info.status, run.data.tags["secvec.verdict"]) == ("FINISHED", "FAIL")


def test_a_run_that_someone_else_opened_is_left_open(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """KFP's plugin injects the run's id and ends the run itself."""
    client = tracking.connect()
    experiment = client.create_experiment("of-the-plugin")
    given = client.create_run(experiment).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", given)
    monkeypatch.setenv("KFP_RUN_ID", "other")
    record_outcome(state="SUCCEEDED", error="", store="s3://", run="given")
    run = client.get_run(given)
    assert (run.info.status, run.data.tags["secvec.state"]) == ("RUNNING", "SUCCEEDED")
    assert run.data.tags["secvec.verdict"] == "unknown"  # a store that cannot be read hides no outcome


def test_an_experiment_that_is_given_by_id_is_the_one(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    client = tracking.connect()
    experiment = client.create_experiment("by-id")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", experiment)
    monkeypatch.setenv("KFP_RUN_ID", "by-id")
    record_outcome(state="SUCCEEDED", error="", store=store, run="by-id")
    assert client.get_run(tracking.current_run()).info.experiment_id == experiment
