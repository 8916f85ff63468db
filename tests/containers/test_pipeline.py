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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml

USER = 12345
BUCKET = "secvec-containers"
STEPS = 10  # six, the control arm's two, the comparison with the champion, and the record of the end
S3_TOOL = Path(__file__).parents[3] / "shared" / "tools" / "s3.sh"
SECVEC = [sys.executable, "-c", "from secvec.pipelines.command import main; main()"]


@pytest.fixture(scope="module")
def s3_variables(request: pytest.FixtureRequest) -> dict[str, str]:
    """Endpoint and keys of a real S3 server where there is one, else of moto's."""
    if os.environ.get("AWS_ENDPOINT_URL"):
        return {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    if S3_TOOL.exists():
        done = subprocess.run(["bash", S3_TOOL, "start"], capture_output=True, text=True, check=True)
        pairs = done.stdout.removeprefix("export ").split()
        return dict(pair.split("=", 1) for pair in pairs)
    return {
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
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(command, env={**os.environ, **s3_variables}, stdout=log, stderr=log)
    try:
        wait_for(f"{url}/health", log=folder / "log")
        yield {**os.environ, **s3_variables, "MLFLOW_TRACKING_URI": url}
    finally:
        server.terminate()
        server.wait(30)


@pytest.fixture(scope="module")
def config(
    tmp_path_factory: pytest.TempPathFactory, s3_variables: dict[str, str], prefix: str, image: str
) -> dict[str, Any]:
    """The demo's config, with its data in S3 and its base on this machine."""
    from secvec.pipelines.guarded_fine_tuning.config import SOURCE_FIELDS
    from secvec.pipelines.guarded_fine_tuning.demo.prepare import prepare_demo

    folder = tmp_path_factory.mktemp("demo")
    values = yaml.safe_load(prepare_demo(folder, guard="mixture", task="lora", seed=0).read_text())
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
    with watching(engine, tmp_path / "docker", seen):
        contained = run(
            config | {"store": f"{config['store']}/docker"},
            output=tmp_path / "docker",
            variables=variables,
            options=["--runner", "docker", "--container-user", str(USER)],
        )
    local = run(
        config | {"store": f"{config['store']}/subprocess", "model_name": "secvec-demo-subprocess"},
        output=tmp_path / "subprocess",
        variables=variables,
        options=[],
    )
    compiled = run(
        config | {"store": f"{config['store']}/compiled", "model_name": "secvec-demo-compiled"},
        output=tmp_path / "compiled",
        variables=variables | compiled_variables,
        options=[],
    )
    assert "the pipeline comes from YamlComponent" in (tmp_path / "compiled" / "run.log").read_text()
    assert contained["verdict"] == local["verdict"] == compiled["verdict"] == "PASS"
    for name in ("base", "data", "model"):
        assert contained["digests"][name] == local["digests"][name] == compiled["digests"][name], name
    assert {path.stat().st_uid for path in (tmp_path / "docker" / "pipeline" / "tasks").rglob("*")} == {USER}

    steps = [attributes for attributes in seen.values() if "--executor_input" in attributes["Config"]["Cmd"]]
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


def run(
    values: dict[str, Any], *, output: Path, variables: dict[str, str], options: list[str]
) -> dict[str, Any]:
    output.mkdir()
    path = output / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    done = subprocess.run(
        [*SECVEC, "run", "--config", str(path), "--output", str(output), *options],
        env=variables,
        capture_output=True,
        text=True,
        check=False,
    )
    log = output / "run.log"
    assert done.returncode == 0, done.stderr + (log.read_text()[-3000:] if log.exists() else "")
    summary: dict[str, Any] = json.loads((output / "summary.json").read_text())
    return summary


class watching:
    """Remember how every container of a run was made, while it is there."""

    def __init__(self, engine: Any, output: Path, seen: dict[str, dict[str, Any]]) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, args=(engine, output, seen))

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self, engine: Any, output: Path, seen: dict[str, dict[str, Any]]) -> None:
        import docker

        while not self._stop.wait(0.5):
            # one may be gone between being listed and being looked at
            for found in engine.api.containers(all=True, filters={"label": f"secvec.output={output}"}):
                try:
                    seen[found["Id"]] = engine.api.inspect_container(found["Id"])
                except docker.errors.NotFound:
                    continue


def keys_of(steps: list[dict[str, Any]], variable: str) -> set[str]:
    """Names of the steps whose containers had a variable."""
    found = set()
    for attributes in steps:
        command = attributes["Config"]["Cmd"]
        if any(entry.startswith(f"{variable}=") for entry in attributes["Config"]["Env"]):
            found.add(command[command.index("--function_to_execute") + 1])
    return found


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
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError:
            time.sleep(0.5)
    pytest.fail(f"{url} does not answer: {log.read_text()[-2000:]}")
