"""A Kubeflow Pipelines API on loopback, and a run config that a cluster can take."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from secvec.components.shared.artifacts import building, publish
from secvec.components.shared.run_records import record_verdict

# Test folders are no packages: helpers beside the tests are found by their plain names.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def swagger() -> Any:
    """The published description of Kubeflow's API."""
    from swagger import Swagger

    beside = Path(__file__).resolve().parents[2].parent / "shared" / "data"
    folder = Path(os.environ.get("SECVEC_SHARED_DATA") or beside)
    path = folder / "kfp" / "kfp_api_v2beta1.swagger.json"
    if not path.is_file():
        pytest.skip(f"no API description: {path} is absent (SECVEC_SHARED_DATA names its folder)")
    return Swagger(path)


@pytest.fixture
def kfp_api(swagger: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """The API, with no token and a single user; at the end, every request must have been as described."""
    from kfp_api_server import KfpApi, serving

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    for name in ("KFP_EXISTING_TOKEN", "KF_PIPELINES_ENDPOINT", "KF_PIPELINES_SA_TOKEN_PATH", "KUBECONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with serving(KfpApi(swagger=swagger)) as api:
        yield api
    assert api.violations == []


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Let pauses pass at once, and note how long each would have been."""
    import time

    noted: list[float] = []
    clock = SimpleNamespace(sleep=noted.append, monotonic=lambda: sum(noted), time=time.time)
    monkeypatch.setattr("secvec.pipelines.cluster.time", clock)
    monkeypatch.setattr("secvec.pipelines.run_following.time", clock)
    return noted


@pytest.fixture(scope="session")
def compiled() -> Any:
    """The pipeline, compiled once."""
    from secvec.pipelines.pipeline_versions import compile_pipeline

    return compile_pipeline()


@pytest.fixture
def remote_config(tmp_path: Path, s3_bucket: str) -> Path:
    """A run config with nothing on this machine in it; its store can be read."""
    sources = ("harmful_seeds", "benign_anchors", "harm_prompts", "skill_prompts", "kept_prompts")
    values = {name: f"s3://bucket/{name}.jsonl" for name in sources} | {
        "base_model": "s3://bucket/base",
        "training_data": ["s3://bucket/rows.jsonl"],
        "store": f"{s3_bucket}/store",
        "policy": {"version": 1},
        "model_name": "assistant",
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture
def secvec(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], compiled: Any
) -> Iterator[Callable[..., Any]]:
    """Run the command in this process: ``secvec("submit", ...)`` gives status, out and err."""
    from secvec.pipelines import pipeline_versions
    from secvec.pipelines.command import main

    compile_anew = pipeline_versions.compile_pipeline

    def compile_once(*, workspace: bool, sharded: bool) -> Any:
        return compile_anew(workspace=workspace, sharded=sharded) if workspace or sharded else compiled

    monkeypatch.setattr(pipeline_versions, "compile_pipeline", compile_once)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def run(*arguments: str) -> SimpleNamespace:
        monkeypatch.setattr(sys, "argv", ["secvec", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return SimpleNamespace(status=ended.value.code or 0, out=said.out, err=said.err)

    yield run
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def judged(kfp_api: Any) -> Callable[..., None]:
    """Let each run's gate leave a verdict in the store, as the real one does."""

    def arrange(outcome: str, *, model_name: str = "assistant") -> None:
        reason = {
            "check": "harm_rate",
            "outcome": outcome,
            "figure": 0.5,
            "bound": 0.02,
            "source": "statistics",
        }
        verdict = {
            "outcome": outcome,
            "model_name": model_name,
            "model_version": "7",
            "aliases": ["champion"],
        }

        def judge(run: dict[str, Any]) -> None:
            store = run["runtime_config"]["parameters"]["store"]
            with building("verdict", store) as folder:
                (folder / "verdict.json").write_text(json.dumps(verdict | {"reasons": [reason]}))
                published = publish(folder, kind="verdict", store=store)
            record_verdict(published, store=store, run=run["run_id"])

        kfp_api.on_run = judge

    return arrange
