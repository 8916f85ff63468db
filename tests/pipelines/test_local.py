from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from rich.console import Console

from secvec.components.shared.errors import SecvecError
from secvec.pipelines import interruption
from secvec.pipelines.environment import step_environment
from secvec.pipelines.local import expected_steps, follow, opened_output

STEP = "from secvec.components.shared.progress import running_step, report\n"


def run(code: str, output: Path) -> None:
    environment = step_environment(output, base_model="org/model")
    follow(
        [sys.executable, "-c", STEP + code],
        steps=["one"],
        environment=environment,
        output=output,
        console=Console(),
    )


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path


def test_what_a_run_prints_goes_to_its_log(output: Path) -> None:
    run("print('hello'); import sys; print('there', file=sys.stderr)", output)
    assert sorted((output / "run.log").read_text().split()) == ["hello", "there"]


def test_a_failed_step_is_named_with_its_reason_and_the_log(output: Path) -> None:
    code = (
        "from secvec.components.shared.errors import SecvecError\n"
        "with running_step('one'): raise SecvecError('is absent', where='rows.jsonl')"
    )
    with pytest.raises(SecvecError) as caught:
        run(code, output)
    assert str(caught.value) == f"one: rows.jsonl: is absent; full log: {output / 'run.log'}"


def test_a_step_that_was_killed_is_named(output: Path) -> None:
    with pytest.raises(SecvecError, match=r"one: ended without a reason \(status -9"):
        run("import os\nwith running_step('one'): os.kill(os.getpid(), 9)", output)


def test_a_defect_keeps_its_traceback_in_the_log(output: Path) -> None:
    with pytest.raises(SecvecError, match="one: ZeroDivisionError: division by zero"):
        run("with running_step('one'): 1 / 0", output)
    assert "Traceback" in (output / "run.log").read_text()


@pytest.fixture
def interruptible() -> Iterator[None]:
    """A shell starts what runs in its background deaf to SIGINT, and Python leaves it so."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_stopping_a_run_ends_all_its_processes(output: Path) -> None:
    child = output / "child.pid"
    code = f"""
import subprocess, sys, time, pathlib
with running_step('one'):
    deaf = 'import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)'
    process = subprocess.Popen([sys.executable, '-c', deaf])
    time.sleep(0.5)
    pathlib.Path({str(child)!r}).write_text(str(process.pid))
    time.sleep(600)
"""

    def interrupt() -> None:
        while not child.exists() or not child.read_text():
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        run(code, output)
    thread.join()
    assert not is_alive(int(child.read_text()))


def test_an_interrupt_that_python_swallowed_ends_the_run_all_the_same(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interruption, "_asked", False)
    with suppress(KeyboardInterrupt):  # as what is raised in a destructor
        interruption.interrupt()
    ended = output / "ended"
    with pytest.raises(KeyboardInterrupt):
        run(f"import time; time.sleep(60); open({str(ended)!r}, 'w')", output)
    assert not ended.exists()


def is_alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    for _ in range(50):
        if not status.exists() or status.read_text().rsplit(")")[-1].split()[0] == "Z":
            return False
        time.sleep(0.1)
    return True


def test_an_output_folder_serves_one_run_at_a_time(tmp_path: Path) -> None:
    with opened_output(tmp_path), pytest.raises(SecvecError, match="another run is using"):  # noqa: SIM117
        with opened_output(tmp_path):
            pass
    with opened_output(tmp_path):
        pass


def test_an_output_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(SecvecError, match="output folder cannot be written"),
        opened_output(tmp_path / "file"),
    ):
        pass


def test_the_results_of_an_earlier_run_do_not_outlive_the_start_of_the_next(tmp_path: Path) -> None:
    for name in ("summary.json", "report.html"):
        (tmp_path / name).write_text("old")
    (tmp_path / "mlflow.db").write_text("kept")
    with opened_output(tmp_path):
        pass
    assert not (tmp_path / "summary.json").exists()
    assert not (tmp_path / "report.html").exists()
    assert (tmp_path / "mlflow.db").read_text() == "kept"


def test_keys_are_made_for_their_owner_and_a_caller_s_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = step_environment(tmp_path, base_model="org/model")
    for variable in ("SECVEC_SIGNING_KEY", "SECVEC_CUSTODY_KEY"):
        assert Path(made[variable]).stat().st_mode & 0o777 == 0o600
    assert "HF_HUB_OFFLINE" not in made
    assert step_environment(tmp_path, base_model=str(tmp_path))["HF_HUB_OFFLINE"] == "1"
    monkeypatch.setenv("SECVEC_SIGNING_KEY", "/mine/signing.pem")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    given = step_environment(tmp_path / "other", base_model="org/model")
    assert given["SECVEC_SIGNING_KEY"] == "/mine/signing.pem"
    assert given["MLFLOW_TRACKING_URI"] == "http://mlflow:5000"
    assert not (tmp_path / "other" / "keys" / "signing.pem").exists()


def test_the_control_arm_adds_two_steps() -> None:
    added = set(expected_steps(control_arm=True)) - set(expected_steps(control_arm=False))
    assert added == {"fine_tune_guarded (unguarded)", "remove_security_vector (unguarded)"}
