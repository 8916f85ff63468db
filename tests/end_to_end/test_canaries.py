"""Twenty canary secrets in every input that may hold one; none of them comes out anywhere."""

from __future__ import annotations

import base64
import gzip
import os
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

SECVEC = [sys.executable, "-c", "from secvec.pipelines.command import main; main()"]
# Variables that hold a secret themselves.
PLAIN = [
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "KFP_EXISTING_TOKEN",
    "OPENAI_API_KEY",
    "PGPASSWORD",
    "SECVEC_ENDPOINT_KEY",
]
# Variables that hold one in the middle.
INSIDE = {
    "HTTPS_PROXY": "http://user:{}@127.0.0.1:9",
    "HTTP_PROXY": "http://user:{}@127.0.0.1:9",
    "SECVEC_WEBHOOK_URL": "https://127.0.0.1:9/hooks/{}",
    "MLFLOW_TRACKING_URI": "http://user:{}@127.0.0.1:9",
}
# Variables that name a file with one.
FILES = {
    "AWS_SHARED_CREDENTIALS_FILE": "[default]\naws_access_key_id = AKIA\naws_secret_access_key = {}\n",
    "NETRC": "machine 127.0.0.1 login user password {}\n",
    "KUBECONFIG": "users: [{{name: u, user: {{token: {}}}}}]\n",
    "SECVEC_WEBHOOK_KEY": "{}\n",
    "SECVEC_CUSTODY_KEY": "{}\n",
    "SECVEC_SIGNING_KEY": "-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n",
}
SOURCES = {
    "harmful_seeds": "https://user:{}@127.0.0.1:9/seeds.jsonl",
    "benign_anchors": "https://127.0.0.1:9/anchors.jsonl?X-Amz-Signature={}",
}


@pytest.fixture
def canaries() -> dict[str, str]:
    names = [*PLAIN, *INSIDE, *FILES]
    return {name: f"canary{secrets.token_hex(12)}" for name in names}


@pytest.fixture
def environment(canaries: dict[str, str], tmp_path: Path) -> dict[str, str]:
    home = tmp_path / "home"
    home.mkdir()
    found = {name: value for name, value in os.environ.items() if name in ("PATH", "LANG", "OMP_NUM_THREADS")}
    found |= {name: canaries[name] for name in PLAIN}
    found |= {name: form.format(canaries[name]) for name, form in INSIDE.items()}
    for name, form in FILES.items():
        path = home / name
        path.write_text(form.format(canaries[name]))
        path.chmod(0o600)
        found[name] = str(path)
    return {
        **found,
        "HOME": str(home),
        "AWS_ACCESS_KEY_ID": "AKIA",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_MAX_ATTEMPTS": "1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "SECVEC_AUDIT_LOG": str(tmp_path / "out" / "audit.jsonl"),
    }


def make_config(folder: Path, **changes: Any) -> Path:
    names = ["rows", "seeds", "anchors", "harm", "skill", "kept"]
    for name in names:
        (folder / f"{name}.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
    values: dict[str, Any] = {
        "base_model": "org/model",
        "training_data": ["rows.jsonl"],
        "harmful_seeds": "seeds.jsonl",
        "benign_anchors": "anchors.jsonl",
        "harm_prompts": "harm.jsonl",
        "skill_prompts": "skill.jsonl",
        "kept_prompts": "kept.jsonl",
        "policy": {"version": 1},
        "store": "s3://bucket/store",
        **changes,
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def spellings(secret: str) -> Iterator[bytes]:
    """How a secret may be written down: plain, in base64 at each offset, hexadecimal."""
    plain = secret.encode()
    yield plain
    yield plain.hex().encode()
    for offset in range(3):
        # The characters at the ends depend on what lies beside.
        yield base64.b64encode(b"\0" * offset + plain)[4:-4]


def search(canaries: dict[str, str], texts: dict[str, bytes]) -> list[str]:
    return [
        f"{name} in {place}"
        for name, secret in canaries.items()
        for place, content in texts.items()
        if any(form in content for form in spellings(secret))
    ]


def read_tree(folder: Path) -> dict[str, bytes]:
    found = {}
    for path in folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            found[str(path)] = gzip.decompress(content) if path.suffix == ".gz" else content
    return found


def test_there_are_twenty_canaries(canaries: dict[str, str]) -> None:
    assert len(canaries) == 20
    for secret in canaries.values():
        for prefix in (b"", b"x", b"xy", b"xyz"):
            written = base64.b64encode(prefix + secret.encode() + b"tail")
            assert any(form in written for form in spellings(secret))


COMMANDS: dict[str, Callable[[Path, Path], list[str]]] = {
    "compile": lambda config, out: ["compile", "--config", str(config), "--output", str(out / "p.yaml")],
    "doctor": lambda config, out: ["doctor", "--config", str(config), "--output", str(out)],
    "run": lambda config, out: ["run", "--config", str(config), "--output", str(out)],
    "vector": lambda config, out: ["vector", "list", "--store", "s3://bucket/store"],
    "anomalies": lambda config, out: ["audit", "anomalies"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_no_canary_comes_out_of_a_command(
    command: str, canaries: dict[str, str], environment: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    config = make_config(tmp_path)
    done = subprocess.run(
        [*SECVEC, *COMMANDS[command](config, out)], check=False, env=environment, capture_output=True
    )
    assert (done.returncode == 0) == (command == "compile"), done.stderr
    found = {"stdout": done.stdout, "stderr": done.stderr, **read_tree(out)}
    assert search(canaries, found) == []
    assert b"Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize("name", SOURCES)
def test_rule_8_a_source_with_credentials_is_refused_before_anything_is_written(
    name: str, environment: dict[str, str], tmp_path: Path
) -> None:
    canary = f"canary{secrets.token_hex(12)}"
    config = make_config(tmp_path, **{name: SOURCES[name].format(canary)})
    done = subprocess.run(
        [*SECVEC, "compile", "--config", str(config), "--output", str(tmp_path / "p.yaml")],
        check=False,
        env=environment,
        capture_output=True,
    )
    assert done.returncode == 2
    assert b"holds credentials" in done.stderr
    assert canary.encode() not in done.stdout + done.stderr
    assert not (tmp_path / "p.yaml").exists()


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_no_canary_comes_out_of_a_whole_run(
    canaries: dict[str, str], environment: dict[str, str], tmp_path: Path, s3_bucket: str
) -> None:
    """The demo with its store on S3: everything it writes, there and here, is searched."""
    import boto3

    for name in ("SECVEC_CUSTODY_KEY", "SECVEC_SIGNING_KEY", "MLFLOW_TRACKING_URI", "SECVEC_AUDIT_LOG"):
        del environment[name]  # keys and places of the run's own
    canaries = {name: value for name, value in canaries.items() if name in environment}
    environment |= {"AWS_ENDPOINT_URL": os.environ["AWS_ENDPOINT_URL"], "NO_PROXY": "127.0.0.1,localhost"}
    out = tmp_path / "out"
    subprocess.run([*SECVEC, "demo", "--output", str(out)], check=True, env=environment, capture_output=True)
    config = out / "demo" / "config.yaml"
    values = {**yaml.safe_load(config.read_text()), "store": f"{s3_bucket}/store"}
    config.write_text(yaml.safe_dump(values))
    done = subprocess.run(
        [*SECVEC, "run", "--config", str(config), "--output", str(out)],
        check=True,
        env=environment,
        capture_output=True,
    )
    found = {"stdout": done.stdout, "stderr": done.stderr, **read_tree(out)}
    client, bucket = boto3.client("s3"), s3_bucket.removeprefix("s3://")
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket):
        for one in page["Contents"]:
            found[one["Key"]] = client.get_object(Bucket=bucket, Key=one["Key"])["Body"].read()
    assert any(name.endswith("report.html") for name in found)
    own = [
        (out / "keys" / name).read_text().split("\n")[line]
        for name, line in (("custody.key", 0), ("signing.pem", 1))
    ]
    texts = {name: text for name, text in found.items() if f"{os.sep}keys{os.sep}" not in name}
    assert search(canaries | {f"own key {n}": key for n, key in enumerate(own)}, texts) == []
