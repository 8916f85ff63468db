"""`secvec submit` follows a run to its verdict."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from submitting import WRITES_OF_A_FIRST_SUBMIT, Command, frame, task, the_line

from secvec.pipelines.cluster import connect


@pytest.mark.parametrize(
    ("outcome", "status"), [("PASS", 0), ("UNCHANGED", 0), ("FAIL", 3), ("INDETERMINATE", 3)]
)
def test_the_verdict_is_the_exit_status(
    *, secvec: Command, kfp_api: Any, judged: Any, remote_config: Path, outcome: str, status: int
) -> None:
    judged(outcome)
    done = secvec("submit", "--host", kfp_api.url, "--config", str(remote_config))
    assert (done.status, done.err) == (status, "")
    assert outcome in done.out
    assert kfp_api.writes == WRITES_OF_A_FIRST_SUBMIT
    assert ("harm_rate: 0.5, wanted 0.02" in done.out) == (status == 3)


def test_every_step_is_followed(
    secvec: Command, kfp_api: Any, judged: Any, remote_config: Path, pauses: list[float]
) -> None:
    judged("PASS")
    noise = [
        task("root-driver", "SUCCEEDED"),
        task("executor", "RUNNING"),
        task("condition-branches-1", "RUNNING"),
    ]
    kfp_api.frames = [
        frame("PENDING"),
        frame("RUNNING", *noise, task("ingest-data", "RUNNING")),
        frame(
            "RUNNING",
            *noise,
            task("ingest-data", "SUCCEEDED", ended=True),
            task("train-security-vector", "RUNNING"),
        ),
        frame("SUCCEEDED", task("train-security-vector", "SKIPPED", ended=True)),
    ]
    done = secvec("submit", "--host", kfp_api.url, "--config", str(remote_config))
    assert done.status == 0
    steps = ("ingest-data", "train-security-vector")
    said = [name for line in done.out.splitlines() for name in steps if name in line]
    assert said == [steps[0], steps[0], steps[1], steps[1]]
    assert "1:05" in done.out  # 65 s between start and end, by the cluster's clock
    assert not any(name in done.out for name in ("driver", "executor", "condition"))
    assert pauses == [5.0] * 3


def test_a_terminal_shows_what_is_to_come(kfp_api: Any, compiled: Any, pauses: list[float]) -> None:
    from io import StringIO

    from rich.console import Console

    from secvec.pipelines.run_following import Watch, follow_run

    kfp_api.items["runs"].append({"run_id": "r1", "display_name": "r", "runtime_config": {}})
    kfp_api.frames = [frame("PENDING"), frame("SUCCEEDED", task("ingest-data", "SUCCEEDED", ended=True))]
    console = Console(file=StringIO(), force_terminal=True, width=100)
    follow_run(connect(kfp_api.url), "r1", console=console, spec=compiled.spec, watch=Watch())
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    # What lies behind a condition appears when it begins.
    assert shown.index("ingest-data") < shown.index("compare-champion")
    assert "✓" in shown
    assert "fine-tune-guarded" not in shown


def test_a_failed_step_is_named(
    secvec: Command, kfp_api: Any, remote_config: Path, pauses: list[float]
) -> None:
    failing = task("ingest-data", "FAILED", ended=True) | {"error": {"code": 13, "message": "exit code 137"}}
    kfp_api.frames = [frame("RUNNING", task("ingest-data", "RUNNING")), frame("FAILED", failing)]
    line = the_line(secvec("submit", "--host", kfp_api.url, "--config", str(remote_config)))
    run = kfp_api.items["runs"][0]["run_id"]
    assert (
        f"run {run}: failed in ingest-data: exit code 137; its logs: {kfp_api.url}/#/runs/details/{run}"
        in line
    )


@pytest.mark.parametrize(
    ("state", "said"), [("CANCELED", "was cancelled"), ("FAILED", "failed before any step")]
)
def test_a_run_that_ends_without_a_step(
    secvec: Command, kfp_api: Any, remote_config: Path, state: str, said: str
) -> None:
    kfp_api.frames = [{"state": state}]
    assert said in the_line(secvec("submit", "--host", kfp_api.url, "--config", str(remote_config)))


def test_success_without_a_verdict_is_no_pass(
    secvec: Command, kfp_api: Any, judged: Any, remote_config: Path
) -> None:
    line = the_line(secvec("submit", "--host", kfp_api.url, "--config", str(remote_config)))
    assert "its gate left no verdict" in line


def test_an_api_that_is_away_for_minutes_does_not_end_the_following(
    *, secvec: Command, kfp_api: Any, judged: Any, remote_config: Path, pauses: list[float]
) -> None:
    from kfp_api_server import Fault

    judged("PASS")
    kfp_api.frames = [{"state": "RUNNING"}, {"state": "SUCCEEDED"}]
    kfp_api.faults = [Fault("RunService_GetRun", 503, times=20)]
    assert secvec("submit", "--host", kfp_api.url, "--config", str(remote_config)).status == 0
    assert sum(pauses) > 200


def test_a_verdict_on_another_model_is_no_pass(
    secvec: Command, kfp_api: Any, judged: Any, remote_config: Path
) -> None:
    judged("PASS", model_name="another")
    line = the_line(secvec("submit", "--host", kfp_api.url, "--config", str(remote_config)))
    assert "is no verdict on 'assistant'" in line


def test_no_wait_and_attach(secvec: Command, kfp_api: Any, judged: Any, remote_config: Path) -> None:
    judged("FAIL")
    done = secvec("submit", "--host", kfp_api.url, "--config", str(remote_config), "--no-wait")
    (run,) = kfp_api.items["runs"]
    assert done.status == 0
    assert run["run_id"] in done.out
    assert "RunService_GetRun" not in kfp_api.calls
    again = secvec("submit", "--host", kfp_api.url, "--attach", run["run_id"])
    assert (again.status, len(kfp_api.items["runs"])) == (3, 1)


def test_following_ends_with_the_timeout(
    secvec: Command, kfp_api: Any, remote_config: Path, pauses: list[float]
) -> None:
    kfp_api.frames = [{"state": "RUNNING"}]
    line = the_line(
        secvec("submit", "--host", kfp_api.url, "--config", str(remote_config), "--timeout", "2s")
    )
    run = kfp_api.items["runs"][0]["run_id"]
    assert (
        f"run {run}: has not ended after 2s and goes on; accepted: a longer --timeout, or --attach {run}"
        in line
    )


def test_an_unknown_run_cannot_be_attached_to(secvec: Command, kfp_api: Any) -> None:
    line = the_line(secvec("submit", "--host", kfp_api.url, "--attach", "nobody"))
    assert "cannot follow run nobody: not found (404: runs nobody not found)" in line


def test_an_interrupt_leaves_the_run_and_says_how_to_come_back(
    secvec: Command, kfp_api: Any, remote_config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import time
    from types import SimpleNamespace

    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    clock = SimpleNamespace(sleep=interrupt, monotonic=time.monotonic, time=time.time)
    monkeypatch.setattr("secvec.pipelines.run_following.time", clock)
    kfp_api.frames = [{"state": "RUNNING"}]
    done = secvec("submit", "--host", kfp_api.url, "--config", str(remote_config))
    run = kfp_api.items["runs"][0]["run_id"]
    assert done.status == 130
    assert done.err == f"secvec: interrupted; the run goes on: secvec submit --attach {run}\n"
    assert "RunService_TerminateRun" not in kfp_api.calls
