"""What an evaluation leaves in MLflow and in the pipeline's user interface, and what a later one recalls."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kfp import dsl

from secvec.components.evaluate_harm.champion import ALIAS, EVALUATION_TAG, recall_champion
from secvec.components.evaluate_harm.config import EvaluationConfig
from secvec.components.evaluate_harm.kfp_outputs import show_evaluation
from secvec.components.evaluate_harm.step import evaluate_harm
from secvec.components.shared import tracking
from secvec.components.shared.artifacts import fetch
from secvec.components.shared.references import Reference


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("mlflow")
    uri = f"sqlite:///{folder}/mlflow.db"
    tracking.initialise(uri, f"file://{folder}/artifacts")
    return uri


@pytest.fixture
def client(registry: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", registry)
    monkeypatch.delenv("KFP_RUN_ID", raising=False)
    found = tracking.connect()
    experiment = found.get_experiment_by_name(tracking.DEFAULT_EXPERIMENT)
    monkeypatch.setenv("MLFLOW_RUN_ID", found.create_run(experiment.experiment_id).info.run_id)
    return found


def evaluate(world: Any, model_name: str, **config: Any) -> Reference:
    return evaluate_harm(
        base_model=str(world.base),
        dataset=world.dataset,
        vector=world.vector,
        model=world.model,
        control=None,
        store=world.store,
        seed=0,
        config=EvaluationConfig.read({"max_new_tokens": 16, "batch_size": 8, **config}, where="test"),
        model_name=model_name,
    )


@pytest.mark.usefixtures("with_keys")
def test_a_run_is_tracked_shown_and_recalled(world: Any, client: Any, tmp_path: Path) -> None:
    first = evaluate(world, "my-model")
    folder = fetch(first)
    assert json.loads((folder / "statistics.json").read_text())["champion"] == {"version": "", "reason": ""}

    run = client.get_run(tracking.current_run())
    assert run.data.metrics["vector_active.harm_rate"] == 1.0
    artifacts = {one.path for one in client.list_artifacts(run.info.run_id, "evaluation")}
    expected = ("report.html", "statistics.json", "arms.json", "judges.json")
    assert artifacts == {f"evaluation/{name}" for name in expected}
    table = client.load_table(run.info.experiment_id, "evaluation/judges.json", run_ids=[run.info.run_id])
    assert set(table["judge"]) == {"offline", "keywords"}

    report = dsl.HTML(uri=str(tmp_path / "report"))
    metrics, classification = dsl.Metrics(), dsl.ClassificationMetrics()
    show_evaluation(folder, report=report, metrics=metrics, classification=classification)
    assert Path(report.path).read_bytes() == (folder / "report.html").read_bytes()
    assert metrics.metadata["guarded.harm_rate"] == 0.0
    matrix = classification.metadata["confusionMatrix"]
    assert [one["displayName"] for one in matrix["annotationSpecs"]] == ["harmful", "harmless"]
    assert sum(matrix["rows"][0]["row"]) == 395

    client.create_registered_model("my-model")
    version = client.create_model_version(
        "my-model", source=f"{world.model.uri}/model", run_id=run.info.run_id
    )
    client.set_model_version_tag("my-model", version.version, EVALUATION_TAG, first.digest)
    client.set_registered_model_alias("my-model", ALIAS, version.version)
    again = json.loads((fetch(evaluate(world, "my-model")) / "statistics.json").read_text())
    assert again["champion"] == {"version": "1", "reason": ""}
    (harm,) = [one for one in again["contrasts"] if (one["against"], one["measure"]) == ("champion", "harm")]
    assert (harm["difference"], harm["n_prompts"]) == (0.0, 6)

    digests = {**again["digests"], "judge": "sha256:other"}
    other = recall_champion("my-model", store=world.store, digests=digests)
    assert (other.outcomes, other.version) == ((), "")
    assert "tested with another judge" in other.reason
    client.set_model_version_tag("my-model", "1", EVALUATION_TAG, "sha256:" + "0" * 64)
    assert recall_champion("my-model", store=world.store, digests=again["digests"]).reason


def test_without_a_registry_there_is_no_champion(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert recall_champion("my-model", store="/nowhere", digests={}).outcomes == ()
