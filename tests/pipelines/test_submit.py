"""`secvec submit` against a server that validates every request by Kubeflow's own description."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from secvec.components.shared.artifacts import building, publish
from secvec.components.shared.errors import SecvecError
from secvec.components.shared.run_records import record_verdict
from secvec.pipelines.cluster import Patience, connect
from secvec.pipelines.pipeline_versions import ensure_version

Command = Callable[..., Any]
WRITES_OF_A_FIRST_SUBMIT = [
    "ExperimentService_CreateExperiment",
    "PipelineService_CreatePipeline",
    "UploadPipelineVersion",
    "RunService_CreateRun",
]


def the_line(done: Any, status: int = 1) -> str:
    assert done.status == status, done
    (line,) = done.err.splitlines()
    assert line.startswith("secvec: ")
    return str(line)


def task(name: str, state: str, *, ended: bool = False) -> dict[str, Any]:
    """A task as Kubeflow gives it: what has not happened yet happened in 1970."""
    return {
        "display_name": name,
        "state": state,
        "start_time": "2026-01-01T00:00:05Z",
        "end_time": "2026-01-01T00:01:10Z" if ended else "1970-01-01T00:00:00Z",
    }


def frame(state: str, *tasks: dict[str, Any]) -> dict[str, Any]:
    return {"state": state, "run_details": {"task_details": list(tasks)}}


@pytest.fixture
def judged(kfp_api: Any) -> Callable[..., None]:
    """Let each run's gate leave a verdict in the store, as the real one does."""

    def arrange(outcome: str, *, model_name: str = "assistant") -> None:
        reason = {
            "check": "harm_rate",
            "outcome": outcome,
            "figure": 0.5,
            "bound": 0.02,
            "source": "statistics",
        }
        verdict = {
            "outcome": outcome,
            "model_name": model_name,
            "model_version": "7",
            "aliases": ["champion"],
        }

        def judge(run: dict[str, Any]) -> None:
            store = run["runtime_config"]["parameters"]["store"]
            with building("verdict", store) as folder:
                (folder / "verdict.json").write_text(json.dumps(verdict | {"reasons": [reason]}))
                published = publish(folder, kind="verdict", store=store)
            record_verdict(published, store=store, run=run["run_id"])

        kfp_api.on_run = judge

    return arrange


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
    said = [
        line for line in done.out.splitlines() if "ingest-data" in line or "train-security-vector" in line
    ]
    assert [line.split()[:1] for line in said] == [
        [word] for word in ("ingest-data", "ingest-data", "train-security-vector", "train-security-vector")
    ] or len(said) == 4
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


def test_a_store_that_cannot_be_read_is_said_before_the_run_starts(
    secvec: Command, kfp_api: Any, remote_config: Path
) -> None:
    values = yaml.safe_load(remote_config.read_text()) | {"store": "s3://no-such-bucket/store"}
    remote_config.write_text(yaml.safe_dump(values))
    assert "no-such-bucket" in the_line(
        secvec("submit", "--host", kfp_api.url, "--config", str(remote_config))
    )
    assert kfp_api.writes == []
    # Whoever does not wait for the verdict need not read it.
    assert secvec("submit", "--host", kfp_api.url, "--config", str(remote_config), "--no-wait").status == 0


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


def test_the_same_pipeline_is_uploaded_once(
    secvec: Command, kfp_api: Any, remote_config: Path, compiled: Any
) -> None:
    for _ in range(2):
        secvec("submit", "--host", kfp_api.url, "--config", str(remote_config), "--no-wait")
    assert kfp_api.writes == [*WRITES_OF_A_FIRST_SUBMIT, "RunService_CreateRun"]
    (version,) = kfp_api.items["pipeline_versions"]
    assert version["name"] == compiled.version


def test_a_version_is_found_behind_many_pages(kfp_api: Any, compiled: Any) -> None:
    cluster = connect(kfp_api.url)
    first = ensure_version(cluster, compiled)
    # A server that knows nothing of filters gives everything, two a page.
    kfp_api._predicates = lambda text: []
    for number in range(5):
        decoy = {"name": f"v{number}", "display_name": f"v{number}", "pipeline_id": first.pipeline_id}
        kfp_api.items["pipeline_versions"].insert(0, decoy | {"pipeline_version_id": str(number)})
    assert ensure_version(cluster, compiled) == first
    assert kfp_api.writes.count("UploadPipelineVersion") == 1


def test_the_race_for_a_name_is_lost_quietly(kfp_api: Any, compiled: Any, pauses: list[float]) -> None:
    """Another one uploads the same version between our look and our upload: 409, and it is taken."""
    from kfp_api_server import Fault

    cluster = connect(kfp_api.url)
    kfp_api.faults = [
        Fault("PipelineService_CreatePipeline", 409, done=True),
        Fault("UploadPipelineVersion", 409, done=True),
    ]
    found = ensure_version(cluster, compiled)
    assert found.version_id == kfp_api.items["pipeline_versions"][0]["pipeline_version_id"]
    assert pauses == []


@pytest.mark.parametrize("status", [500, 503, 429, 0])
def test_an_answer_that_is_lost_starts_no_second_run(
    *, secvec: Command, kfp_api: Any, remote_config: Path, pauses: list[float], status: int, monkeypatch: Any
) -> None:
    from kfp_api_server import Fault

    monkeypatch.setattr("secvec.pipelines.cluster.Patience", lambda: Patience(answer_seconds=0.5))
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


def test_everything_lies_in_the_users_namespace(secvec: Command, kfp_api: Any, remote_config: Path) -> None:
    kfp_api.namespaces = ("team-a",)
    options = ["--namespace", "team-a", "--experiment", "nightly tests", "--no-wait"]
    assert secvec("submit", "--host", kfp_api.url, "--config", str(remote_config), *options).status == 0
    (experiment,) = kfp_api.items["experiments"]
    assert (experiment["namespace"], experiment["display_name"]) == ("team-a", "nightly tests")
    assert [one["namespace"] for one in kfp_api.items["pipelines"]] == ["team-a"]


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


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"training_data": ["rows.jsonl"]}, "training_data[0] = "),
        ({"harm_prompts": "prompts.jsonl"}, "harm_prompts = "),
        ({"base_model": "./base"}, "base_model = "),
        ({"store": ""}, "store = '' cannot be written by pods; accepted: s3://..."),
        ({"store": "https://example.com/store"}, "cannot be written by pods"),
        ({"image": "No Image"}, "image = 'No Image' is no image's name"),
    ],
)
def test_what_no_pod_could_use_is_refused_before_any_request(
    secvec: Command, kfp_api: Any, remote_config: Path, change: dict[str, Any], said: str
) -> None:
    remote_config.write_text(yaml.safe_dump(yaml.safe_load(remote_config.read_text()) | change))
    line = the_line(secvec("submit", "--host", kfp_api.url, "--config", str(remote_config)), status=2)
    assert said in line
    assert str(remote_config) in line
    assert kfp_api.calls == []


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"accelerator": {"count": 0}}, "accelerator.count = 0"),
        ({"accelerator": {"count": -1}}, "accelerator.count = -1"),
        ({"accelerator": {"count": True}}, "accelerator.count = True"),
        ({"gpus": 1}, "unknown key 'gpus'"),
        ({"namespace": "Team A"}, "namespace = 'Team A'"),
        ({"custody_secret": ""}, "custody_secret = ''"),
        ({"training_memory": "a lot"}, "training_memory = 'a lot'"),
        ({"tolerations": [{"effect": "Never"}]}, "tolerations.0.effect = 'Never'"),
        ({"image": "registry.example.com/Bad Name"}, "image = "),
        ([], "is no mapping of keys to values"),
    ],
)
def test_a_clusters_file_is_checked_before_any_request(
    *, secvec: Command, kfp_api: Any, remote_config: Path, tmp_path: Path, values: Any, said: str
) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(yaml.safe_dump(values))
    done = secvec("submit", "--host", kfp_api.url, "--config", str(remote_config), "--cluster", str(path))
    line = the_line(done, status=2)
    assert said in line
    assert str(path) in line
    assert "accepted: " in line
    assert kfp_api.calls == []


@pytest.mark.parametrize("options", [(), ("--config", "x", "--attach", "y"), ("--timeout", "soon")])
def test_options_that_do_not_fit(secvec: Command, kfp_api: Any, options: tuple[str, ...]) -> None:
    the_line(secvec("submit", "--host", kfp_api.url, *options), status=2)
    assert kfp_api.calls == []


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


def test_errors_that_are_no_failures_of_the_api_keep_their_traceback(kfp_api: Any) -> None:
    cluster = connect(kfp_api.url)
    with pytest.raises(AttributeError):
        cluster.call("do what cannot be done", cluster.api.runs.run_service_get_run, run_id=object)
    with pytest.raises(SecvecError):
        cluster.call("follow run x", cluster.api.runs.run_service_get_run, run_id="x")


def test_a_clusters_file_becomes_parameters(
    secvec: Command, kfp_api: Any, remote_config: Path, tmp_path: Path
) -> None:
    """One pipeline, two clusters: what differs is in the run's parameters, and the version is the same."""
    (tmp_path / "gpu.yaml").write_text(
        "image: registry.example.com/secvec-cpu:1\ntraining_image: registry.example.com/secvec-gpu@sha256:"
        + "a" * 64
        + "\naccelerator: {type: nvidia.com/gpu, count: 4}\ncustody_secret: custody-of-team-a\n"
        "tolerations: [{key: nvidia.com/gpu, operator: Exists, effect: NoSchedule}]\n"
        "node_selector: {zone: a}\nservice_account: trainer\npipeline_root: s3://bucket/kfp\n"
    )
    (tmp_path / "cpu.yaml").write_text("image: localhost:5000/secvec-cpu:1\n")
    for name in ("gpu", "cpu"):
        options = ("--cluster", str(tmp_path / f"{name}.yaml"), "--no-wait")
        assert secvec("submit", "--host", kfp_api.url, "--config", str(remote_config), *options).status == 0
    gpu, cpu = kfp_api.items["runs"]
    assert gpu["pipeline_version_reference"] == cpu["pipeline_version_reference"]
    told = gpu["runtime_config"]["parameters"]
    assert told["accelerator_count"] == "4"  # a string: KFP's driver reads a number here as nothing
    assert told["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert told["custody_secret"] == "custody-of-team-a"
    assert (gpu["service_account"], gpu["runtime_config"]["pipeline_root"]) == ("trainer", "s3://bucket/kfp")
    assert cpu["runtime_config"]["parameters"].keys() & {"accelerator_count", "tolerations"} == set()
    told = cpu["runtime_config"]["parameters"]
    assert told["image"] == told["training_image"] == "localhost:5000/secvec-cpu:1"


def test_a_claim_is_mounted_where_one_is_named(
    secvec: Command, kfp_api: Any, remote_config: Path, tmp_path: Path
) -> None:
    """With a claim, whatever its name, it is one version; without one, another."""
    for name in ("a", "b", ""):
        path = tmp_path / f"cluster-{name}.yaml"
        path.write_text(f"workspace_claim: {name}\n" if name else "{}\n")
        options = ("--cluster", str(path), "--no-wait")
        assert secvec("submit", "--host", kfp_api.url, "--config", str(remote_config), *options).status == 0
    first, second, without = kfp_api.items["runs"]
    assert first["pipeline_version_reference"] == second["pipeline_version_reference"]
    assert first["pipeline_version_reference"] != without["pipeline_version_reference"]
    assert second["runtime_config"]["parameters"]["workspace_claim"] == "b"
    assert "workspace_claim" not in without["runtime_config"]["parameters"]


def test_a_setting_that_the_pipeline_does_not_take_is_refused(
    *, secvec: Command, kfp_api: Any, remote_config: Path, tmp_path: Path, compiled: Any, monkeypatch: Any
) -> None:
    without = drop(compiled, "environment")
    monkeypatch.setattr("secvec.pipelines.pipeline_versions.compile_pipeline", lambda **_: without)
    (tmp_path / "cluster.yaml").write_text("environment: settings\n")
    options = ("--cluster", str(tmp_path / "cluster.yaml"))
    line = the_line(
        secvec("submit", "--host", kfp_api.url, "--config", str(remote_config), *options), status=2
    )
    assert "takes no environment" in line
    assert kfp_api.calls == []


def drop(compiled: Any, name: str) -> Any:
    """The pipeline with one parameter less."""
    from secvec.pipelines.pipeline_versions import CompiledPipeline

    spec = yaml.safe_load(yaml.safe_dump(dict(compiled.spec)))
    spec["root"]["inputDefinitions"]["parameters"].pop(name, None)
    return CompiledPipeline(content=yaml.safe_dump(spec).encode(), spec=spec)


def test_the_same_code_compiles_to_the_same_bytes(compiled: Any, tmp_path: Path) -> None:
    """In another process, with other hashes: the digest names a version, so it must not depend on either."""
    import os
    import subprocess
    import sys

    code = (
        "from secvec.pipelines.pipeline_versions import compile_pipeline; print(compile_pipeline().version)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo"},
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == compiled.version


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
