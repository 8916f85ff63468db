"""What `secvec submit` makes of an API that fails, refuses or is not there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from submitting import WRITES_OF_A_FIRST_SUBMIT, Command, the_line

from secvec.components.shared.errors import SecvecError
from secvec.pipelines.cluster import Patience, connect
from secvec.pipelines.pipeline_versions import ensure_version


@pytest.mark.parametrize("status", [500, 503, 429, 0])
def test_an_answer_that_is_lost_starts_no_second_run(
    *, secvec: Command, kfp_api: Any, remote_config: Path, pauses: list[float], status: int, monkeypatch: Any
) -> None:
    from kfp_api_server import Fault

    # Long for an answer on a busy machine, and shorter than the silence.
    monkeypatch.setattr("secvec.pipelines.cluster.Patience", lambda: Patience(answer_seconds=2))
    kfp_api.silence = 3.0
    kfp_api.faults = [Fault(name, status, done=True) for name in WRITES_OF_A_FIRST_SUBMIT]
    done = secvec("submit", "--host", kfp_api.url, "--config", str(remote_config), "--no-wait")
    assert done.status == 0, done
    assert {
        kind: len(kfp_api.items[kind]) for kind in ("experiments", "pipelines", "pipeline_versions", "runs")
    } == {
        "experiments": 1,
        "pipelines": 1,
        "pipeline_versions": 1,
        "runs": 1,
    }
    assert pauses == [0.5] * 4


def test_failures_that_pass_are_waited_for(kfp_api: Any, compiled: Any, pauses: list[float]) -> None:
    from kfp_api_server import Fault

    kfp_api.faults = [
        Fault("HealthzService_GetHealthz", 503, times=2),
        Fault("PipelineService_ListPipelines", 500, times=3),
        Fault("UploadPipelineVersion", 502, times=5),
    ]
    ensure_version(connect(kfp_api.url), compiled)
    assert pauses == [0.5, 1.0, 0.5, 1.0, 2.0, 0.5, 1.0, 2.0, 4.0, 8.0]


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (500, "cannot list experiments: the server keeps failing (500: planned)"),
        (0, "cannot list experiments: no answer in 0.2 s"),
        (400, "cannot list experiments: refused (400: planned)"),
        (404, "cannot list experiments: not found (404: planned)"),
        (401, "cannot list experiments: the token is missing, expired or refused (401: planned)"),
        (403, "may not list experiments (403: planned)"),
        (302, "answers with a page, not as the Kubeflow Pipelines API"),
        (200, "answers with a page, not as the Kubeflow Pipelines API"),
    ],
)
def test_each_failure_has_its_line(
    *,
    secvec: Command,
    kfp_api: Any,
    remote_config: Path,
    pauses: list[float],
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    said: str,
) -> None:
    from kfp_api_server import Fault

    patience = Patience(pauses=(0.1, 0.2), answer_seconds=0.2)
    monkeypatch.setattr("secvec.pipelines.cluster.Patience", lambda: patience)
    kfp_api.silence = 0.5
    kfp_api.faults = [Fault("ExperimentService_ListExperiments", status, times=99)]
    line = the_line(secvec("submit", "--host", kfp_api.url, "--config", str(remote_config)))
    assert said in line
    assert kfp_api.url in line
    assert kfp_api.writes == []
    # Only what may pass is tried again.
    assert pauses == ([0.1, 0.2] if status in (500, 0) else [])


def test_a_token_is_sent_and_its_expiry_is_said(
    secvec: Command, kfp_api: Any, remote_config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kfp_api.token = "fresh"
    monkeypatch.setenv("KFP_EXISTING_TOKEN", "fresh")
    assert secvec("submit", "--host", kfp_api.url, "--config", str(remote_config), "--no-wait").status == 0
    monkeypatch.setenv("KFP_EXISTING_TOKEN", "stale-and-secret")
    line = the_line(secvec("submit", "--host", kfp_api.url, "--config", str(remote_config)))
    assert "the token is missing, expired or refused (401: Unauthenticated: token is expired)" in line
    assert "KFP_EXISTING_TOKEN" in line
    assert "stale-and-secret" not in line


def test_a_pods_token_is_read_anew_for_each_request(
    *,
    secvec: Command,
    kfp_api: Any,
    remote_config: Path,
    judged: Any,
    pauses: list[float],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The kubelet replaces the file while a run is followed for hours."""
    judged("PASS")
    token_file = tmp_path / "token"
    token_file.write_text("first")
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(token_file))
    kfp_api.token = "first"
    kfp_api.frames = [{"state": "RUNNING"}, {"state": "SUCCEEDED"}]
    judge = kfp_api.on_run

    def rotate(run: dict[str, Any]) -> None:
        judge(run)
        kfp_api.token = "second"
        token_file.write_text("second")

    kfp_api.on_run = rotate
    assert secvec("submit", "--host", kfp_api.url, "--config", str(remote_config)).status == 0
    assert {"Bearer first", "Bearer second"} <= set(kfp_api.tokens)


@pytest.mark.parametrize(
    ("namespaces", "option", "said"),
    [
        (
            ("team-a",),
            "team-b",
            "may not list experiments in namespace 'team-b' (403: User 'me' is not authorized",
        ),
        (("team-a",), "", "has more than one user; accepted: a namespace"),
        ((), "team-a", "has a single user and no namespaces, so 'team-a' means nothing"),
    ],
)
def test_a_namespace_that_does_not_fit(
    *, secvec: Command, kfp_api: Any, remote_config: Path, namespaces: tuple[str, ...], option: str, said: str
) -> None:
    kfp_api.namespaces = namespaces
    options = ["--namespace", option] if option else []
    line = the_line(secvec("submit", "--host", kfp_api.url, "--config", str(remote_config), *options))
    assert said in line
    assert kfp_api.writes == []


@pytest.mark.parametrize(
    ("host", "said"),
    [
        ("http://127.0.0.1:9", "http://127.0.0.1:9: cannot be reached (Connection refused)"),
        ("http://no-such-host.invalid", "http://no-such-host.invalid: cannot be reached (no such host)"),
        ("kubeflow.example.com", "kubeflow.example.com: is no address; accepted: http://... or https://..."),
        ("", "no host; accepted: --host URL"),
    ],
)
def test_a_host_that_cannot_be_reached(
    *, secvec: Command, kfp_api: Any, remote_config: Path, pauses: list[float], host: str, said: str
) -> None:
    options = ["--host", host] if host else []
    assert said in the_line(secvec("submit", "--config", str(remote_config), *options))
    assert kfp_api.calls == []


def test_a_certificate_that_is_not_trusted(
    secvec: Command, kfp_api: Any, remote_config: Path, pauses: list[float]
) -> None:
    """An http server asked for https: TLS fails, at once and in one line."""
    host = kfp_api.url.replace("http://", "https://")
    line = the_line(secvec("submit", "--host", host, "--config", str(remote_config)))
    assert f"{host}: cannot be reached (" in line


def test_errors_that_are_no_failures_of_the_api_keep_their_traceback(kfp_api: Any) -> None:
    cluster = connect(kfp_api.url)
    with pytest.raises(AttributeError):
        cluster.call("do what cannot be done", cluster.api.runs.run_service_get_run, run_id=object)
    with pytest.raises(SecvecError):
        cluster.call("follow run x", cluster.api.runs.run_service_get_run, run_id="x")
