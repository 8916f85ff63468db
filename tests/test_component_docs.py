"""Every component's README and metadata are what its docstring says; ``make docs`` writes them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

_PATH = Path(__file__).parents[1] / ".ci" / "describe_components.py"
_spec = importlib.util.spec_from_file_location("describe_components", _PATH)
assert _spec is not None
assert _spec.loader is not None
describing: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(describing)
COMPONENTS = describing.list_components()
# What kubeflow/pipelines-components demands of metadata.yaml (scripts/validate_metadata).
SCHEMA = {
    "type": "object",
    "required": ["name", "stability", "dependencies", "lastVerified"],
    "additionalProperties": False,
    "properties": {
        "name": {"type": "string"},
        "stability": {"enum": ["alpha", "beta", "stable"]},
        "dependencies": {
            "type": "object",
            "required": ["kubeflow"],
            "properties": {
                "kubeflow": {
                    "type": "array",
                    "contains": {"properties": {"name": {"const": "Pipelines"}}, "required": ["name"]},
                    "items": {
                        "required": ["name", "version"],
                        "properties": {"version": {"pattern": r"^(==|>=|<=|~=)?\d+\.\d+\.\d+$"}},
                    },
                }
            },
        },
        "tags": {"type": "array", "items": {"type": "string"}},
        "lastVerified": {"type": "string", "format": "date-time"},
    },
}


@pytest.mark.parametrize("folder", COMPONENTS, ids=lambda folder: folder.name)
def test_a_component_is_described_as_it_is(folder: Path) -> None:
    for name, content in describing.describe(folder).items():
        assert (folder / name).read_text() == content, f"{folder.name}/{name} is stale: make docs"


@pytest.mark.parametrize("folder", COMPONENTS, ids=lambda folder: folder.name)
def test_metadata_have_the_form_of_the_components_repository(folder: Path) -> None:
    metadata = yaml.safe_load((folder / "metadata.yaml").read_text())
    checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
    jsonschema.Draft202012Validator(SCHEMA, format_checker=checker).validate(metadata)
    assert metadata["name"] == folder.name


def test_a_changed_docstring_is_noticed_and_what_people_wrote_is_kept(tmp_path: Path) -> None:
    folder = tmp_path / "ingest_data"
    folder.mkdir()
    source = (describing.COMPONENTS / "ingest_data" / "component.py").read_text()
    (folder / "component.py").write_text(source.replace("Settings by step name", "Other words"))
    (folder / "README.md").write_text(f"old\n\n{describing.MARK}\n## Written by hand\n")
    readme = describing.describe(folder)["README.md"]
    assert "Other words" in readme
    assert "old" not in readme.splitlines()
    assert readme.endswith(f"{describing.MARK}\n## Written by hand\n")


def test_a_parameter_without_a_word_about_it_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "ingest_data"
    folder.mkdir()
    source = (describing.COMPONENTS / "ingest_data" / "component.py").read_text()
    lines = [line for line in source.splitlines() if not line.startswith("        overrides: ")]
    (folder / "component.py").write_text("\n".join(lines))
    with pytest.raises(KeyError, match="overrides"):
        describing.describe(folder)
