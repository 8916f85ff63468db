from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from kfp import components

from secvec.components.shared.code_digest import code_digest
from secvec.components.shared.errors import SecvecError
from secvec.pipelines.compilation import compile_to
from secvec.pipelines.guarded_fine_tuning.config import RunConfig
from secvec.pipelines.guarded_fine_tuning.pipeline import DEFAULT_IMAGE

PARAMETERS = {
    "base_model",
    "training_data",
    "harmful_seeds",
    "benign_anchors",
    "harm_prompts",
    "skill_prompts",
    "kept_prompts",
    "guard",
    "task",
    "seed",
    "control_arm",
    "skip_unchanged",
    "store",
    "policy",
    "model_name",
    "image",
    "code_digest",
    "overrides",
    "training_image",
    "accelerator_type",
    "accelerator_count",
    "training_cpu",
    "training_memory",
    "node_selector",
    "tolerations",
    "custody_secret",
    "signing_secret",
    "storage_secret",
    "image_pull_secret",
    "environment",
}
UNCACHED = ("gate-promotion", "ingest-data", "compare-champion")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("compiled") / "pipeline.yaml"
    compile_to(path)
    return path


@pytest.fixture(scope="module")
def spec(compiled: Path) -> dict[str, Any]:
    found: dict[str, Any] = next(yaml.safe_load_all(compiled.read_text()))
    return found


def test_kfp_loads_the_yaml(compiled: Path) -> None:
    loaded = components.load_component_from_file(str(compiled))
    assert loaded.name == "guarded-fine-tuning"


def test_the_parameters(spec: dict[str, Any]) -> None:
    parameters = spec["root"]["inputDefinitions"]["parameters"]
    assert set(parameters) == PARAMETERS
    assert parameters["code_digest"]["defaultValue"] == code_digest()
    assert parameters["image"]["defaultValue"] == DEFAULT_IMAGE


GROUPS = ("condition", "exit-handler")


def all_tasks(spec: dict[str, Any]) -> dict[str, dict[str, Any]]:
    found = dict(spec["root"]["dag"]["tasks"])
    for component in spec["components"].values():
        found |= component.get("dag", {}).get("tasks", {})
    return found


def test_only_what_is_bound_to_digests_is_cached(spec: dict[str, Any]) -> None:
    for name, task in all_tasks(spec).items():
        if name.startswith(GROUPS):
            continue
        cached = task["cachingOptions"].get("enableCache", False)
        assert cached is not name.startswith(UNCACHED), name
        # How a run ended is told by the run's id, which is never twice the same.
        bound = "run" if name == "record-outcome" else "code_digest"
        assert bound in task["inputs"]["parameters"], name


def test_the_image_is_a_parameter_everywhere(spec: dict[str, Any]) -> None:
    executors = spec["deploymentSpec"]["executors"].values()
    images = {executor["container"]["image"] for executor in executors}
    names = ("image", "training_image")
    assert images == {f"{{{{$.inputs.parameters['pipelinechannel--{name}']}}}}" for name in names}


def test_one_bool_decides_between_two_complete_branches(spec: dict[str, Any]) -> None:
    branches = {
        task["triggerPolicy"]["condition"]: spec["components"][task["componentRef"]["name"]]["dag"]["tasks"]
        for task in all_tasks(spec).values()
        if "condition" in task.get("triggerPolicy", {})
    }
    # Nothing is trained unless the comparison says that something has changed.
    compared = "inputs.parameter_values['pipelinechannel--compare-champion-Output'] == false"
    assert "train-security-vector" in branches.pop(compared)
    taken, otherwise = sorted(branches, key=lambda condition: condition.startswith("!"))
    parameter = "inputs.parameter_values['pipelinechannel--control_arm'] == true"
    assert (taken, otherwise) == (parameter, f"!({parameter})")
    kinds = {
        condition: sorted(
            task["componentRef"]["name"].removeprefix("comp-").rstrip("-23") for task in tasks.values()
        )
        for condition, tasks in branches.items()
    }
    arm = ["fine-tune-guarded", "remove-security-vector"]
    end = ["evaluate-harm", "gate-promotion"]
    assert kinds[taken] == sorted([*arm, *arm, *end])
    assert kinds[otherwise] == sorted([*arm, *end])
    guards = [
        task["inputs"]["parameters"]["guard"]
        for name, task in branches[taken].items()
        if name.startswith("fine-tune-guarded")
    ]
    assert {"runtimeValue": {"constant": "none"}} in guards
    assert len(guards) == 2


def test_a_config_becomes_the_defaults(tmp_path: Path) -> None:
    config = RunConfig(
        base_model="org/model",
        training_data=["s3://bucket/rows.jsonl"],
        harmful_seeds="s3://bucket/seeds.jsonl",
        benign_anchors="s3://bucket/anchors.jsonl",
        harm_prompts="s3://bucket/harm.jsonl",
        skill_prompts="s3://bucket/skill.jsonl",
        policy={"version": 1},
        seed=7,
        store="s3://bucket/store",
    )
    compile_to(tmp_path / "p.yaml", config=config)
    spec = next(yaml.safe_load_all((tmp_path / "p.yaml").read_text()))
    parameters = spec["root"]["inputDefinitions"]["parameters"]
    assert parameters["training_data"]["defaultValue"] == ["s3://bucket/rows.jsonl"]
    assert parameters["seed"]["defaultValue"] == 7
    assert parameters["store"]["defaultValue"] == "s3://bucket/store"
    assert parameters["policy"]["defaultValue"] == {"version": 1}


def test_nothing_is_left_of_a_yaml_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(SecvecError, match=r"ends in \.yaml"):
        compile_to(tmp_path / "pipeline.json")
    with pytest.raises(SecvecError, match="cannot be written"):
        compile_to(tmp_path / "absent" / "pipeline.yaml")
    assert list(tmp_path.iterdir()) == []
