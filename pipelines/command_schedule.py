"""``secvec schedule``: recurring runs of the pipeline on a Kubeflow cluster."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from secvec.pipelines.command_submit import (
    ClusterFile,
    Experiment,
    Host,
    Namespace,
    prepare,
    reach,
    read_settings,
    say,
)
from secvec.pipelines.usage_errors import usage_errors

if TYPE_CHECKING:
    from secvec.pipelines.cluster import Cluster
    from secvec.pipelines.pipeline_versions import PipelineVersion

schedule = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Recurring runs on a Kubeflow cluster: one at a time, none to catch up with, told apart by name.",
)
Name = Annotated[str, typer.Argument(metavar="NAME", help="The schedule's name.")]


@schedule.command(epilog="Example: `secvec schedule create nightly --config run.yaml --cron '0 2 * * *'`")
def create(
    name: Name,
    *,
    config: Annotated[
        Path, typer.Option("--config", "-c", metavar="FILE", help="YAML file with the run's parameters.")
    ],
    cron: Annotated[
        str | None, typer.Option(metavar="FIELDS", help="When, in UTC: '0 2 * * 1', or six fields.")
    ] = None,
    interval: Annotated[str | None, typer.Option(metavar="TIME", help="How often: 12h, 7d.")] = None,
    version: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Pipeline version uploaded before; default: the one of this installation."
        ),
    ] = None,
    latest: Annotated[
        bool, typer.Option("--latest", help="Whichever version is the latest each time.")
    ] = False,
    host: Host = None,
    namespace: Namespace = None,
    experiment: Experiment = None,
    cluster: ClusterFile = None,
) -> None:
    """Make a schedule, or make it what is said here: the same call again changes nothing."""
    from secvec.components.shared.errors import SecvecError
    from secvec.pipelines.schedule import WantedSchedule, apply_schedule, check_name
    from secvec.pipelines.triggers import parse_trigger

    with usage_errors():
        check_name(name)
        trigger = parse_trigger(cron=cron, interval=interval)
        if version and latest:
            raise SecvecError("needs one version", where="schedule", accepted="--version NAME or --latest")
        settings = read_settings(cluster, host=host, namespace=namespace, experiment=experiment)
        compiled, parameters = prepare(config, settings, scheduled=True)
    reached = reach(settings)
    _check_kubernetes(reached, settings)
    chosen = _choose_version(reached, compiled, name="" if latest else version)
    wanted = WantedSchedule(
        name=name, trigger=trigger, version=chosen, parameters=parameters, settings=settings
    )
    applied = apply_schedule(reached, wanted)
    console = Console()
    say(console, f"{applied.change}  {name}: {trigger}, version {chosen.name}, {_state(applied.schedule)}")
    _say_times(console, trigger.next_times(3))
    if applied.still_running:
        say(console, f"run {applied.still_running} of the schedule as it was before goes on")


@schedule.command(
    "list", epilog="Example: `secvec schedule list --host https://kubeflow.example.com/pipeline`"
)
def list_all(host: Host = None, namespace: Namespace = None, cluster: ClusterFile = None) -> None:
    """List the schedules."""
    from secvec.pipelines.schedule import list_schedules, trigger_of

    found = list_schedules(_reach(cluster, host, namespace))
    table = Table(box=None, pad_edge=False)
    for title in ("name", "state", "when", "next (UTC)"):
        table.add_column(title, overflow="fold")
    for one in found:
        trigger = trigger_of(one)
        times = [] if _state(one) == "paused" else trigger.next_times(1)
        table.add_row(one.display_name, _state(one), str(trigger), _format(times[0]) if times else "")
    Console().print(table if found else "no schedules")


@schedule.command(epilog="Example: `secvec schedule show nightly`")
def show(name: Name, host: Host = None, namespace: Namespace = None, cluster: ClusterFile = None) -> None:
    """Show one schedule: when, what and with which parameters."""
    from secvec.pipelines.schedule import find_schedule, name_experiment, name_version, trigger_of

    reached = _reach(cluster, host, namespace)
    found = find_schedule(reached, name)
    console, trigger = Console(), trigger_of(found)
    say(console, f"name        {found.display_name}")
    say(console, f"state       {_state(found)}")
    say(console, f"when        {trigger}")
    say(console, f"version     {name_version(reached, found)}")
    say(console, f"experiment  {name_experiment(reached, found)}")
    say(console, f"created     {_format(found.created_at)}")
    if _state(found) == "enabled":
        _say_times(console, trigger.next_times(3))
    console.print_json(data=found.runtime_config.parameters or {})


@schedule.command(epilog="Example: `secvec schedule pause nightly`")
def pause(name: Name, host: Host = None, namespace: Namespace = None, cluster: ClusterFile = None) -> None:
    """Start no more runs until it is resumed; a run that is under way goes on."""
    _set_paused(name, _reach(cluster, host, namespace), paused=True)


@schedule.command(epilog="Example: `secvec schedule resume nightly`")
def resume(name: Name, host: Host = None, namespace: Namespace = None, cluster: ClusterFile = None) -> None:
    """Start runs again; those that were missed are not made up for."""
    _set_paused(name, _reach(cluster, host, namespace), paused=False)


@schedule.command(epilog="Example: `secvec schedule delete nightly`")
def delete(name: Name, host: Host = None, namespace: Namespace = None, cluster: ClusterFile = None) -> None:
    """Delete a schedule; its runs stay, also one that is under way."""
    from secvec.pipelines.schedule import delete_schedule

    running = delete_schedule(_reach(cluster, host, namespace), name)
    say(Console(), f"deleted  {name}" + (f"; its run {running} goes on" if running else ""))


def _choose_version(cluster: Cluster, compiled: Any, *, name: str | None) -> PipelineVersion:
    from secvec.pipelines.pipeline_versions import ensure_version, find_version

    return ensure_version(cluster, compiled) if name is None else find_version(cluster, name)


def _check_kubernetes(cluster: Cluster, settings: Any) -> None:
    from secvec.pipelines.kubernetes_checks import check_objects, open_kubernetes

    if kubernetes := open_kubernetes(settings.kube_context, cluster.namespace or settings.pod_namespace):
        check_objects(kubernetes, settings)


def _reach(path: Path | None, host: str | None, namespace: str | None) -> Cluster:
    with usage_errors():
        settings = read_settings(path, host=host, namespace=namespace)
    return reach(settings)


def _set_paused(name: str, cluster: Cluster, *, paused: bool) -> None:
    from secvec.pipelines.schedule import set_paused

    change = set_paused(cluster, name, paused=paused)
    say(Console(), f"{change}  {name}: {'paused' if paused else 'enabled'}")


def _state(found: Any) -> str:
    from secvec.pipelines.schedule import is_paused

    return "paused" if is_paused(found) else "enabled"


def _say_times(console: Console, times: list[datetime]) -> None:
    for moment in times:
        say(console, f"next        {_format(moment)} UTC")


def _format(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S}"
