from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

SECVEC = [sys.executable, "-c", "from secvec.pipelines.command import main; main()"]


def secvec(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*SECVEC, *arguments],
        env=os.environ | environment,
        check=False,
        capture_output=True,
        text=True,
    )


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A config whose sources are all there, but empty."""
    names = [
        "training_data",
        "harmful_seeds",
        "benign_anchors",
        "harm_prompts",
        "skill_prompts",
        "kept_prompts",
    ]
    for name in names:
        (tmp_path / f"{name}.jsonl").write_text("")
    values: dict[str, Any] = {name: f"{name}.jsonl" for name in names}
    values |= {"training_data": ["training_data.jsonl"], "base_model": "org/model", "policy": {"version": 1}}
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def the_error(done: subprocess.CompletedProcess[str]) -> str:
    """The one line on standard error."""
    assert "Traceback" not in done.stdout + done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("secvec: error: ")
    return line


@pytest.mark.parametrize("command", [[], ["demo"], ["run"], ["compile"], ["doctor"]])
def test_help_teaches(command: list[str]) -> None:
    done = secvec(*command, "--help")
    assert done.returncode == 0
    assert "secvec" in done.stdout
    assert not command or "Example" in done.stdout


def test_the_version() -> None:
    assert secvec("--version").stdout.startswith("secvec 0.")


@pytest.mark.parametrize(
    "arguments",
    [
        ["demos"],
        ["demo"],
        ["demo", "--output", "x", "--guard", "some"],
        ["demo", "--output", "x", "--seed", "-1"],
    ],
)
def test_wrong_usage_is_status_2(arguments: list[str], tmp_path: Path) -> None:
    done = secvec(*arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert not Path("x").exists()


def test_an_unknown_config_key_is_status_2_in_one_line(config: Path, tmp_path: Path) -> None:
    config.write_text(config.read_text() + "gaurd: mixture\n")
    for command in (
        ["run", "--output", str(tmp_path / "out")],
        ["compile", "--output", str(tmp_path / "p.yaml")],
    ):
        done = secvec(*command, "--config", str(config))
        assert done.returncode == 2
        line = the_error(done)
        assert "'gaurd'" in line
        assert str(config) in line
        assert "guard" in line.split("accepted:")[1]
    assert not (tmp_path / "out").exists()


def test_a_failing_step_fails_the_run_in_one_line(config: Path, tmp_path: Path) -> None:
    done = secvec("run", "--config", str(config), "--output", str(tmp_path / "out"))
    assert done.returncode == 1
    line = the_error(done)
    assert "ingest_data" in line
    assert ".jsonl" in line
    assert "accepted: at least one row" in line
    assert str(tmp_path / "out" / "run.log") in line
    assert "ingest_data: failed" in done.stdout
    assert not (tmp_path / "out" / "summary.json").exists()
    assert not list((tmp_path / "out" / "store").glob("[!.]*"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"skill_prompts": "absent.jsonl"}, "skill_prompts: "),
        ({"training_data": ["training_data.jsonl", "absent.jsonl"]}, "training_data: "),
        ({"base_model": "./absent"}, "is not a folder"),
        ({"base_model": "empty"}, "has no config.json"),
    ],
)
def test_an_input_that_is_not_there_is_told_before_any_step(
    change: dict[str, Any], said: str, config: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    config.write_text(yaml.safe_dump(yaml.safe_load(config.read_text()) | change))
    done = secvec("run", "--config", str(config), "--output", str(tmp_path / "out"))
    assert done.returncode == 1
    line = the_error(done)
    assert said in line
    assert "accepted: " in line
    assert "running" not in done.stdout


def test_an_unreachable_mlflow_is_told_before_any_step(config: Path, tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}"
        done = secvec(
            "run", "--config", str(config), "--output", str(tmp_path / "out"), MLFLOW_TRACKING_URI=address
        )
    assert done.returncode == 1
    line = the_error(done)
    assert address in line
    assert "MLflow" in line
    assert "ingest_data" not in done.stdout


def test_a_bucket_that_is_not_there_is_told_before_any_step(
    config: Path, tmp_path: Path, s3_server: str
) -> None:
    config.write_text(config.read_text() + "store: s3://no-such-bucket/prefix\n")
    done = secvec("run", "--config", str(config), "--output", str(tmp_path / "out"))
    assert done.returncode == 1
    assert "no-such-bucket" in the_error(done)
    assert "running" not in done.stdout


@pytest.mark.parametrize("command", [["demo"], ["run"]])
def test_an_output_that_cannot_be_written_is_status_1(
    command: list[str], config: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    options = ["--config", str(config)] if command == ["run"] else []
    done = secvec(*command, *options, "--output", str(tmp_path / "file" / "out"))
    assert done.returncode == 1
    assert str(tmp_path / "file" / "out") in the_error(done)


def test_doctor_finds_what_a_run_would_stumble_over(config: Path, tmp_path: Path) -> None:
    good = secvec("doctor", "--config", str(config), "--output", str(tmp_path / "out"))
    assert good.returncode == 0
    assert not (tmp_path / "out").exists()
    (tmp_path / "harm_prompts.jsonl").unlink()
    bad = secvec("doctor", "--config", str(config), SECVEC_SIGNING_KEY=str(tmp_path / "absent.pem"))
    assert bad.returncode == 1
    marked = [line for line in bad.stdout.splitlines() if line.startswith("✗")]
    assert [line.split()[1] for line in marked] == ["signing", "harm_prompts"]


def test_compile_writes_a_pipeline(config: Path, tmp_path: Path) -> None:
    done = secvec("compile", "--output", str(tmp_path / "p.yaml"), "--config", str(config))
    assert done.returncode == 0
    assert (tmp_path / "p.yaml").read_text().startswith("# PIPELINE DEFINITION")


def test_a_signal_that_comes_when_all_is_done_changes_nothing() -> None:
    late = "import atexit, os, signal\natexit.register(os.kill, os.getpid(), signal.SIGTERM)\n"
    command = late + "from secvec.pipelines.command import main\nmain()"
    done = subprocess.run(
        [sys.executable, "-c", command, "--version"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
