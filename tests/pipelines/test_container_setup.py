"""What steps in containers see, decided without an engine; tests/containers shows it with one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from secvec.components.shared.errors import SecvecError
from secvec.pipelines.container_keys import grant_keys
from secvec.pipelines.container_setup import (
    IMAGE_USER,
    choose_network,
    choose_user,
    connect_engine,
    make_mounts,
    step_variables,
)
from secvec.pipelines.docker_runner import name_step, resolve_image
from secvec.pipelines.guarded_fine_tuning.config import SOURCE_FIELDS


def test_steps_are_never_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert choose_user("") == IMAGE_USER
    assert choose_user("12345") == "12345:12345"
    assert choose_user("12345:7") == "12345:7"
    for refused in ("0", "0:0", "root", "1000:wheel", "-1"):
        with pytest.raises(SecvecError, match="accepted: UID or UID:GID"):
            choose_user(refused)


def test_another_user_takes_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(os, "getegid", lambda: 100)
    assert choose_user("") == "1000:100"
    with pytest.raises(SecvecError, match="only root can give files to another user"):
        choose_user("12345")


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("http://127.0.0.1:5000", "host"),
        ("http://localhost:5000", "host"),
        ("http://[::1]:5000", "host"),
        ("https://mlflow.example.com", "bridge"),
        ("sqlite:////out/mlflow.db", "bridge"),
    ],
)
def test_the_hosts_network_is_shared_for_a_server_on_loopback(address: str, network: str) -> None:
    assert choose_network({"MLFLOW_TRACKING_URI": address}) == network
    assert choose_network({"AWS_ENDPOINT_URL": address}) == network


def test_only_known_variables_are_passed(tmp_path: Path) -> None:
    variables = step_variables(
        {
            "AWS_REGION": "r",
            "SECVEC_X": "x",
            "PATH": "/bin",
            "HOME": "/root",
            "MY_TOKEN": "t",
            "HF_TOKEN": "",
        },
        output=tmp_path,
    )
    assert variables == {
        "AWS_REGION": "r",
        "SECVEC_X": "x",
        "SECVEC_CACHE": str(tmp_path / "cache"),
        "HOME": str(tmp_path / "home"),
    }


def test_inputs_are_read_only_and_the_output_is_not(tmp_path: Path) -> None:
    output, data, base = tmp_path / "out", tmp_path / "rows.jsonl", tmp_path / "base"
    bundle, store, key = tmp_path / "ca.pem", tmp_path / "store", tmp_path / "custody.key"
    for folder in (output, base, store):
        folder.mkdir()
    for file in (data, bundle, key):
        file.touch()
    parameters = {
        "base_model": str(base),
        "training_data": [str(data), "s3://bucket/rows"],
        **dict.fromkeys(SOURCE_FIELDS, ""),
        "store": store.as_uri(),
    }
    mounts = make_mounts(
        parameters,
        {"AWS_CA_BUNDLE": str(bundle), "SECVEC_CUSTODY_KEY": str(key), "MLFLOW_TRACKING_URI": "http://h"},
        output=output,
    )
    hidden = mounts.pop()
    assert (hidden["Target"], hidden["Source"]) == (str(output / "keys"), str(output / "no-keys"))
    assert hidden["ReadOnly"]
    assert {Path(mount["Source"]): mount["ReadOnly"] for mount in mounts} == {
        output: False,
        store: False,
        data: True,
        base: True,
        bundle: True,
    }
    assert all(mount["Source"] == mount["Target"] for mount in mounts)


@pytest.mark.parametrize(
    ("step", "granted"),
    [
        ("ingest_data", set()),
        ("compare_champion", {"signing.pub"}),
        ("record_outcome", set()),
        ("train_security_vector", {"custody"}),
        ("fine_tune_guarded (unguarded)", {"custody"}),
        ("remove_security_vector (guarded)", set()),
        ("evaluate_harm", {"custody", "signing", "signing.pub"}),
        ("gate_promotion", {"signing", "signing.pub"}),
        ("", set()),
    ],
)
def test_each_step_gets_the_keys_it_needs(tmp_path: Path, step: str, granted: set[str]) -> None:
    for name in ("custody", "signing", "signing.pub"):
        (tmp_path / name).touch()
    names = {"SECVEC_CUSTODY_KEY": str(tmp_path / "custody"), "SECVEC_SIGNING_KEY": str(tmp_path / "signing")}
    options: dict[str, Any] = {"environment": {"AWS_REGION": "r", **names}, "mounts": []}
    given = grant_keys(options, step)
    assert {Path(mount["Source"]).name for mount in given["mounts"]} == granted
    found = {value for name, value in given["environment"].items() if name in names}
    assert found == {f"/run/secvec/{name}" for name in granted - {"signing.pub"}}
    assert {mount["Target"] for mount in given["mounts"]} == {f"/run/secvec/{name}" for name in granted}
    assert given["environment"]["AWS_REGION"] == "r"
    assert options["mounts"] == []


def test_a_kms_key_is_named_only_to_its_holders() -> None:
    options = {"environment": {"SECVEC_CUSTODY_KEY": "arn:aws:kms:r:1:key/x"}, "mounts": []}
    assert grant_keys(options, "fine_tune_guarded (guarded)") == options
    assert grant_keys(options, "ingest_data")["environment"] == {}


def test_a_step_is_named_by_function_and_arm() -> None:
    command = ["sh", "-c", "...", "--executor_input", '{"inputs": {"parameterValues": {"arm": "guarded"}}}']
    assert (
        name_step([*command, "--function_to_execute", "fine_tune_guarded"]) == "fine_tune_guarded (guarded)"
    )
    assert name_step(["--executor_input", "{", "--function_to_execute", "ingest_data"]) == "ingest_data"
    assert name_step(["true"]) == "container"


def test_an_image_that_is_a_parameter_is_resolved() -> None:
    placeholder = "{{$.inputs.parameters['pipelinechannel--image']}}"
    assert resolve_image(placeholder, {"image": "registry/name:1"}) == "registry/name:1"
    assert resolve_image("name:1", {"image": "other"}) == "name:1"


def test_no_engine_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/no.sock")
    with pytest.raises(
        SecvecError, match=r"no container engine answers .*accepted: a running docker or podman"
    ):
        connect_engine()
