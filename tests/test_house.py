"""The rules of the house: packages, imports, thin components."""

from __future__ import annotations

import ast
import itertools
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
COMPONENTS = sorted((ROOT / "components").glob("*/component.py"))
HEAVY = ("torch", "transformers", "peft", "mlflow")


def test_the_packages_list_is_the_tree() -> None:
    listed = set(PROJECT["tool"]["setuptools"]["packages"])
    found = {
        ".".join(("secvec", *path.parent.relative_to(ROOT).parts))
        for top in ("components", "pipelines")
        for path in (ROOT / top).rglob("__init__.py")
    }
    assert listed == found


def test_every_folder_with_code_is_a_package() -> None:
    for top in ("components", "pipelines"):
        for folder in {path.parent for path in (ROOT / top).rglob("*.py")}:
            assert (folder / "__init__.py").is_file(), folder


def test_there_are_six_components_two_that_frame_them_and_one_that_shares_the_reading() -> None:
    assert [path.parent.name for path in COMPONENTS] == [
        "compare_champion",
        "evaluate_harm",
        "fine_tune_guarded",
        "gate_promotion",
        "ingest_data",
        "read_share",
        "record_outcome",
        "remove_security_vector",
        "train_security_vector",
    ]


def test_every_dependency_has_an_exact_version() -> None:
    def name_of(requirement: str) -> str:
        return re.split(r"[^A-Za-z0-9._-]", requirement)[0].lower()

    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", pin) for pin in pins)
    project = PROJECT["project"]
    wanted = [*project["dependencies"], *itertools.chain(*project["optional-dependencies"].values())]
    assert {name_of(requirement) for requirement in wanted} <= {name_of(pin) for pin in pins}


@pytest.mark.parametrize("path", COMPONENTS, ids=lambda path: path.parent.name)
def test_a_component_is_thin(path: Path) -> None:
    module = ast.parse(path.read_text())
    imported = [node for node in module.body if isinstance(node, ast.Import | ast.ImportFrom)]
    for node in imported:
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
        for name in names:
            top = name.split(".")[0]
            assert top == "kfp" or top in sys.stdlib_module_names, f"{path}: imports {name} at module scope"
    (function,) = [node for node in module.body if isinstance(node, ast.FunctionDef)]
    body = function.body[1:]
    assert function.name == path.parent.name
    assert body[-1].end_lineno is not None
    assert body[-1].end_lineno - body[0].lineno < 40


@pytest.mark.parametrize("package", ["components", "pipelines"])
@pytest.mark.parametrize("form", ["import {0}", "from {0} import x", "import {0}.shared.errors"])
def test_the_lint_rule_forbids_bare_imports(package: str, form: str, tmp_path: Path) -> None:
    def lint(line: str) -> str:
        (tmp_path / "some.py").write_text(f'"""Some module."""\n\n{line}\n')
        command = [sys.executable, "-m", "ruff", "check", "--config", str(ROOT / "pyproject.toml")]
        return subprocess.run(
            [*command, "some.py"], check=False, cwd=tmp_path, capture_output=True, text=True
        ).stdout

    assert "TID251" in lint(form.format(package))
    assert "TID251" not in lint(form.format(f"secvec.{package}"))


@pytest.mark.parametrize(
    "code",
    [
        "import secvec.pipelines.command",
        "from secvec.pipelines.command import app; app(['--help'], standalone_mode=False)",
        "import pathlib, tempfile; from secvec.pipelines.compilation import compile_to; "
        "compile_to(pathlib.Path(tempfile.mkdtemp()) / 'p.yaml')",
        "import secvec.pipelines.guarded_fine_tuning.config as c; c._step_settings()",
    ],
    ids=["import", "help", "compile", "settings"],
)
def test_nothing_heavy_is_imported_before_a_step_runs(code: str) -> None:
    check = f"import sys; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; {check}"], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_every_test_that_the_threat_model_names_is_there() -> None:
    rows = [line for line in (ROOT / "docs/security.md").read_text().splitlines() if line.startswith("| ")]
    named = [name for row in rows for name in re.findall(r"`([\w/]+\.py)(?:::(\w+))?`", row.split("|")[-2])]
    assert len(named) > 20
    for file, function in named:
        path = ROOT / (file if file.startswith("tests/") else f"tests/components/{file}")
        assert path.is_file(), file
        assert not function or f"def {function}(" in path.read_text(), f"{file}::{function}"
