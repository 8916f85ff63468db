"""Every value that a group of the compiled pipeline uses is handed into it.

kfp 2.17.0 forgets this for resources given by parameters inside a dsl.If: it compiles, and fails when run.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from secvec.pipelines.compilation import compile_to


def find_component_inputs(node: Any) -> Iterator[str]:
    """All parameters of the enclosing group that something refers to, at any depth."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "componentInputParameter":
                yield value
            else:
                yield from find_component_inputs(value)
    elif isinstance(node, list):
        for one in node:
            yield from find_component_inputs(one)


def find_missing(spec: dict[str, Any], platform: dict[str, Any]) -> list[str]:
    """What tasks refer to, in the pipeline or in its Kubernetes settings, that their group does not have."""
    components = spec["components"]
    executors = (
        platform.get("platforms", {}).get("kubernetes", {}).get("deploymentSpec", {}).get("executors", {})
    )
    groups = {"root": spec["root"]} | {name: one for name, one in components.items() if "dag" in one}
    missing = []
    for name, group in groups.items():
        declared = group.get("inputDefinitions", {}).get("parameters", {})
        for task in group["dag"]["tasks"].values():
            label = components[task["componentRef"]["name"]].get("executorLabel", "")
            used = [*find_component_inputs(task), *find_component_inputs(executors.get(label, {}))]
            missing += [f"{name}: {one}" for one in used if one not in declared]
    return missing


@pytest.mark.parametrize("workspace", [False, True])
def test_every_group_is_given_what_its_tasks_use(tmp_path: Path, workspace: bool) -> None:
    path = tmp_path / "pipeline.yaml"
    compile_to(path, workspace=workspace)
    spec, *platform = yaml.safe_load_all(path.read_text())
    assert find_missing(spec, platform[0] if platform else {}) == []


def test_a_missing_value_is_found() -> None:
    inner = {
        "dag": {
            "tasks": {
                "t": {
                    "componentRef": {"name": "step"},
                    "inputs": {"parameters": {"cpu": {"componentInputParameter": "x"}}},
                }
            }
        }
    }
    outer = {"dag": {"tasks": {"group": {"componentRef": {"name": "group"}}}}}
    spec = {"components": {"group": inner, "step": {"executorLabel": "e"}}, "root": outer}
    selector = {"nodeSelector": {"nodeSelectorJson": {"componentInputParameter": "y"}}}
    platform = {"platforms": {"kubernetes": {"deploymentSpec": {"executors": {"e": selector}}}}}
    assert find_missing(spec, platform) == ["group: x", "group: y"]
