"""No manifest holds a secret's value; every secret that something reads has a source."""

from __future__ import annotations

import base64
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

Thing = dict[str, Any]
SECRET_NAME = re.compile(r"PASSWORD|SECRET|TOKEN(?!IZ)|ACCESS_KEY|CREDENTIAL|PRIVATE", re.IGNORECASE)
SECRET_VALUE = re.compile(
    r"-----BEGIN|\b(AKIA|ASIA)[0-9A-Z]{16}\b|://[^/\s:@]+:[^/\s@]+@|\beyJ[A-Za-z0-9_-]{20}"
    r"|\b[A-Za-z0-9+/]{43}=(?!\w)|\bgh[pousr]_\w{20}"
)
# What pods of the pipeline mount; the pods themselves are made by Kubeflow Pipelines.
STEP_SECRETS = {"dev": {"secvec-custody", "secvec-signing", "secvec-s3"}, "production": {"secvec-signing"}}


def referenced(value: Any) -> Iterator[str]:
    """Names of secrets that a rendered object reads."""
    if isinstance(value, dict):
        for key, item in value.items():
            if key in ("secretKeyRef", "secretRef"):
                yield item["name"]
            elif key == "secret" and "secretName" in item:
                yield item["secretName"]
            else:
                yield from referenced(item)
    elif isinstance(value, list):
        for item in value:
            yield from referenced(item)


def leaks(text: str) -> list[str]:
    """Lines that look as if they held a secret."""
    return [line for line in text.splitlines() if SECRET_VALUE.search(line)]


def literal_secrets(value: Any) -> Iterator[str]:
    """Environment variables that are named like a secret and carry a value."""
    if isinstance(value, dict):
        if SECRET_NAME.search(str(value.get("name", ""))) and "value" in value:
            yield str(value["name"])
        for item in value.values():
            yield from literal_secrets(item)
    elif isinstance(value, list):
        for item in value:
            yield from literal_secrets(item)


def test_no_file_holds_a_secret(manifests: Path) -> None:
    files = [path for path in manifests.rglob("*") if path.is_file()]
    assert len(files) > 15
    assert {path.name: leaks(path.read_text()) for path in files if leaks(path.read_text())} == {}
    for path in files:
        assert "secretGenerator" not in path.read_text(), path


def test_no_rendered_object_holds_a_secret(objects: list[Thing]) -> None:
    assert [thing["metadata"]["name"] for thing in objects if thing["kind"] == "Secret"] == []
    # a path to a mounted file is no secret
    assert [name for name in literal_secrets(objects) if not name.endswith("_FILE")] == []
    settings = [thing["data"] for thing in objects if thing["kind"] == "ConfigMap"]
    named = {key for data in settings for key in data if SECRET_NAME.search(key)}
    assert named == set()


@pytest.mark.parametrize(
    "line",
    [
        "uri: postgresql://user:hunter2@host/db",
        "key: AKIAABCDEFGHIJKLMNOP",
        "pem: -----BEGIN PRIVATE KEY-----",
        "custody: " + base64.b64encode(bytes(range(32))).decode(),
    ],
)
def test_the_search_finds_a_secret(line: str) -> None:
    assert leaks(line) == [line]


def test_a_literal_password_is_found() -> None:
    assert list(literal_secrets([{"env": [{"name": "PGPASSWORD", "value": "x"}]}])) == ["PGPASSWORD"]


def test_every_secret_has_a_source(objects: list[Thing], overlay: str, manifests: Path) -> None:
    wanted = set(referenced(objects)) | STEP_SECRETS[overlay]
    if overlay == "production":
        given = {
            thing["spec"]["target"]["name"]: {item["secretKey"] for item in thing["spec"]["data"]}
            for thing in objects
            if thing["kind"] == "ExternalSecret"
        }
    else:
        given = {thing["metadata"]["name"]: set(thing["data"]) for thing in create_secrets(manifests)}
    assert wanted == set(given)
    assert {"signing.pem", "signing.pem.pub", "provenance.pem"} == given["secvec-signing"]
    assert given["mlflow-database"] == {"password"}


def test_production_has_no_static_key(manifests: Path) -> None:
    for path in (manifests / "overlays" / "production").iterdir():
        assert not re.search("ACCESS_KEY|secvec-s3|secvec-custody", path.read_text()), path


def test_the_script_makes_keys_that_secvec_takes(
    manifests: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from secvec.components.shared.attestation import sign_statement, verify_statement
    from secvec.components.shared.custody import seal

    first, second = ({t["metadata"]["name"]: t for t in create_secrets(manifests)} for _ in range(2))
    for name, thing in first.items():
        assert thing["metadata"]["namespace"] == "secvec"
        for key, value in thing["data"].items():
            assert value != second[name]["data"][key]
            path = tmp_path / key
            path.write_bytes(base64.b64decode(value))
            path.chmod(0o600)
    monkeypatch.setenv("SECVEC_CUSTODY_KEY", str(tmp_path / "custody.key"))
    monkeypatch.setenv("SECVEC_SIGNING_KEY", str(tmp_path / "signing.pem"))
    assert seal({"x": b"y"}, context={"base_digest": "b", "purpose": "p"})
    statement = {"_type": "https://in-toto.io/Statement/v1", "subject": [], "predicate": {}}
    assert verify_statement(sign_statement(statement)) == statement
    monkeypatch.setenv("SECVEC_PROVENANCE_KEY", (tmp_path / "provenance.pem").read_text())
    assert verify_statement(sign_statement(statement, purpose="provenance"), purpose="provenance")


def create_secrets(manifests: Path) -> list[Thing]:
    if not shutil.which("openssl"):
        pytest.skip("openssl is not installed")
    script = manifests / "overlays" / "dev" / "create-secrets.sh"
    done = subprocess.run([script], capture_output=True, text=True, check=True)
    return list(yaml.safe_load_all(done.stdout))
