"""A container that does not end well makes its step fail, whatever KFP would have made of it."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
from docker.models.containers import Container
from kfp import dsl, local
from kfp.local import docker_task_handler

from secvec.pipelines.docker_runner import ContainerEnd, install_runner, run_container, run_step


@pytest.fixture
def events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[dict[str, Any]]]:
    path = tmp_path / "events.jsonl"
    monkeypatch.setenv("SECVEC_EVENTS", str(path))

    def read() -> list[dict[str, Any]]:
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    return read


def command(code: str, step: str = "ingest_data", arm: str = "") -> list[str]:
    """A command as KFP writes one, with code of ours in place of its executor."""
    inputs = {"inputs": {"parameterValues": {"arm": arm} if arm else {}}}
    return ["python3", "-c", code, "--executor_input", json.dumps(inputs), "--function_to_execute", step]


def names(engine: Any) -> set[str]:
    return {container.id for container in engine.containers.list(all=True)}


def test_a_container_that_ends_well(
    engine: Any, python_image: str, events: Callable[..., Any], capfd: pytest.CaptureFixture[str]
) -> None:
    before = names(engine)
    code = "import sys; print('to out, µ'); print('to err', file=sys.stderr)"
    assert run_step(engine, python_image, command(code), {}) == 0
    assert {"to out, µ", "to err"} <= set(capfd.readouterr().out.splitlines())
    assert events() == []
    assert names(engine) == before


@pytest.mark.parametrize(
    ("code", "ending"),
    [
        ("raise SystemExit(3)", (3, "its container ended with exit status 3")),
        ("import os; os.kill(os.getpid(), 9)", (137, "its container was killed (SIGKILL)")),
        ("import os; os.kill(os.getpid(), 11)", (139, "its container was ended by SIGSEGV")),
    ],
)
def test_a_container_that_fails_is_a_failed_step(
    engine: Any, python_image: str, events: Callable[..., Any], code: str, ending: tuple[int, str]
) -> None:
    # as a child of a shell: the kernel ends no first process of a container by a signal of its own
    shell = ["sh", "-c", 'python3 -c "$1"; exit $?', "sh", code]
    step = command("", step="fine_tune_guarded", arm="guarded")[3:]
    before = names(engine)
    status, reason = ending
    assert run_step(engine, python_image, [*shell, *step], {}) == status
    [event] = events()
    assert event["event"] == "step_failed"
    assert event["step"] == "fine_tune_guarded (guarded)"
    assert event["error"].startswith(f"fine_tune_guarded (guarded): {reason}")
    assert names(engine) == before


def test_one_that_is_killed_from_outside(engine: Any, python_image: str, events: Callable[..., Any]) -> None:
    label = {"secvec.test": "killed"}

    def kill() -> None:
        for _ in range(200):
            for container in engine.containers.list(filters={"label": "secvec.test=killed"}):
                container.kill(signal="SIGKILL")
                return
            time.sleep(0.1)

    thread = threading.Thread(target=kill)
    thread.start()
    status = run_step(engine, python_image, command("import time; time.sleep(60)"), {}, labels=label)
    thread.join()
    assert status == 128 + signal.SIGKILL
    assert "was killed" in events()[0]["error"]


def test_one_that_runs_out_of_memory(engine: Any, python_image: str, events: Callable[..., Any]) -> None:
    code = "x = []\nfor _ in range(40): x.append(bytearray(b'1' * 10**7))"
    limits = {"mem_limit": "64m", "memswap_limit": "64m"}
    assert run_step(engine, python_image, command(code), {}, **limits) == 137
    assert "out of memory (limit 64 MiB)" in events()[0]["error"]


def test_memory_and_a_kill_are_told_apart_where_the_engine_tells() -> None:
    known = ContainerEnd(status=137, out_of_memory=True, memory_limit=2**30)
    assert known.describe() == "its container ran out of memory (limit 1024 MiB)"
    unknown = ContainerEnd(status=137, out_of_memory=False, memory_limit=0)
    assert unknown.describe().startswith("its container was killed (SIGKILL), by someone or out of memory")


@pytest.mark.parametrize("sleep", [0, 2], ids=["ended", "still running"])
def test_an_engine_that_is_silent_about_a_container(
    engine: Any,
    python_image: str,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    sleep: int,
) -> None:
    follow, silent = Container.logs, [True]

    def logs(container: Any, **options: Any) -> Any:
        if options.get("follow") and silent:
            silent.clear()
            time.sleep(1)
            raise requests.ReadTimeout
        return follow(container, **options)

    monkeypatch.setattr(Container, "logs", logs)
    command = ["sh", "-c", f"sleep {sleep}; echo said; exit 3"]
    ended = run_container(engine, image=python_image, command=command)
    assert (ended.status, silent) == (3, [])
    assert capfd.readouterr().out.count("said") == 1


def test_an_image_that_is_not_there(engine: Any, events: Callable[..., Any]) -> None:
    assert run_step(engine, "localhost/secvec-absent:1", command("pass"), {}) == 125
    error = events()[0]["error"]
    assert error.startswith("ingest_data: localhost/secvec-absent:1: image is not on this machine")
    assert "accepted: an image" in error


def test_a_command_that_is_not_in_the_image(
    engine: Any, python_image: str, events: Callable[..., Any]
) -> None:
    before = names(engine)
    assert run_step(engine, python_image, ["/no/such/program"], {}) == 125
    assert "container could not be run" in events()[0]["error"]
    assert names(engine) == before


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("exit 3", "ended with exit status 3"),
        # a child: the kernel ends no first process of a container by a signal of its own
        ("python3 -c 'import os; os.kill(os.getpid(), 9)'; exit $?", "was killed (SIGKILL)"),
        (
            "exec python3 -c 'x = [bytearray(b\"1\" * 10**7) for _ in range(40)]'",
            "out of memory (limit 64 MiB)",  # not every engine tells it from a kill: then both are said
        ),
        ("true", ""),
    ],
    ids=["exits 3", "killed", "out of memory", "ends well"],
)
def test_a_pipeline_ends_as_its_containers_do(
    *,
    engine: Any,
    python_image: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    script: str,
    reason: str,
) -> None:
    monkeypatch.setattr(docker_task_handler, "run_docker_container", docker_task_handler.run_docker_container)
    install_runner({"image": python_image})
    runner = local.DockerRunner(mem_limit="64m", memswap_limit="64m")
    local.init(runner, pipeline_root=str(tmp_path / "root"), workspace_root=str(tmp_path / "w"))

    @dsl.container_component
    def ends():  # type: ignore[no-untyped-def] # KFP reads no annotation that is a string
        return dsl.ContainerSpec(image=python_image, command=["sh", "-c"], args=[script])

    @dsl.pipeline
    def one_step():  # type: ignore[no-untyped-def]
        ends()

    if not reason:
        one_step()
        return
    with pytest.raises(RuntimeError, match="ends"):
        one_step()
    lines = [line for line in capfd.readouterr().out.splitlines() if "secvec container: error: its" in line]
    assert len(lines) == 1
    assert reason in lines[0]
