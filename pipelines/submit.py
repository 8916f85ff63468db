"""Submitting: one run of the pipeline on a Kubeflow cluster, from a run config and a cluster's settings."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from secvec.components.shared.errors import SecvecError
from secvec.pipelines.cluster import Cluster, named
from secvec.pipelines.cluster_settings import IMAGE, ClusterSettings
from secvec.pipelines.guarded_fine_tuning.config import SOURCE_FIELDS, RunConfig
from secvec.pipelines.pipeline_versions import (
    CompiledPipeline,
    PipelineVersion,
    ensure_experiment,
    ensure_version,
)

_REMOTE = ("s3://", "https://")


@dataclass(frozen=True)
class SubmittedRun:
    """A run on the cluster.

    Attributes:
        run_id: KFP's id of it.
        name: Its name in KFP's pages.
        version: Pipeline version that it runs.
    """

    run_id: str
    name: str
    version: PipelineVersion


def make_parameters(
    config: RunConfig, settings: ClusterSettings, *, compiled: CompiledPipeline, where: str
) -> dict[str, Any]:
    """Give the run's parameters, and refuse before any request what a pod could not use.

    The code's digest is not among them: the compiled pipeline carries that of the code it was compiled from.

    Args:
        config: What to train.
        settings: Where.
        compiled: The pipeline that takes the parameters.
        where: The config's file, for an error.

    Raises:
        SecvecError: A local path, no store, an image that is no image's name, or a setting of the cluster's
            file that this pipeline does not take.
    """
    _check_sources(config, where=where)
    told = config.to_parameters(store=config.store, code_digest="")
    del told["code_digest"]
    chosen = settings.to_parameters()
    if unknown := sorted(chosen.keys() - compiled.parameters.keys()):
        raise SecvecError(
            f"this version of the pipeline takes no {', '.join(unknown)}",
            where="cluster settings",
            accepted=", ".join(sorted(compiled.parameters)),
        )
    parameters = {name: value for name, value in (told | chosen).items() if name in compiled.parameters}
    _check_image(str(parameters["image"]), where=where)
    _check_complete(parameters, compiled, where=where)
    return parameters


def submit_run(
    cluster: Cluster,
    *,
    compiled: CompiledPipeline,
    parameters: Mapping[str, Any],
    settings: ClusterSettings,
) -> SubmittedRun:
    """Upload the pipeline if its version is not there, and start one run of it.

    Raises:
        SecvecError: The API cannot be reached or refuses.
    """
    from kfp_server_api import V2beta1PipelineVersionReference, V2beta1Run

    experiment = ensure_experiment(cluster, settings.experiment)
    version = ensure_version(cluster, compiled)
    # The name is unique, so that a run whose answer was lost on the way is found and not started twice.
    name = f"{settings.experiment} {datetime.now(UTC):%Y-%m-%d %H:%M:%S} {secrets.token_hex(3)}"
    run = cluster.ensure(
        "start the run",
        find=lambda: _find_run(cluster, name, experiment=experiment),
        create=cluster.api.runs.run_service_create_run,
        run=V2beta1Run(
            experiment_id=experiment,
            display_name=name,
            pipeline_version_reference=V2beta1PipelineVersionReference(
                pipeline_id=version.pipeline_id, pipeline_version_id=version.version_id
            ),
            runtime_config=make_runtime_config(parameters, settings),
            service_account=settings.service_account,
        ),
    )
    return SubmittedRun(run_id=run.run_id, name=name, version=version)


def make_runtime_config(parameters: Mapping[str, Any], settings: ClusterSettings) -> Any:
    """Give the API's form of parameters and pipeline root."""
    from kfp_server_api import V2beta1RuntimeConfig

    return V2beta1RuntimeConfig(parameters=dict(parameters), pipeline_root=settings.pipeline_root)


def _find_run(cluster: Cluster, name: str, *, experiment: str) -> Any:
    pages = cluster.list_all(
        "list runs",
        cluster.api.runs.run_service_list_runs,
        field="runs",
        experiment_id=experiment,
        filter=named(name),
    )
    return next((one for one in pages if one.display_name == name), None)


def _check_sources(config: RunConfig, *, where: str) -> None:
    given = {name: getattr(config, name) for name in SOURCE_FIELDS}
    given |= {f"training_data[{index}]": uri for index, uri in enumerate(config.training_data)}
    if "/" in config.base_model and not re.fullmatch(r"[\w.-]+/[\w.-]+", config.base_model):
        given["base_model"] = config.base_model
    for name, uri in given.items():
        if uri and not uri.startswith(_REMOTE):
            raise SecvecError(
                f"{name} = {uri!r} lies on this machine, where no pod can read it",
                where=where,
                accepted=" or ".join(f"{prefix}..." for prefix in _REMOTE),
            )
    if not config.store.startswith("s3://"):
        raise SecvecError(
            f"store = {config.store!r} cannot be written by pods", where=where, accepted="s3://..."
        )


def _check_image(image: str, *, where: str) -> None:
    if not re.fullmatch(IMAGE, image):
        raise SecvecError(
            f"image = {image!r} is no image's name",
            where=where,
            accepted="registry/name:tag or registry/name@sha256:...",
        )


def _check_complete(parameters: Mapping[str, Any], compiled: CompiledPipeline, *, where: str) -> None:
    for name, declared in compiled.parameters.items():
        optional = declared.get("isOptional") or "defaultValue" in declared
        if not optional and name not in parameters:
            raise SecvecError(f"the pipeline needs {name}, which is not given", where=where)
