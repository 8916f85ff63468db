"""The images hold to what a cluster asks of them; `make test-containers` builds and runs the first."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

IMAGES = Path(__file__).parents[1] / "images"
NAMES = sorted(path.parent.name for path in IMAGES.glob("*/Containerfile"))
STEPS_WITHOUT_A_MODEL = ("ingest_data", "compare_champion", "gate_promotion", "record_outcome")
COMPILERS = ("gcc", "g++", "build-essential", "clang", "cmake", "-dev", "cuda-nvcc")


def read(name: str) -> list[str]:
    """The instructions of a Containerfile, one a line."""
    text = re.sub(r"^\s*#.*\n", "", (IMAGES / name / "Containerfile").read_text(), flags=re.MULTILINE)
    return text.replace("\\\n", " ").splitlines()


def last_stage(name: str) -> list[str]:
    lines = read(name)
    starts = [number for number, line in enumerate(lines) if line.startswith("FROM ")]
    assert len(starts) > 1, "what builds must not be what runs"
    return lines[starts[-1] :]


def test_there_is_one_for_each_profile() -> None:
    assert NAMES == ["cpu", "gpu", "mlflow"]


@pytest.mark.parametrize("name", NAMES)
def test_the_base_is_an_argument(name: str) -> None:
    lines = [line for line in read(name) if line]
    assert lines[0].startswith("ARG BASE_IMAGE=")
    assert {line for line in lines if line.startswith("FROM ")} >= {"FROM ${BASE_IMAGE}"}


@pytest.mark.parametrize("name", NAMES)
def test_what_runs_is_not_root_and_holds_no_compiler_and_no_pip_cache(name: str) -> None:
    users = [line.split()[1] for line in last_stage(name) if line.startswith("USER ")]
    # Numbers: Kubernetes cannot tell that a named user is not root.
    assert len(users) == 1
    assert re.fullmatch(r"[1-9][0-9]*:[1-9][0-9]*", users[0])
    text = "\n".join(last_stage(name))
    assert "pip " not in text
    assert not [word for word in COMPILERS if word in text.replace("/dev/", "")]
    assert any("PIP_NO_CACHE_DIR=1" in line for line in read(name))
    assert any("--constraint constraints.txt" in line for line in read(name))


@pytest.mark.parametrize("name", NAMES)
def test_the_labels_say_what_it_is(name: str) -> None:
    labels = set(re.findall(r"org\.opencontainers\.image\.([a-z.]+)=", "\n".join(last_stage(name))))
    assert labels == {"title", "description", "version", "revision", "licenses", "base.name"}


def test_cpu_and_gpu_hold_the_same_code_at_the_same_places() -> None:
    cpu, gpu = ([" ".join(line.split()) for line in read(name)] for name in ("cpu", "gpu"))
    differing = re.compile(r"ARG BASE_IMAGE=|ARG TORCH_INDEX=|LABEL ")
    # gpu's variables are cpu's and more
    missing = [line for line in cpu if not any(other.startswith(line) for other in gpu)]
    assert [line for line in missing if not differing.match(line)] == []


@pytest.mark.parametrize("step", STEPS_WITHOUT_A_MODEL)
def test_a_step_without_a_model_imports_no_torch(step: str) -> None:
    code = (
        f"import sys, secvec.components.{step}.step, secvec.components.{step}.component\n"
        "print([name for name in ('torch', 'transformers', 'peft') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
