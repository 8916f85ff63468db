"""``secvec submit``: run the pipeline on a Kubeflow cluster and exit with the gate's verdict."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from secvec.pipelines.guarded_fine_tuning.config import read_run_config
from secvec.pipelines.usage_errors import usage_errors

if TYPE_CHECKING:
    from secvec.pipelines.cluster import Cluster
    from secvec.pipelines.cluster_settings import ClusterSettings
    from secvec.pipelines.run_following import Watch

NOT_PROMOTED, INTERRUPTED = 3, 130
EPILOG = "Example: `secvec submit --host https://kfp.example.com --config run.yaml --cluster gpu.yaml`"

Host = Annotated[
    str | None,
    typer.Option("--host", metavar="URL", help="Kubeflow Pipelines API; default: KF_PIPELINES_ENDPOINT."),
]
Namespace = Annotated[
    str | None, typer.Option(metavar="NAME", help="Your namespace, on a cluster with more than one user.")
]
Experiment = Annotated[
    str | None, typer.Option(metavar="NAME", help="KFP experiment; made if it is not there.")
]
ClusterFile = Annotated[
    Path | None,
    typer.Option(
        "--cluster",
        metavar="FILE",
        help="YAML file with what differs between clusters: images, GPUs, memory, secrets, ...",
    ),
]
RunConfigFile = Annotated[
    Path | None, typer.Option("--config", "-c", metavar="FILE", help="YAML file with the run's parameters.")
]


def submit(
    *,
    config: RunConfigFile = None,
    host: Host = None,
    namespace: Namespace = None,
    experiment: Experiment = None,
    cluster: ClusterFile = None,
    attach: Annotated[
        str | None, typer.Option(metavar="RUN", help="Follow a run that was submitted before; no --config.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Follow the run until it ends.")] = True,
    timeout: Annotated[
        str | None, typer.Option(metavar="TIME", help="Stop following after this time: 90m, 12h.")
    ] = None,
) -> None:
    """Run the pipeline on a Kubeflow cluster, follow it, and exit with the gate's verdict.

    Tokens are never options: a pod's service-account token is found by itself, any other one is taken from
    KFP_EXISTING_TOKEN.
    """
    from secvec.components.shared.run_records import check_readable
    from secvec.pipelines.run_following import Watch
    from secvec.pipelines.triggers import parse_duration

    console = Console()
    with usage_errors():
        seconds = parse_duration(timeout, where="--timeout") if timeout else None
        settings = read_settings(cluster, host=host, namespace=namespace, experiment=experiment)
        given = _read_given(config, attach)
        prepared = prepare(given, settings) if given else None
    reached = reach(settings)
    if prepared and wait:
        check_readable(prepared[1]["store"])
    watch = Watch(timeout_seconds=seconds, kubernetes=_open_kubernetes(settings, reached))
    run_id = attach or ""
    if prepared is not None:
        run_id = _start(reached, prepared, settings=settings, watch=watch, console=console)
    if wait:
        spec = prepared[0].spec if prepared else None
        _follow(reached, run_id, spec=spec, watch=watch, console=console)


def read_settings(path: Path | None, **options: str | None) -> ClusterSettings:
    """Read the cluster's file, over which options win.

    Raises:
        SecvecError: The file or an option is not accepted.
    """
    from secvec.pipelines.cluster_settings import read_cluster_settings

    return read_cluster_settings(path, options={key: value for key, value in options.items() if value})


def prepare(
    config: Path, settings: ClusterSettings, *, scheduled: bool = False
) -> tuple[Any, dict[str, Any]]:
    """Give the compiled pipeline and the parameters of a run.

    Args:
        config: The run's file.
        settings: The cluster's settings.
        scheduled: Whether nobody asks for this run in particular: it stops early if nothing has changed,
            unless its file says otherwise.

    Raises:
        SecvecError: The config, or what it says about the cluster, is not accepted.
    """
    from secvec.pipelines.pipeline_versions import compile_pipeline
    from secvec.pipelines.submit import make_parameters

    run = read_run_config(config)
    if scheduled and run.skip_unchanged is None:
        run = run.model_copy(update={"skip_unchanged": True})
    compiled = compile_pipeline(workspace=settings.workspace_claim is not None, sharded=run.sharded)
    return compiled, make_parameters(run, settings, compiled=compiled, where=str(config))


def reach(settings: ClusterSettings) -> Cluster:
    """Connect to the cluster of some settings.

    Raises:
        SecvecError: It cannot be reached, or refuses.
    """
    from secvec.pipelines.cluster import connect

    return connect(settings.host, namespace=settings.namespace, ca_certificate=settings.ca_certificate)


def _read_given(config: Path | None, attach: str | None) -> Path | None:
    from secvec.components.shared.errors import SecvecError

    if (config is None) == (attach is None):
        raise SecvecError("needs a run", where="submit", accepted="either --config FILE or --attach RUN")
    return config


def _open_kubernetes(settings: ClusterSettings, cluster: Cluster) -> Any:
    from secvec.pipelines.kubernetes_checks import open_kubernetes

    return open_kubernetes(settings.kube_context, cluster.namespace or settings.pod_namespace)


def _start(
    cluster: Cluster,
    prepared: tuple[Any, dict[str, Any]],
    *,
    settings: ClusterSettings,
    watch: Watch,
    console: Console,
) -> str:
    from secvec.pipelines.kubernetes_checks import check_objects
    from secvec.pipelines.submit import submit_run

    if watch.kubernetes:
        check_objects(watch.kubernetes, settings)
    compiled, parameters = prepared
    run = submit_run(cluster, compiled=compiled, parameters=parameters, settings=settings)
    say(console, f"version  {run.version.name}")
    say(console, f"run      {run.run_id}  {cluster.host}/#/runs/details/{run.run_id}")
    return run.run_id


def _follow(cluster: Cluster, run_id: str, *, spec: Any, watch: Watch, console: Console) -> None:
    from secvec.pipelines.run_following import follow_run
    from secvec.pipelines.run_verdict import WELL_ENDED, read_verdict, show_verdict

    try:
        ended = follow_run(cluster, run_id, console=console, spec=spec, watch=watch)
    except KeyboardInterrupt:
        print(f"secvec: interrupted; the run goes on: secvec submit --attach {run_id}", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    verdict = read_verdict(ended)
    show_verdict(verdict, console=console)
    if verdict["outcome"] not in WELL_ENDED:
        raise typer.Exit(NOT_PROMOTED)


def say(console: Console, line: str) -> None:
    """Print one line as it is, however long."""
    console.print(line, highlight=False, markup=False, soft_wrap=True)
