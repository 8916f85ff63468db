"""One compiled file for every cluster: what KFP's driver would make of it with these or those parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf import json_format
from kfp.kubernetes import kubernetes_executor_config_pb2
from kfp.pipeline_spec import pipeline_spec_pb2

from secvec.pipelines.cluster_settings import ClusterSettings
from secvec.pipelines.compilation import compile_to
from secvec.pipelines.container_keys import KEY_HOLDERS

GPU = ClusterSettings.read(
    {
        "image": "registry.example.com/secvec-cpu:2",
        "training_image": "registry.example.com/secvec-gpu:2",
        "accelerator": {"type": "amd.com/gpu", "count": 4},
        "training_memory": "128Gi",
        "training_cpu": "16",
        "tolerations": [{"key": "amd.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
        "node_selector": {"zone": "a"},
        "custody_secret": "custody-of-team-a",
        "signing_secret": "signing-of-team-a",
    },
    where="test",
)
COMPUTING = {"train-security-vector", "fine-tune-guarded", "evaluate-harm"}
Step = dict[str, Any]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Step, Step]:
    """Pipeline and platform spec, both parsed into the messages that KFP's backend parses them into."""
    return read_compiled(tmp_path_factory.mktemp("compiled") / "pipeline.yaml")


def read_compiled(path: Path, *, workspace: bool = False) -> tuple[Step, Step]:
    compile_to(path, workspace=workspace)
    spec, platform = yaml.safe_load_all(path.read_text())
    json_format.ParseDict(spec, pipeline_spec_pb2.PipelineSpec())
    json_format.ParseDict(platform, pipeline_spec_pb2.PlatformSpec())
    for one in platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"].values():
        json_format.ParseDict(one, kubernetes_executor_config_pb2.KubernetesExecutorConfig())
    return spec, platform["platforms"]["kubernetes"]


def resolve(node: Any, values: dict[str, Any]) -> Any:
    """Put parameters where the compiled file refers to them, as KFP's driver does."""
    if isinstance(node, dict):
        if set(node) == {"componentInputParameter"}:
            return values[node["componentInputParameter"].removeprefix("pipelinechannel--")]
        return {key: resolve(value, values) for key, value in node.items()}
    if isinstance(node, list):
        return [resolve(one, values) for one in node]
    if isinstance(node, str) and node.startswith("{{$.inputs.parameters['pipelinechannel--"):
        return values[node.split("--")[1].split("'")[0]]
    return node


def place(compiled: tuple[Step, Step], settings: ClusterSettings | None = None) -> dict[str, Step]:
    """Container and Kubernetes settings of every step, by name, with a cluster's parameters in them."""
    spec, platform = compiled
    declared = spec["root"]["inputDefinitions"]["parameters"]
    values = {name: one["defaultValue"] for name, one in declared.items() if "defaultValue" in one}
    told = settings.to_parameters() if settings else {}
    assert told.keys() <= declared.keys()
    values |= told
    executors = platform["deploymentSpec"]["executors"]
    return {
        label.removeprefix("exec-"): resolve(
            {"container": {key: one["container"].get(key) for key in ("image", "resources")}}
            | executors[label],
            values,
        )
        for label, one in spec["deploymentSpec"]["executors"].items()
    }


def kind(name: str) -> str:
    return name.rstrip("-23456789")


def mounted(step: Step) -> set[str]:
    return {one["secretNameParameter"] for one in step.get("secretAsVolume", ())}


def test_one_file_two_clusters(compiled: tuple[Step, Step]) -> None:
    plain, gpu = place(compiled), place(compiled, GPU)
    for name, step in gpu.items():
        training = kind(name) in COMPUTING | {"remove-security-vector"}
        image = "registry.example.com/secvec-" + ("gpu:2" if training else "cpu:2")
        assert step["container"]["image"] == image, name
        resources = step["container"]["resources"] or {}
        accelerator = {"resourceType": "amd.com/gpu", "resourceCount": "4"}
        assert resources.get("accelerator") == (accelerator if kind(name) in COMPUTING else None), name
        if training:
            assert resources["resourceMemoryLimit"] == resources["resourceMemoryRequest"] == "128Gi"
            assert resources["resourceCpuRequest"] == "16"
            assert step["tolerations"] == [{"tolerationJson": GPU.to_parameters()["tolerations"]}]
            assert step["nodeSelector"] == {"nodeSelectorJson": {"zone": "a"}}
        else:
            assert not {"tolerations", "nodeSelector"} & set(step), name
    trained = plain["fine-tune-guarded"]
    # A count of none, and selectors that select nothing, are what a cluster without devices gets.
    assert trained["container"]["resources"]["accelerator"]["resourceCount"] == "0"
    assert (trained["nodeSelector"], trained["tolerations"]) == (
        {"nodeSelectorJson": {}},
        [{"tolerationJson": []}],
    )
    assert mounted(gpu["evaluate-harm"]) == {"custody-of-team-a", "signing-of-team-a"}
    assert mounted(plain["evaluate-harm"]) == {"secvec-custody", "secvec-signing"}


def test_no_parameter_of_the_driver_is_empty_or_a_number(compiled: tuple[Step, Step]) -> None:
    """The driver refuses to resolve an empty string, and reads a number as nothing."""
    declared = compiled[0]["root"]["inputDefinitions"]["parameters"]
    for name in ClusterSettings.model_fields.keys() & declared.keys() | {"accelerator_count"}:
        default = declared[name]["defaultValue"]
        assert default in ({}, []) or (isinstance(default, str) and default), name


@pytest.mark.parametrize(
    ("secret", "variable"),
    [("secvec-custody", "SECVEC_CUSTODY_KEY"), ("secvec-signing", "SECVEC_SIGNING_KEY")],
)
def test_only_steps_that_need_a_key_get_it(compiled: tuple[Step, Step], secret: str, variable: str) -> None:
    """The same steps as in containers on one machine, and each finds it where the manifests say."""
    steps = place(compiled)
    holders = {kind(name).replace("-", "_") for name, step in steps.items() if secret in mounted(step)}
    assert holders == set(KEY_HOLDERS[variable])
    told = {
        kind(name).replace("-", "_")
        for name, step in steps.items()
        for one in step["configMapAsEnv"]
        if variable in {key["envVar"] for key in one["keyToEnv"]}
    }
    assert told == holders
    environment = {"secvec-custody": "overlays/dev/environment.yaml", "secvec-signing": "base/configmap.yaml"}
    manifest = Path(__file__).parents[3] / "manifests" / environment[secret]
    data = next(one for one in yaml.safe_load_all(manifest.read_text()) if one["kind"] == "ConfigMap")["data"]
    paths = {
        mount["mountPath"]
        for step in steps.values()
        for mount in step.get("secretAsVolume", ())
        if mount["secretNameParameter"] == secret
    }
    assert {str(Path(data[variable]).parent)} == paths


def test_a_step_that_makes_something_gets_the_key_of_provenance_alone(compiled: tuple[Step, Step]) -> None:
    steps = place(compiled)
    wanted = {"secretKey": "provenance.pem", "envVar": "SECVEC_PROVENANCE_KEY"}
    holders = {
        kind(name).replace("-", "_")
        for name, step in steps.items()
        for one in step["secretAsEnv"]
        if one["keyToEnv"] == [wanted]
    }
    assert holders == set(KEY_HOLDERS["SECVEC_PROVENANCE_KEY"])


def test_only_the_evaluation_gets_the_judges_key(compiled: tuple[Step, Step]) -> None:
    steps = place(compiled)
    holders = {
        kind(name).replace("-", "_")
        for name, step in steps.items()
        for one in step["secretAsEnv"]
        for key in one["keyToEnv"]
        if key["secretKey"] == "SECVEC_JUDGE_KEY"
    }
    assert holders == {"evaluate_harm"} == set(KEY_HOLDERS["SECVEC_JUDGE_KEY"])


def test_a_step_that_verifies_gets_the_public_half_alone(compiled: tuple[Step, Step]) -> None:
    step = place(compiled)["compare-champion"]
    assert mounted(step) == set()
    keys = [one for one in step["secretAsEnv"] if one["secretNameParameter"] == "secvec-signing"]
    assert [one["keyToEnv"] for one in keys] == [
        [{"secretKey": "signing.pem.pub", "envVar": "SECVEC_TRUSTED_KEYS"}]
    ]


def test_every_setting_of_the_manifests_reaches_the_steps(compiled: tuple[Step, Step]) -> None:
    manifests = Path(__file__).parents[3] / "manifests"
    given = {
        name
        for path in (
            "base/configmap.yaml",
            "overlays/dev/environment.yaml",
            "overlays/production/environment.yaml",
        )
        for one in yaml.safe_load_all((manifests / path).read_text())
        if one["kind"] == "ConfigMap"
        for name in one["data"]
    }
    read = {
        key["configMapKey"]
        for step in place(compiled).values()
        for one in step["configMapAsEnv"]
        for key in one["keyToEnv"]
    }
    assert given <= read


def test_no_pod_runs_as_root(compiled: tuple[Step, Step]) -> None:
    """The one thing that the Pod Security level "restricted" asks and KFP leaves to each step."""
    for name, step in place(compiled).items():
        assert step["securityContext"] == {"runAsNonRoot": True}, name


def test_a_claim_keeps_each_roles_cache_apart(compiled: tuple[Step, Step], tmp_path: Path) -> None:
    with_claim = read_compiled(tmp_path / "pipeline.yaml", workspace=True)
    settings = ClusterSettings.read({"workspace_claim": "scratch"}, where="test")
    for name, step in place(with_claim, settings).items():
        mounts = [
            (one["pvcNameParameter"], one["mountPath"], one["subPath"]) for one in step.get("pvcMount", ())
        ]
        role = step["podMetadata"]["labels"]["secvec-role"]
        holds_model = kind(name) in COMPUTING | {"remove-security-vector"}
        assert mounts == ([("scratch", "/home/secvec/cache", role)] if holds_model else []), name
    image = Path(__file__).parents[3] / "images" / "cpu" / "Containerfile"
    assert "SECVEC_CACHE=/home/secvec/cache" in image.read_text()
    assert all("pvcMount" not in step for step in place(compiled).values())


def test_every_pod_has_an_identity_an_end_and_its_run(compiled: tuple[Step, Step]) -> None:
    admission = Path(__file__).parents[3] / "manifests" / "step-identity" / "admission.yaml"
    policy = next(yaml.safe_load_all(admission.read_text()))
    resources = policy["spec"]["matchConstraints"]
    roles = set(resources["objectSelector"]["matchExpressions"][0]["values"])
    steps = place(compiled)
    assert {step["podMetadata"]["labels"]["secvec-role"] for step in steps.values()} == roles
    for name, step in steps.items():
        assert 0 < int(step["activeDeadlineSeconds"]) <= 21 * 24 * 3600, name
        assert {"name": "KFP_RUN_ID", "fieldPath": "metadata.labels['pipeline/runid']"} in step[
            "fieldPathAsEnv"
        ]
        shared = [one["mountPath"] for one in step.get("emptyDirMounts", ()) if one["medium"] == "Memory"]
        assert shared == (["/dev/shm"] if kind(name) in COMPUTING else []), name


def test_steps_are_tried_again_but_the_gate(compiled: tuple[Step, Step]) -> None:
    spec = compiled[0]
    groups = [spec["root"], *(one for one in spec["components"].values() if "dag" in one)]
    tasks = {name: task for group in groups for name, task in group["dag"]["tasks"].items()}
    for name, task in tasks.items():
        retries = task.get("retryPolicy", {})
        if (
            kind(name) in ("gate-promotion", "record-outcome")
            or "dag" in spec["components"][task["componentRef"]["name"]]
        ):
            assert not retries, name
        else:
            assert retries["maxRetryCount"] == 2, name
            assert retries["backoffDuration"] == "60s", name
            assert retries["backoffFactor"] == 2.0, name
    names = {name: task["taskInfo"]["name"] for name, task in tasks.items()}
    assert names["fine-tune-guarded-2"] == "fine-tune-guarded (unguarded)"
    assert names["remove-security-vector-3"] == "remove-security-vector (guarded)"


def test_the_cluster_forgets_a_finished_run_and_ends_one_that_hangs(compiled: tuple[Step, Step]) -> None:
    assert compiled[1]["pipelineConfig"] == {
        "resourceTtlOnCompletion": 7 * 24 * 3600,
        "activeDeadlineSeconds": 21 * 24 * 3600,
    }


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"accelerator": {"count": 0}}, "accelerator"),
        ({"accelerator": {"count": -1}}, "accelerator"),
        ({"accelerator": {"count": 1.5}}, "accelerator"),
        ({"custody_secret": "a.b"}, "custody_secret"),
        ({"custody_secret": "x", "signing_secret": "x"}, "two secrets"),
        ({"signing_secret": "secvec-custody"}, "two secrets"),
        ({"workspace_claim": "a.b"}, "workspace_claim"),
        ({"workspace_claim": "x", "custody_secret": "x"}, "as another volume is named"),
        ({"workspace_claim": "shared-memory"}, "as another volume is named"),
    ],
)
def test_what_no_pod_could_use_is_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(Exception, match=said):
        ClusterSettings.read(values, where="cluster.yaml")


def test_the_compiled_file_holds_no_secret(compiled: tuple[Step, Step]) -> None:
    text = yaml.safe_dump(compiled[0]) + yaml.safe_dump(compiled[1])
    assert "-----BEGIN" not in text
    assert "secretName:" not in text.replace("secretNameParameter:", "")
