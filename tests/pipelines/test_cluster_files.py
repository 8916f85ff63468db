"""A cluster's file: what differs from one cluster to another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from submitting import Command, the_line


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"accelerator": {"count": 0}}, "accelerator.count = 0"),
        ({"accelerator": {"count": -1}}, "accelerator.count = -1"),
        ({"accelerator": {"count": True}}, "accelerator.count = True"),
        ({"gpus": 1}, "unknown key 'gpus'"),
        ({"namespace": "Team A"}, "namespace = 'Team A'"),
        ({"custody_secret": ""}, "custody_secret = ''"),
        ({"training_memory": "a lot"}, "training_memory = 'a lot'"),
        ({"tolerations": [{"effect": "Never"}]}, "tolerations.0.effect = 'Never'"),
        ({"image": "registry.example.com/Bad Name"}, "image = "),
        ([], "is no mapping of keys to values"),
    ],
)
def test_a_clusters_file_is_checked_before_any_request(
    *, secvec: Command, kfp_api: Any, remote_config: Path, tmp_path: Path, values: Any, said: str
) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(yaml.safe_dump(values))
    done = secvec("submit", "--host", kfp_api.url, "--config", str(remote_config), "--cluster", str(path))
    line = the_line(done, status=2)
    assert said in line
    assert str(path) in line
    assert "accepted: " in line
    assert kfp_api.calls == []


def test_a_clusters_file_becomes_parameters(
    secvec: Command, kfp_api: Any, remote_config: Path, tmp_path: Path
) -> None:
    """One pipeline, two clusters: what differs is in the run's parameters, and the version is the same."""
    (tmp_path / "gpu.yaml").write_text(
        "image: registry.example.com/secvec-cpu:1\ntraining_image: registry.example.com/secvec-gpu@sha256:"
        + "a" * 64
        + "\naccelerator: {type: nvidia.com/gpu, count: 4}\ncustody_secret: custody-of-team-a\n"
        "tolerations: [{key: nvidia.com/gpu, operator: Exists, effect: NoSchedule}]\n"
        "node_selector: {zone: a}\nservice_account: trainer\npipeline_root: s3://bucket/kfp\n"
    )
    (tmp_path / "cpu.yaml").write_text("image: localhost:5000/secvec-cpu:1\n")
    for name in ("gpu", "cpu"):
        options = ("--cluster", str(tmp_path / f"{name}.yaml"), "--no-wait")
        assert secvec("submit", "--host", kfp_api.url, "--config", str(remote_config), *options).status == 0
    gpu, cpu = kfp_api.items["runs"]
    assert gpu["pipeline_version_reference"] == cpu["pipeline_version_reference"]
    told = gpu["runtime_config"]["parameters"]
    assert told["accelerator_count"] == "4"  # a string: KFP's driver reads a number here as nothing
    assert told["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert told["custody_secret"] == "custody-of-team-a"
    assert (gpu["service_account"], gpu["runtime_config"]["pipeline_root"]) == ("trainer", "s3://bucket/kfp")
    assert cpu["runtime_config"]["parameters"].keys() & {"accelerator_count", "tolerations"} == set()
    told = cpu["runtime_config"]["parameters"]
    assert told["image"] == told["training_image"] == "localhost:5000/secvec-cpu:1"


def test_a_claim_is_mounted_where_one_is_named(
    secvec: Command, kfp_api: Any, remote_config: Path, tmp_path: Path
) -> None:
    """With a claim, whatever its name, it is one version; without one, another."""
    for name in ("a", "b", ""):
        path = tmp_path / f"cluster-{name}.yaml"
        path.write_text(f"workspace_claim: {name}\n" if name else "{}\n")
        options = ("--cluster", str(path), "--no-wait")
        assert secvec("submit", "--host", kfp_api.url, "--config", str(remote_config), *options).status == 0
    first, second, without = kfp_api.items["runs"]
    assert first["pipeline_version_reference"] == second["pipeline_version_reference"]
    assert first["pipeline_version_reference"] != without["pipeline_version_reference"]
    assert second["runtime_config"]["parameters"]["workspace_claim"] == "b"
    assert "workspace_claim" not in without["runtime_config"]["parameters"]


def test_a_setting_that_the_pipeline_does_not_take_is_refused(
    *, secvec: Command, kfp_api: Any, remote_config: Path, tmp_path: Path, compiled: Any, monkeypatch: Any
) -> None:
    without = drop(compiled, "environment")
    monkeypatch.setattr("secvec.pipelines.pipeline_versions.compile_pipeline", lambda **_: without)
    (tmp_path / "cluster.yaml").write_text("environment: settings\n")
    options = ("--cluster", str(tmp_path / "cluster.yaml"))
    line = the_line(
        secvec("submit", "--host", kfp_api.url, "--config", str(remote_config), *options), status=2
    )
    assert "takes no environment" in line
    assert kfp_api.calls == []


def drop(compiled: Any, name: str) -> Any:
    """The pipeline with one parameter less."""
    from secvec.pipelines.pipeline_versions import CompiledPipeline

    spec = yaml.safe_load(yaml.safe_dump(dict(compiled.spec)))
    spec["root"]["inputDefinitions"]["parameters"].pop(name, None)
    return CompiledPipeline(content=yaml.safe_dump(spec).encode(), spec=spec)
