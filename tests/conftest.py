"""Fixtures for every test: an S3 server on loopback that speaks HTTP."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def moto_url() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3_server(moto_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """Point the default AWS chain at a moto server (which checks no signatures) and give its URL."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", moto_url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("SECVEC_CACHE", str(tmp_path / "cache"))
    return moto_url


@pytest.fixture(scope="session")
def compiled_variables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Variables under which `secvec run` takes the pipeline from the YAML file that `secvec compile` wrote.

    Everything else of the run stays as it is: folders, keys, MLflow, runner and summary.
    """
    folder = tmp_path_factory.mktemp("compiled")
    file = folder / "pipeline.yaml"
    command = "from secvec.pipelines.command import main; main()"
    subprocess.run([sys.executable, "-c", command, "compile", "--output", str(file)], check=True)
    (folder / "sitecustomize.py").write_text(
        "import sys\n"
        "if 'secvec.pipelines.worker' in sys.orig_argv:\n"
        "    from kfp import components\n"
        "    from secvec.pipelines.guarded_fine_tuning import pipeline\n"
        f"    pipeline.guarded_fine_tuning = components.load_component_from_file({str(file)!r})\n"
        "    print('the pipeline comes from', pipeline.guarded_fine_tuning.__class__.__name__)\n"
    )
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH", "")]))}


@pytest.fixture
def s3_bucket(s3_server: str) -> str:
    """Make a fresh bucket and give its URI."""
    import boto3

    name = f"test-{secrets.token_hex(6)}"
    boto3.client("s3").create_bucket(Bucket=name)
    return f"s3://{name}"
