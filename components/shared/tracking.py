"""MLflow: where a run's parameters, metrics and files are shown to people, and where models are registered.

``MLFLOW_TRACKING_URI`` names the store (``sqlite:///...`` or a server). Figures logged here are for reading;
the gate believes only what is signed. Without the variable nothing is tracked.
"""

from __future__ import annotations

import functools
import logging
import math
import os
import re
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from secvec.components.shared.errors import SecvecError
from secvec.components.shared.tracking_files import made_whole

URI_VARIABLE = "MLFLOW_TRACKING_URI"
RUN_VARIABLE = "MLFLOW_RUN_ID"
EXPERIMENT_VARIABLE = "MLFLOW_EXPERIMENT_NAME"
EXPERIMENT_ID_VARIABLE = "MLFLOW_EXPERIMENT_ID"
KFP_RUN_VARIABLE = "KFP_RUN_ID"
KFP_RUN_TAG = "secvec.kfp_run"
DEFAULT_EXPERIMENT = "secvec"
_ACCEPTED = f"{URI_VARIABLE}: sqlite:///FILE in a writable folder, or the http(s):// URL of a running server"
_PROBE_SECONDS = 5
_CREDENTIALS = re.compile(r"(\w://)[^/@\s]*@")
_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433, "http": 80, "https": 443}


def connect(tracking_uri: str = "") -> Any:
    """Open an MLflow client after checking, within seconds, that the store answers.

    Args:
        tracking_uri: The store; ``MLFLOW_TRACKING_URI`` by default.

    Returns:
        An ``mlflow.MlflowClient``.

    Raises:
        SecvecError: No store is configured, or it does not answer.
    """
    uri = tracking_uri or os.environ.get(URI_VARIABLE, "")
    if not uri:
        raise SecvecError("no tracking store is configured", where=URI_VARIABLE, accepted=_ACCEPTED)
    return _connect_once(uri)


def initialise(tracking_uri: str, artifact_root: str, *, experiment: str = DEFAULT_EXPERIMENT) -> None:
    """Create the store and the experiment once, before parallel steps race to do it.

    Args:
        tracking_uri: ``sqlite:///...`` or a server.
        artifact_root: URI under which the experiment keeps its files; a server keeps its own choice when
            this is empty.
        experiment: The experiment's name.

    Raises:
        SecvecError: The store does not answer.
    """
    with made_whole(tracking_uri) as uri:
        client = connect(uri)
        with mlflow_errors(uri):
            _find_experiment(client, experiment, artifact_root)


def log_params(values: Mapping[str, Any], *, prefix: str = "") -> None:
    """Log parameters to the pipeline's run; steps that share it tell theirs apart by a prefix.

    Raises:
        SecvecError: MLflow does not answer or refuses, for example because another value is logged already.
    """
    from mlflow.entities import Param

    _log(params=[Param(f"{prefix}{key}", str(value)[:6000]) for key, value in values.items()])


def log_metrics(values: Mapping[str, float | None], *, step: int = 0) -> None:
    """Log figures to the pipeline's run; one that is not finite becomes a tag that says so, never a point.

    Raises:
        SecvecError: MLflow does not answer.
    """
    if not current_run():
        return
    from mlflow.entities import Metric, RunTag

    now = int(time.time() * 1000)
    known = {key: float(value) for key, value in values.items() if value is not None}
    _log(
        metrics=[Metric(key, value, now, step) for key, value in known.items() if math.isfinite(value)],
        tags=[RunTag(f"not_finite.{key}", str(v)) for key, v in known.items() if not math.isfinite(v)],
    )


def log_tags(values: Mapping[str, str]) -> None:
    """Set tags on the pipeline's run.

    Raises:
        SecvecError: MLflow does not answer.
    """
    if not current_run():
        return
    from mlflow.entities import RunTag

    _log(tags=[RunTag(key, str(value)[:8000]) for key, value in values.items()])


def log_file(path: Path, *, folder: str = "") -> None:
    """Copy one file to the artifacts of the pipeline's run.

    Raises:
        SecvecError: The file or the artifact store cannot be reached.
    """
    if current_run():
        with mlflow_errors(str(path)):
            connect().log_artifact(current_run(), str(path), folder or None)


def log_table(columns: Mapping[str, list[Any]], name: str) -> None:
    """Keep a table with the pipeline's run, which MLflow shows beside those of other runs.

    Args:
        columns: Values by column, all of one length.
        name: Its place among the run's artifacts, ending in ``.json``.

    Raises:
        SecvecError: MLflow does not answer.
    """
    if columns and current_run():
        client = connect()
        with mlflow_errors(client.tracking_uri):
            client.log_table(current_run(), data=dict(columns), artifact_file=name)


def current_run() -> str:
    """Id of the run that this pipeline logs to; empty when nothing is tracked.

    It is the run that ``MLFLOW_RUN_ID`` names; without it the one tagged with the KFP run (``KFP_RUN_ID``),
    which whichever step comes first opens, in the experiment that ``MLFLOW_EXPERIMENT_ID`` or
    ``MLFLOW_EXPERIMENT_NAME`` says.

    Raises:
        SecvecError: The store does not answer.
    """
    uri, run_id, kfp_run = (
        os.environ.get(name, "") for name in (URI_VARIABLE, RUN_VARIABLE, KFP_RUN_VARIABLE)
    )
    if not uri or run_id or not kfp_run:
        return run_id if uri else ""
    return _find_or_open_run(uri, kfp_run)


def end_run(*, succeeded: bool) -> None:
    """End the pipeline's run if steps opened it; one that ``MLFLOW_RUN_ID`` names is ended by whoever did.

    Raises:
        SecvecError: MLflow does not answer.
    """
    if current_run() and not os.environ.get(RUN_VARIABLE):
        client = connect()
        with mlflow_errors(client.tracking_uri):
            client.set_terminated(current_run(), "FINISHED" if succeeded else "FAILED")


def find_run_tags(key: str) -> list[str]:
    """Values of one tag over all runs of all experiments.

    Raises:
        SecvecError: The store does not answer.
    """
    client = connect()
    with mlflow_errors(client.tracking_uri):
        experiments = [one.experiment_id for one in client.search_experiments()]
        found: list[str] = []
        token: str | None = ""
        while token is not None:
            page = client.search_runs(experiments, f"tags.`{key}` LIKE '%'", page_token=token or None)
            found += [run.data.tags[key] for run in page]
            token = page.token or None
        return found


def hide_password(uri: str) -> str:
    """Give a URI without the user and password it may hold, for logs, errors and verdicts."""
    return _CREDENTIALS.sub(r"\1", uri)


@contextmanager
def mlflow_errors(where: str, *, accepted: str = _ACCEPTED) -> Iterator[None]:
    """Turn what MLflow and its database layer raise into one line.

    Raises:
        SecvecError: For any of it.
    """
    try:
        yield
    except SecvecError:
        raise
    except Exception as error:  # MLflow lets errors of requests, sqlalchemy, boto3 and the system through
        reason = hide_password(" ".join(str(error).split()))[:240] or type(error).__name__
        raise SecvecError(f"MLflow: {reason}", where=hide_password(where), accepted=accepted) from error


@functools.cache
def _connect_once(uri: str) -> Any:
    _check_reachable(uri)
    with mlflow_errors(uri), _impatient():
        client = _import_mlflow().MlflowClient(tracking_uri=uri, registry_uri=uri)
        client.search_experiments(max_results=1)
    return client


def _log(**batch: Any) -> None:
    if any(batch.values()):
        client = connect()
        with mlflow_errors(client.tracking_uri):
            client.log_batch(current_run(), **batch)


@functools.cache
def _find_or_open_run(uri: str, kfp_run: str) -> str:
    client = connect(uri)
    with mlflow_errors(uri):
        experiment = os.environ.get(EXPERIMENT_ID_VARIABLE) or _find_experiment(
            client, os.environ.get(EXPERIMENT_VARIABLE) or DEFAULT_EXPERIMENT
        )
        if not _find_tagged(client, experiment, kfp_run):
            client.create_run(experiment, run_name=f"secvec {kfp_run}", tags={KFP_RUN_TAG: kfp_run})
        # Parallel steps may both have created one: all of them settle on the eldest.
        return _find_tagged(client, experiment, kfp_run)[0]


def _find_tagged(client: Any, experiment: str, kfp_run: str) -> list[str]:
    quoted = kfp_run.replace("'", "")
    runs = client.search_runs(
        [experiment],
        f"tags.`{KFP_RUN_TAG}` = '{quoted}'",
        order_by=["attributes.start_time ASC", "run_id ASC"],
    )
    return [run.info.run_id for run in runs]


def _find_experiment(client: Any, name: str, artifact_root: str = "") -> str:
    from mlflow.exceptions import MlflowException

    if found := client.get_experiment_by_name(name):
        return str(found.experiment_id)
    try:
        return str(client.create_experiment(name, artifact_location=artifact_root or None))
    except MlflowException:
        if found := client.get_experiment_by_name(name):  # another step was quicker
            return str(found.experiment_id)
        raise


def _check_reachable(uri: str) -> None:
    """Open a connection first: MLflow itself would retry an unreachable database for many minutes."""
    parts = urlsplit(uri)
    port = _PORTS.get(parts.scheme.split("+")[0])
    if not parts.hostname or port is None:
        return
    try:
        socket.create_connection((parts.hostname, parts.port or port), timeout=_PROBE_SECONDS).close()
    except (OSError, ValueError) as error:
        raise SecvecError(
            f"MLflow is not reachable ({error})", where=hide_password(uri), accepted=_ACCEPTED
        ) from error


@contextmanager
def _impatient() -> Iterator[None]:
    """Let the first request to a server fail within seconds; MLflow's own default is minutes."""
    limits = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": str(_PROBE_SECONDS)}
    before = {name: os.environ.get(name) for name in limits}
    os.environ.update(limits)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _import_mlflow() -> Any:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    for noisy in ("mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    import mlflow

    return mlflow
