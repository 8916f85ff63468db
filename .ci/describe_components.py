"""Writes each component's README.md and metadata.yaml from its signature and docstring: ``make docs``.

The form is that of kubeflow/pipelines-components (scripts/generate_readme, scripts/validate_metadata): what
stands below the mark in a README is kept, and so is the date on which a component was last verified.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import docstring_parser
import yaml

COMPONENTS = Path(__file__).parents[1] / "components"
MARK = "<!-- custom-content -->"
_TAGS = {
    "ingest_data": "data-processing",
    "read_share": "data-processing",
    "train_security_vector": "training",
    "fine_tune_guarded": "training",
    "remove_security_vector": "training",
    "evaluate_harm": "evaluation",
    "compare_champion": "deployment",
    "gate_promotion": "deployment",
    "record_outcome": "deployment",
}


def list_components() -> list[Path]:
    """Give the folders that hold a component."""
    return sorted(path.parent for path in COMPONENTS.glob("*/component.py"))


def describe(folder: Path) -> dict[str, str]:
    """Give the contents of a component's files, by name."""
    metadata = _make_metadata(folder)
    readme = _write_readme(folder, metadata)
    return {"README.md": readme, "metadata.yaml": "---\n" + yaml.safe_dump(metadata, sort_keys=False)}


def _make_metadata(folder: Path) -> dict[str, Any]:
    path = folder / "metadata.yaml"
    before = yaml.safe_load(path.read_text()) if path.exists() else {}
    return {
        "name": folder.name,
        "stability": "alpha",
        "dependencies": {"kubeflow": [{"name": "Pipelines", "version": f">={version('kfp')}"}]},
        "tags": [_TAGS[folder.name], "safety"],
        "lastVerified": before.get("lastVerified", f"{datetime.now(UTC):%Y-%m-%dT00:00:00Z}"),
    }


def _write_readme(folder: Path, metadata: dict[str, Any]) -> str:
    source = ast.parse((folder / "component.py").read_text())
    (function,) = [node for node in source.body if isinstance(node, ast.FunctionDef)]
    said = docstring_parser.parse(ast.get_docstring(function) or "")
    texts = {one.arg_name: " ".join((one.description or "").split()) for one in said.params}
    arguments = list(_read_arguments(function))
    given = [row for row in arguments if not row[1].startswith("dsl.Output")]
    made = [row for row in arguments if row[1].startswith("dsl.Output")]
    lines = [f"# {folder.name.replace('_', ' ').capitalize()}", "", "## Overview", ""]
    lines += [str(said.short_description), "", "## Inputs", ""]
    lines += ["| Parameter | Type | Default | Description |", "|---|---|---|---|"]
    lines += [f"| `{name}` | `{kind}` | {default} | {texts[name]} |" for name, kind, default in given]
    if made or said.returns:
        lines += ["", "## Outputs", "", "| Name | Type | Description |", "|---|---|---|"]
        lines += [f"| `{name}` | `{kind}` | {texts[name]} |" for name, kind, _ in made]
    if said.returns and function.returns:
        text = " ".join((said.returns.description or "").split())
        lines.append(f"| `Output` | `{ast.unparse(function.returns)}` | {text} |")
    kfp = metadata["dependencies"]["kubeflow"][0]
    lines += ["", "## Metadata", "", f"- **Name**: {metadata['name']}"]
    lines += [f"- **Stability**: {metadata['stability']}", "- **Dependencies**:", "  - Kubeflow:"]
    lines += [f"    - Name: {kfp['name']}, Version: {kfp['version']}", "- **Tags**:"]
    lines += [f"  - {tag}" for tag in metadata["tags"]]
    lines += [f"- **Last Verified**: {metadata['lastVerified']}"]
    return "\n".join(lines) + "\n" + _kept(folder / "README.md")


def _read_arguments(function: ast.FunctionDef) -> Iterator[tuple[str, str, str]]:
    """Yield name, type and default of what a component takes; KFP itself fills in a final status."""
    arguments = function.args
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        kind = ast.unparse(argument.annotation) if argument.annotation else ""
        yield argument.arg, kind, f"`{ast.unparse(default)}`" if default else ""


def _kept(readme: Path) -> str:
    text = readme.read_text() if readme.exists() else ""
    return "\n" + text[text.index(MARK) :] if MARK in text else ""


def main() -> None:
    """Write all of them; status 1 if something had to be changed and ``--check`` was asked for."""
    stale = []
    for folder in list_components():
        for name, content in describe(folder).items():
            path = folder / name
            if not path.exists() or path.read_text() != content:
                stale.append(str(path.relative_to(COMPONENTS.parent)))
                if "--check" not in sys.argv:
                    path.write_text(content)
    print("\n".join(stale) or "all current")
    sys.exit(1 if stale and "--check" in sys.argv else 0)


if __name__ == "__main__":
    main()
