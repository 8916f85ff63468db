import http.client
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from secvec.components.shared import tracking
from secvec.components.shared.errors import SecvecError


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("mlflow")
    uri = f"sqlite:///{folder}/mlflow.db"
    tracking.initialise(uri, f"file://{folder}/artifacts")
    return uri


@pytest.fixture
def run(store: str, monkeypatch: pytest.MonkeyPatch) -> str:
    experiment = tracking.connect(store).get_experiment_by_name("secvec").experiment_id
    run_id = tracking.connect(store).create_run(experiment).info.run_id
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    return run_id


def test_it_logs_to_the_run_the_environment_names(run: str, tmp_path: Path) -> None:
    tracking.log_params({"learning_rate": 1e-3, "task": "lora"}, prefix="guarded.")
    tracking.log_metrics({"loss": 0.5}, step=3)
    tracking.log_tags({"kind": "test"})
    (tmp_path / "report.html").write_text("<p>figures</p>")
    tracking.log_file(tmp_path / "report.html", folder="reports")
    client = tracking.connect()
    found = client.get_run(run)
    assert found.data.params == {"guarded.learning_rate": "0.001", "guarded.task": "lora"}
    assert found.data.tags["kind"] == "test"
    assert [(point.value, point.step) for point in client.get_metric_history(run, "loss")] == [(0.5, 3)]
    assert [one.path for one in client.list_artifacts(run, "reports")] == ["reports/report.html"]
    assert found.info.status == "RUNNING"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_figure_that_is_not_finite_is_never_a_metric(run: str, value: float) -> None:
    tracking.log_metrics({"loss": value, "other": 1.0, "missing": None})
    found = tracking.connect().get_run(run).data
    assert found.metrics == {"other": 1.0}
    assert found.tags["not_finite.loss"] == str(value)


def test_another_value_for_a_logged_parameter_is_an_error(run: str) -> None:
    tracking.log_params({"rank": 8})
    with pytest.raises(SecvecError, match="MLflow: "):
        tracking.log_params({"rank": 16})


def test_a_run_that_is_not_there_is_an_error(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    with pytest.raises(SecvecError, match="MLflow: "):
        tracking.log_metrics({"loss": 1.0})


def test_without_a_store_nothing_is_tracked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_RUN_ID", "x")
    assert tracking.current_run() == ""
    tracking.log_metrics({"loss": 1.0})
    with pytest.raises(SecvecError, match="no tracking store"):
        tracking.connect()


def test_steps_of_one_kfp_run_share_a_run(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    monkeypatch.setenv("KFP_RUN_ID", "run-a")
    first = tracking.current_run()
    tracking._find_or_open_run.cache_clear()  # what another step's process starts with
    assert tracking.current_run() == first
    monkeypatch.setenv("KFP_RUN_ID", "run-b")
    assert tracking.current_run() not in ("", first)
    assert tracking.connect().get_run(first).data.tags["secvec.kfp_run"] == "run-a"


UNREACHABLE = {
    "closed port": "http://127.0.0.1:9",
    "no such host": "http://mlflow.invalid:5000",
    "database": "postgresql://user:secret@127.0.0.1:9/mlflow",
    "folder is a file": "sqlite:////proc/version/x/mlflow.db",
    "bad port": "http://127.0.0.1:port",
}


@pytest.mark.parametrize("name", UNREACHABLE)
def test_an_unreachable_store_is_one_line(name: str) -> None:
    with pytest.raises(SecvecError, match="accepted: MLFLOW_TRACKING_URI") as caught:
        tracking.connect(UNREACHABLE[name])
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_no_password_is_shown() -> None:
    uri = "mysql+pymysql://user:secret@host/db"
    assert tracking.hide_password(f"cannot open {uri}") == "cannot open mysql+pymysql://host/db"
    assert tracking.hide_password("sqlite:////a/b@c.db") == "sqlite:////a/b@c.db"
    with pytest.raises(SecvecError) as caught, tracking.mlflow_errors(uri):
        raise ValueError(f"no answer from {uri}")
    assert "secret" not in str(caught.value)


def test_a_server_that_hangs_is_given_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "_PROBE_SECONDS", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(SecvecError, match="MLflow: "):
            tracking.connect(uri)
    assert "MLFLOW_HTTP_REQUEST_TIMEOUT" not in os.environ


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("server")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
    command += [
        "--backend-store-uri",
        f"sqlite:///{folder}/mlflow.db",
        "--artifacts-destination",
        str(folder),
    ]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_for(port, process)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    for _ in range(240):
        assert process.poll() is None
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return
        except OSError:
            time.sleep(0.5)
    raise AssertionError("the MLflow server did not start")


@pytest.mark.slow
def test_a_server_takes_the_same_calls(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from secvec.components.gate_promotion.promotion import (
        ensure_registered,
        register_version,
        set_aliases,
    )
    from secvec.components.shared.references import Reference

    tracking.initialise(server, "")
    experiment = tracking.connect(server).get_experiment_by_name("secvec").experiment_id
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    monkeypatch.setenv("MLFLOW_RUN_ID", tracking.connect(server).create_run(experiment).info.run_id)
    tracking.log_metrics({"loss": 0.25})
    (tmp_path / "report.html").write_text("x")
    tracking.log_file(tmp_path / "report.html")
    client = tracking.connect()
    assert client.get_run(tracking.current_run()).data.metrics == {"loss": 0.25}
    assert [one.path for one in client.list_artifacts(tracking.current_run())] == ["report.html"]
    digest = "sha256:" + "a" * 64
    local = Reference(kind="model", uri=f"file://{tmp_path}/model/{'a' * 64}", digest=digest)
    assert ensure_registered("served") == ensure_registered("served")
    with pytest.raises(SecvecError, match="accepted: a store on s3://"):
        register_version(local, name="served")
    remote = Reference(kind="model", uri=f"s3://bucket/model/{'a' * 64}", digest=digest)
    registration = register_version(remote, name="served")
    set_aliases(registration.name, registration.version, ["champion"])
    assert register_version(remote, name="served") == registration
    assert client.get_model_version_by_alias("served", "champion").source == f"{remote.uri}/model"


def test_a_store_whose_making_was_cut_off_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    create = MlflowClient.create_experiment

    def cut_off(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(MlflowClient, "create_experiment", cut_off)
    with pytest.raises(KeyboardInterrupt):
        tracking.initialise(uri, tmp_path.as_uri())
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(MlflowClient, "create_experiment", create)
    tracking.initialise(uri, tmp_path.as_uri())
    assert MlflowClient(uri).get_experiment_by_name("secvec") is not None
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]
