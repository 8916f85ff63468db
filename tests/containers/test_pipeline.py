"""The whole demo pipeline, every step in its own container, against MLflow and S3 servers on loopback."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml

USER = 12345
BUCKET = "secvec-containers"
STEPS = 10  # six, the control arm's two, the comparison with the champion, and the record of the end
S3_TOOL = Path(__file__).parents[3] / "shared" / "tools" / "s3.sh"
# Rows enough for the same verdict as the demo's, in half of its time.
SIZES = {"harmful": 200, "skill": 500, "benign": 400, "questions": 100}
SECVEC = [sys.executable, "-c", "from secvec.pipelines.command import main; main()"]


@pytest.fixture(scope="module")
def s3_variables(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, str]]:
    """Endpoint and keys of a real S3 server where there is one, else of moto's."""
    tool = Path(os.environ.get("SECVEC_S3_SERVER") or S3_TOOL)
    if os.environ.get("AWS_ENDPOINT_URL"):
        yield {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    elif tool.is_file():
        state = {**os.environ, "S3_STATE": str(tmp_path_factory.mktemp("s3"))}
        started = subprocess.run(
            ["bash", tool, "start"], env=state, capture_output=True, text=True, check=True
        )
        yield dict(pair.split("=", 1) for pair in started.stdout.removeprefix("export ").split())
        subprocess.run(["bash", tool, "wipe"], env=state, check=True)
    else:
        yield {
            "AWS_ENDPOINT_URL": request.getfixturevalue("moto_url"),
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }


@pytest.fixture(scope="module")
def prefix(s3_variables: dict[str, str]) -> str:
    """A place in S3 that no earlier run has used."""
    s3 = connect(s3_variables)
    if BUCKET not in [bucket["Name"] for bucket in s3.list_buckets()["Buckets"]]:
        s3.create_bucket(Bucket=BUCKET)
    return f"{int(time.time())}-{os.getpid()}"


@pytest.fixture(scope="module")
def variables(
    tmp_path_factory: pytest.TempPathFactory, s3_variables: dict[str, str], prefix: str
) -> Iterator[dict[str, str]]:
    """An environment with S3's variables and a running MLflow server's address."""
    folder = tmp_path_factory.mktemp("mlflow")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)),
        *("--workers", "1", "--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"),
        *("--artifacts-destination", f"s3://{BUCKET}/{prefix}/mlflow"),
    ]
    environment = {**os.environ, **s3_variables, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        # It says that it is well before it has opened its database, which is when runs can start.
        wait_for(f"{url}/api/2.0/mlflow/experiments/get?experiment_id=0", log=folder / "log")
        # One thread a run: they go side by side, and sums of the same order give the same bits.
        yield {**os.environ, **s3_variables, "MLFLOW_TRACKING_URI": url, "OMP_NUM_THREADS": "1"}
    finally:
        server.terminate()
        server.wait(30)


@pytest.fixture(scope="module")
def config(
    tmp_path_factory: pytest.TempPathFactory, s3_variables: dict[str, str], prefix: str, image: str
) -> dict[str, Any]:
    """The demo's config on less data, which lies in S3, with its base on this machine."""
    from secvec.pipelines.guarded_fine_tuning.config import SOURCE_FIELDS
    from secvec.pipelines.guarded_fine_tuning.demo.data import DataSizes, write_data
    from secvec.pipelines.guarded_fine_tuning.demo.prepare import prepare_demo

    folder = tmp_path_factory.mktemp("demo")
    values = yaml.safe_load(prepare_demo(folder, guard="mixture", task="lora", seed=0).read_text())
    write_data(folder, seed=0, sizes=DataSizes(**SIZES))
    values["policy"]["min_harm_prompts"] = SIZES["questions"]
    # A base of one's own, readable for the steps' user: the cached one is its owner's alone.
    base = Path(shutil.copytree(values["base_model"], folder / "base"))
    for path in (base, *base.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    values["base_model"] = str(base)
    s3 = connect(s3_variables)
    for file in folder.glob("*.jsonl"):
        s3.upload_file(str(file), BUCKET, f"{prefix}/data/{file.name}")
    at = f"s3://{BUCKET}/{prefix}/data"
    values["training_data"] = [f"{at}/{name}" for name in values["training_data"]]
    values |= {name: f"{at}/{values[name]}" for name in SOURCE_FIELDS}
    return values | {"store": f"s3://{BUCKET}/{prefix}", "image": image}


@pytest.mark.timeout(3600)
def test_the_demo_is_the_same_in_containers_on_this_machine_and_from_the_compiled_file(
    engine: Any,
    config: dict[str, Any],
    variables: dict[str, str],
    compiled_variables: dict[str, str],
    tmp_path: Path,
) -> None:
    seen: dict[str, dict[str, Any]] = {}

    def run_as(name: str, more: dict[str, str], *options: str) -> dict[str, Any]:
        values = config | {"store": f"{config['store']}/{name}", "model_name": f"secvec-demo-{name}"}
        return run(values, output=tmp_path / name, variables=variables | more, options=list(options))

    with watching(engine, tmp_path / "docker", remember(seen)), ThreadPoolExecutor() as side_by_side:
        runs = [
            side_by_side.submit(run_as, "docker", {}, "--runner", "docker", "--container-user", str(USER)),
            side_by_side.submit(run_as, "subprocess", {}),
            side_by_side.submit(run_as, "compiled", compiled_variables),
        ]
    contained, local, compiled = (one.result() for one in runs)
    assert "the pipeline comes from YamlComponent" in (tmp_path / "compiled" / "run.log").read_text()
    assert contained["verdict"] == local["verdict"] == compiled["verdict"] == "PASS"
    for name in ("base", "data", "model"):
        assert contained["digests"][name] == local["digests"][name] == compiled["digests"][name], name
    assert {path.stat().st_uid for path in (tmp_path / "docker" / "pipeline" / "tasks").rglob("*")} == {USER}

    steps = [attributes for attributes in seen.values() if name_of(attributes)]
    assert len(steps) == STEPS
    for attributes in steps:
        assert attributes["Config"]["User"] == f"{USER}:{USER}"
        assert attributes["HostConfig"]["ReadonlyRootfs"] is True
        assert "AWS_SECRET_ACCESS_KEY=" in " ".join(attributes["Config"]["Env"])
    assert keys_of(steps, "SECVEC_CUSTODY_KEY") == {
        "train_security_vector",
        "fine_tune_guarded",
        "evaluate_harm",
    }
    assert keys_of(steps, "SECVEC_SIGNING_KEY") == {"evaluate_harm", "gate_promotion"}
    assert [c for c in engine.containers.list(all=True) if c.id in seen] == []


@pytest.mark.timeout(600)
def test_a_killed_container_fails_the_pipeline_and_is_named(
    engine: Any, config: dict[str, Any], variables: dict[str, str], tmp_path: Path
) -> None:
    def kill(attributes: dict[str, Any]) -> None:
        if name_of(attributes) == "train_security_vector" and attributes["State"]["Running"]:
            engine.api.kill(attributes["Id"], signal="SIGKILL")

    values = config | {"store": f"{config['store']}/killed", "model_name": "secvec-demo-killed"}
    with watching(engine, tmp_path / "killed", kill):
        done = start(values, output=tmp_path / "killed", variables=variables, options=["--runner", "docker"])
    assert done.returncode == 1, done.stderr
    line = next(line for line in done.stderr.splitlines() if line.startswith("secvec: error"))
    assert line.startswith("secvec: error: train_security_vector: its container was killed (SIGKILL)"), line
    assert not (tmp_path / "killed" / "summary.json").exists()


def test_an_image_that_is_not_there_is_said_before_any_step(
    config: dict[str, Any], variables: dict[str, str], tmp_path: Path
) -> None:
    values = config | {"image": "localhost/secvec-absent:1"}
    done = start(values, output=tmp_path / "absent", variables=variables, options=["--runner", "docker"])
    assert done.returncode == 1
    assert "localhost/secvec-absent:1: image is not on this machine" in done.stderr
    assert not list((tmp_path / "absent" / "pipeline" / "tasks").iterdir())


def start(
    values: dict[str, Any], *, output: Path, variables: dict[str, str], options: list[str]
) -> subprocess.CompletedProcess[str]:
    output.mkdir()
    path = output / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    return subprocess.run(
        [*SECVEC, "run", "--config", str(path), "--output", str(output), *options],
        env=variables,
        capture_output=True,
        text=True,
        check=False,
    )


def run(
    values: dict[str, Any], *, output: Path, variables: dict[str, str], options: list[str]
) -> dict[str, Any]:
    done = start(values, output=output, variables=variables, options=options)
    log = output / "run.log"
    assert done.returncode == 0, done.stderr + (log.read_text()[-3000:] if log.exists() else "")
    summary: dict[str, Any] = json.loads((output / "summary.json").read_text())
    return summary


def remember(seen: dict[str, dict[str, Any]]) -> Callable[[dict[str, Any]], None]:
    return lambda attributes: seen.update({attributes["Id"]: attributes})


class watching:
    """Look at every container of a run, again and again while it is there."""

    def __init__(self, engine: Any, output: Path, look: Callable[[dict[str, Any]], None]) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, args=(engine, output, look))

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self, engine: Any, output: Path, look: Callable[[dict[str, Any]], None]) -> None:
        import docker

        while not self._stop.wait(0.5):
            # one may be gone between being listed and being looked at
            for found in engine.api.containers(all=True, filters={"label": f"secvec.output={output}"}):
                try:
                    look(engine.api.inspect_container(found["Id"]))
                except docker.errors.APIError:
                    continue


def keys_of(steps: list[dict[str, Any]], variable: str) -> set[str]:
    """Names of the steps whose containers had a variable."""
    return {
        name_of(attributes)
        for attributes in steps
        if any(entry.startswith(f"{variable}=") for entry in attributes["Config"]["Env"])
    }


def name_of(attributes: dict[str, Any]) -> str:
    """Name of the step that a container runs; nothing for one that only looks at the image."""
    command = attributes["Config"]["Cmd"]
    found = "--function_to_execute" in command
    return str(command[command.index("--function_to_execute") + 1]) if found else ""


def connect(variables: dict[str, str]) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=variables["AWS_ENDPOINT_URL"],
        aws_access_key_id=variables["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=variables["AWS_SECRET_ACCESS_KEY"],
        region_name=variables.get("AWS_DEFAULT_REGION", "us-east-1"),
    )


def wait_for(url: str, *, log: Path) -> None:
    for _ in range(240):
        try:
            with urllib.request.urlopen(url, timeout=10):
                return
        except OSError:
            time.sleep(0.5)
    pytest.fail(f"{url} does not answer: {log.read_text()[-2000:]}")
