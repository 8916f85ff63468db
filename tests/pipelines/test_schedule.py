"""`secvec schedule` against a server that validates every request by Kubeflow's own description."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from secvec.components.shared.errors import SecvecError

Command = Callable[..., Any]
CREATE = "RecurringRunService_CreateRecurringRun"
DELETE = "RecurringRunService_DeleteRecurringRun"


def the_line(done: Any, status: int = 1) -> str:
    assert done.status == status, done
    (line,) = done.err.splitlines()
    assert line.startswith("secvec: error: ")
    return str(line)


@pytest.fixture
def create(secvec: Command, kfp_api: Any, remote_config: Path) -> Command:
    """Create or update the schedule `nightly`; what it wrote is counted anew each time."""

    def apply(*options: str, name: str = "nightly", at: tuple[str, ...] = ("--cron", "0 2 * * *")) -> Any:
        kfp_api.calls.clear()
        return secvec(
            "schedule", "create", name, "--host", kfp_api.url, "--config", str(remote_config), *at, *options
        )

    return apply


def schedules(kfp_api: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = kfp_api.items["recurring_runs"]
    return found


def test_a_schedule_runs_one_at_a_time_and_catches_nothing_up(
    create: Command, kfp_api: Any, compiled: Any
) -> None:
    done = create()
    assert done.status == 0
    assert "created  nightly: cron 0 0 2 * * *" in done.out
    (made,) = schedules(kfp_api)
    assert (made["max_concurrency"], made["no_catchup"], made["mode"]) == ("1", True, "ENABLE")
    assert made["trigger"] == {"cron_schedule": {"cron": "0 0 2 * * *"}}
    (version,) = kfp_api.items["pipeline_versions"]
    assert version["name"] == compiled.version
    assert made["pipeline_version_reference"]["pipeline_version_id"] == version["pipeline_version_id"]
    # The code's digest belongs to the pipeline's version, not to the schedule.
    assert "code_digest" not in made["runtime_config"]["parameters"]


@pytest.mark.parametrize(("said", "told"), [("", True), ("skip_unchanged: false\n", False)])
def test_a_scheduled_run_stops_when_nothing_has_changed_unless_told_not_to(
    create: Command, kfp_api: Any, remote_config: Path, said: str, told: bool
) -> None:
    remote_config.write_text(remote_config.read_text() + said)
    assert create().status == 0
    (made,) = schedules(kfp_api)
    assert made["runtime_config"]["parameters"]["skip_unchanged"] is told


def test_the_same_call_again_writes_nothing(create: Command, kfp_api: Any) -> None:
    create()
    before = json.dumps(kfp_api.items)
    done = create()
    assert (done.status, kfp_api.writes, json.dumps(kfp_api.items)) == (0, [], before)
    assert "unchanged  nightly" in done.out


@pytest.mark.parametrize("change", ["config", "cron", "interval", "cluster", "latest", "experiment"])
def test_a_change_creates_before_it_deletes(
    create: Command, kfp_api: Any, remote_config: Path, tmp_path: Path, change: str
) -> None:
    create()
    (old,) = schedules(kfp_api)
    options: dict[str, tuple[str, ...]] = {"latest": ("--latest",), "experiment": ("--experiment", "another")}
    at = {"cron": ("--cron", "30 2 * * *"), "interval": ("--interval", "12h")}
    if change == "config":
        remote_config.write_text(yaml.safe_dump(yaml.safe_load(remote_config.read_text()) | {"seed": 7}))
    if change == "cluster":
        (tmp_path / "cluster.yaml").write_text("service_account: trainer\n")
        options["cluster"] = ("--cluster", str(tmp_path / "cluster.yaml"))
    done = create(*options.get(change, ()), at=at.get(change, ("--cron", "0 2 * * *")))
    assert (done.status, done.out.startswith("updated")) == (0, True)
    assert kfp_api.writes[-2:] == [CREATE, DELETE]
    (new,) = schedules(kfp_api)
    assert new["recurring_run_id"] != old["recurring_run_id"]
    if change == "interval":
        assert new["trigger"] == {"periodic_schedule": {"interval_second": "43200"}}
    if change == "latest":
        assert "pipeline_version_id" not in new["pipeline_version_reference"]


@pytest.mark.parametrize(
    ("operation", "status", "left"),
    [(CREATE, 400, 1), (DELETE, 403, 2), ("RunService_ListRuns", 404, 2)],
)
def test_an_update_that_is_cut_off_leaves_a_schedule_and_can_be_finished(
    create: Command, kfp_api: Any, operation: str, status: int, left: int
) -> None:
    from kfp_api_server import Fault

    create()
    kfp_api.faults = [Fault(operation, status, times=99)]
    the_line(create(at=("--cron", "30 2 * * *")))
    assert len(schedules(kfp_api)) == left
    assert all(one["status"] == "ENABLED" for one in schedules(kfp_api))
    kfp_api.faults = []
    assert create(at=("--cron", "30 2 * * *")).out.startswith("updated")
    (one,) = schedules(kfp_api)
    assert one["trigger"] == {"cron_schedule": {"cron": "0 30 2 * * *"}}


def test_lost_answers_make_no_second_schedule(create: Command, kfp_api: Any, pauses: list[float]) -> None:
    from kfp_api_server import Fault

    kfp_api.faults = [Fault(CREATE, 503, done=True)]
    assert create().status == 0
    kfp_api.faults = [Fault(CREATE, 500, done=True), Fault(DELETE, 504, done=True)]
    assert create(at=("--interval", "7d")).status == 0
    assert len(schedules(kfp_api)) == 1
    assert pauses == [0.5] * 3


def test_pause_and_resume_write_only_what_changes(secvec: Command, create: Command, kfp_api: Any) -> None:
    create()
    said = []
    for verb in ("pause", "pause", "resume", "resume"):
        done = secvec("schedule", verb, "nightly", "--host", kfp_api.url)
        assert done.status == 0
        said.append(done.out.split()[0])
    assert said == ["updated", "unchanged", "updated", "unchanged"]
    writes = [name for name in kfp_api.writes if "RecurringRun" in name][1:]
    assert writes == ["RecurringRunService_DisableRecurringRun", "RecurringRunService_EnableRecurringRun"]


def test_a_paused_schedule_stays_paused(secvec: Command, create: Command, kfp_api: Any) -> None:
    create()
    secvec("schedule", "pause", "nightly", "--host", kfp_api.url)
    assert "unchanged" in create().out
    assert "paused" in create(at=("--cron", "30 2 * * *")).out
    (one,) = schedules(kfp_api)
    assert (one["status"], one["mode"]) == ("DISABLED", "DISABLE")


@pytest.mark.parametrize("verb", ["create", "delete"])
def test_a_run_under_way_outlives_its_schedule(
    secvec: Command, create: Command, kfp_api: Any, verb: str
) -> None:
    create()
    (old,) = schedules(kfp_api)
    run = {key: old[key] for key in ("experiment_id", "recurring_run_id")} | {
        "run_id": "r1",
        "state": "RUNNING",
        "display_name": "nightly-1",
        "created_at": "2026-01-01T00:00:00Z",
    }
    kfp_api.items["runs"].append(run)
    if verb == "create":
        done = create(at=("--cron", "30 2 * * *"))
    else:
        done = secvec("schedule", "delete", "nightly", "--host", kfp_api.url)
    assert done.status == 0
    assert "r1" in done.out
    assert run["state"] == "RUNNING"


def test_versions(secvec: Command, create: Command, kfp_api: Any, compiled: Any) -> None:
    assert "pipeline guarded-fine-tuning" in the_line(create("--latest"))
    assert "has no version 'v1'" in the_line_after_submit(create, "--version", "v1")
    assert create("--version", compiled.version).out.startswith("unchanged")
    assert "needs one version" in the_line(create("--version", "v1", "--latest"), status=2)


def the_line_after_submit(create: Command, *options: str) -> str:
    assert create().status == 0
    return the_line(create(*options))


def test_list_and_show(secvec: Command, create: Command, kfp_api: Any, compiled: Any) -> None:
    assert secvec("schedule", "list", "--host", kfp_api.url).out == "no schedules\n"
    for number in range(5):
        create(name=f"nightly-{number}")
    # What others made is not ours to show, change or delete.
    kfp_api.items["recurring_runs"].append(
        schedules(kfp_api)[0] | {"description": "mine", "recurring_run_id": "x"}
    )
    secvec("schedule", "pause", "nightly-3", "--host", kfp_api.url)
    listed = secvec("schedule", "list", "--host", kfp_api.url).out
    assert [line.split()[:2] for line in listed.splitlines()[1:]] == [
        [f"nightly-{number}", "paused" if number == 3 else "enabled"] for number in range(5)
    ]
    shown = secvec("schedule", "show", "nightly-0", "--host", kfp_api.url).out
    assert "cron 0 0 2 * * *" in shown
    assert compiled.version in shown
    assert "experiment  guarded-fine-tuning" in shown
    assert '"model_name": "assistant"' in shown
    assert shown.count("next ") == 3
    assert secvec("schedule", "delete", "nightly-0", "--host", kfp_api.url).status == 0
    assert [one["display_name"] for one in schedules(kfp_api)][-1] == "nightly-0"


@pytest.mark.parametrize("verb", ["show", "pause", "resume", "delete"])
def test_a_schedule_that_is_not_there(secvec: Command, create: Command, kfp_api: Any, verb: str) -> None:
    create(name="weekly")
    line = the_line(secvec("schedule", verb, "nightly", "--host", kfp_api.url))
    assert "schedule nightly: is not there; accepted: weekly" in line


@pytest.mark.parametrize(
    ("at", "said"),
    [
        (("--cron", "0 0 30 2 *"), "'0 0 30 2 *' never fires"),
        (("--cron", "0 0 0 31 4,6 ?"), "never fires"),
        # The next Sunday that is a 29 February comes after the five years that Kubeflow looks ahead.
        (("--cron", "0 0 29 2 */7"), "never fires within 5 years"),
        (("--cron", "61 * * * *"), "is no cron expression (bad minute)"),
        (("--cron", "0 0 * * 7"), "is no cron expression"),
        (("--cron", "0 0 L * *"), "is no cron expression"),
        (("--cron", "0 2 * *"), "is no cron expression"),
        (("--cron", "@daily"), "is no cron expression"),
        (("--interval", "0h"), "'0h' is no duration"),
        (("--interval", "-1h"), "'-1h' is no duration"),
        (("--interval", "30s"), "'30s' is too short"),
        (("--cron", "0 2 * * *", "--interval", "1h"), "either --cron or --interval"),
        ((), "either --cron or --interval"),
    ],
)
def test_a_time_that_never_comes_is_refused_before_any_request(
    create: Command, kfp_api: Any, at: tuple[str, ...], said: str
) -> None:
    assert said in the_line(create(at=at), status=2)
    assert kfp_api.calls == []


@pytest.mark.parametrize("name", ["Nightly", "a b", "x-", "x" * 64, "a%2f"])
def test_a_name_that_is_no_name(create: Command, kfp_api: Any, name: str) -> None:
    assert "is no schedule's name" in the_line(create(name=name), status=2)
    assert kfp_api.calls == []


def test_gpus_that_are_none_are_refused_before_any_request(
    create: Command, kfp_api: Any, tmp_path: Path
) -> None:
    path = tmp_path / "cluster.yaml"
    for count in (0, -1):
        path.write_text(f"accelerator: {{count: {count}}}\n")
        line = the_line(create("--cluster", str(path)), status=2)
        assert f"accelerator.count = {count}" in line
    assert kfp_api.calls == []


def test_namespaces(secvec: Command, create: Command, kfp_api: Any) -> None:
    kfp_api.namespaces = ("team-a", "team-b")
    assert create("--namespace", "team-a").status == 0
    assert create("--namespace", "team-b").out.startswith("created")
    assert "team-c" in the_line(secvec("schedule", "list", "--host", kfp_api.url, "--namespace", "team-c"))
    the_line(secvec("schedule", "list", "--host", kfp_api.url))
    listed = secvec("schedule", "list", "--host", kfp_api.url, "--namespace", "team-a").out
    assert len(listed.splitlines()) == 2


def test_two_of_one_name_are_said_and_both_deleted(secvec: Command, create: Command, kfp_api: Any) -> None:
    create()
    kfp_api.items["recurring_runs"].append(schedules(kfp_api)[0] | {"recurring_run_id": "twin"})
    line = the_line(secvec("schedule", "pause", "nightly", "--host", kfp_api.url))
    assert "has 2 schedules of that name" in line
    assert secvec("schedule", "delete", "nightly", "--host", kfp_api.url).status == 0
    assert schedules(kfp_api) == []


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("0 2 * * 1", "2026-11-30 02:00:00"),
        ("0 0 2 * * MON", "2026-11-30 02:00:00"),
        ("0 0 ? * sun", "2026-11-29 00:00:00"),
        ("*/20 * * * *", "2026-11-24 00:20:00"),
        ("0 0 29 2 *", "2028-02-29 00:00:00"),
        ("0 12 1-7 * 2", "2026-11-24 12:00:00"),
    ],
)
def test_when_a_cron_expression_fires(text: str, first: str) -> None:
    from datetime import UTC, datetime

    from secvec.pipelines.triggers import parse_trigger

    trigger = parse_trigger(cron=text, interval=None)
    assert len(trigger.cron.split()) == 6
    (time,) = trigger.next_times(1, after=datetime(2026, 11, 24, tzinfo=UTC))
    assert f"{time:%Y-%m-%d %H:%M:%S}" == first


def test_durations() -> None:
    from secvec.pipelines.triggers import format_duration, parse_duration

    for text in ("45s", "90m", "12h", "6d", "2w"):
        assert format_duration(parse_duration(text, where="x")) == text
    for text in ("", "h", "1.5h", "1h30m", "12"):
        with pytest.raises(SecvecError, match="is no duration"):
            parse_duration(text, where="x")
