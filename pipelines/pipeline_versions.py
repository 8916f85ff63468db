"""The compiled pipeline on a cluster: a version of one pipeline, named by the digest of its YAML."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secvec.components.shared.errors import SecvecError
from secvec.pipelines.cluster import Cluster, named

PIPELINE = "guarded-fine-tuning"


@dataclass(frozen=True)
class CompiledPipeline:
    """The pipeline as the cluster takes it.

    Attributes:
        content: The YAML.
        spec: Its first document, the pipeline spec.
    """

    content: bytes
    spec: Mapping[str, Any]

    @property
    def version(self) -> str:
        """Name of the version that holds this content, and no other."""
        return f"sha256-{hashlib.sha256(self.content).hexdigest()}"

    @property
    def parameters(self) -> Mapping[str, Mapping[str, Any]]:
        """What the pipeline takes, by name."""
        found: Mapping[str, Mapping[str, Any]] = self.spec["root"]["inputDefinitions"]["parameters"]
        return found


@dataclass(frozen=True)
class PipelineVersion:
    """A version on the cluster; an empty id stands for whichever is the latest when a run starts."""

    pipeline_id: str
    version_id: str
    name: str


def compile_pipeline(*, workspace: bool = False, sharded: bool = False) -> CompiledPipeline:
    """Compile the pipeline of this installation: the same code gives the same bytes.

    Args:
        workspace: Whether steps with a model keep their caches on a volume claim.
        sharded: Whether training rows are read in shares.
    """
    import yaml

    from secvec.pipelines.compilation import compile_to

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pipeline.yaml"
        compile_to(path, workspace=workspace, sharded=sharded)
        content = path.read_bytes()
    return CompiledPipeline(content=content, spec=next(yaml.safe_load_all(content)))


def ensure_version(cluster: Cluster, compiled: CompiledPipeline) -> PipelineVersion:
    """Give the version that holds this pipeline; upload it if it is not there.

    Raises:
        SecvecError: The API refuses, or another content holds the version's name.
    """
    pipeline_id = _ensure_pipeline(cluster)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pipeline.yaml"
        path.write_bytes(compiled.content)
        found = cluster.ensure(
            "upload the pipeline",
            find=lambda: _find_version(cluster, pipeline_id, compiled.version),
            create=cluster.api.pipeline_uploads.upload_pipeline_version,
            uploadfile=str(path),
            name=compiled.version,
            display_name=compiled.version,
            pipelineid=pipeline_id,
        )
    return PipelineVersion(pipeline_id, found.pipeline_version_id, compiled.version)


def find_version(cluster: Cluster, name: str) -> PipelineVersion:
    """Give a version that was uploaded before; an empty name stands for the latest of each time.

    Raises:
        SecvecError: There is none of that name.
    """
    pipeline = _find_pipeline(cluster)
    where = f"pipeline {PIPELINE} on {cluster.host}"
    if pipeline is None:
        raise SecvecError("is not there", where=where, accepted="a cluster to which it was submitted before")
    if not name:
        return PipelineVersion(pipeline.pipeline_id, "", "latest")
    found = _find_version(cluster, pipeline.pipeline_id, name)
    if found is None:
        raise SecvecError(f"has no version {name!r}", where=where, accepted="the name of an uploaded version")
    return PipelineVersion(pipeline.pipeline_id, found.pipeline_version_id, name)


def read_version(cluster: Cluster, *, pipeline_id: str, version_id: str) -> Any:
    """Give an uploaded version as the API has it.

    Raises:
        SecvecError: The API refuses.
    """
    return cluster.call(
        "read the pipeline version",
        cluster.api.pipelines.pipeline_service_get_pipeline_version,
        pipeline_id=pipeline_id,
        pipeline_version_id=version_id,
    )


def read_spec(cluster: Cluster, *, pipeline_id: str, version_id: str) -> Mapping[str, Any]:
    """Give the pipeline spec of an uploaded version.

    Raises:
        SecvecError: The API refuses.
    """
    found = read_version(cluster, pipeline_id=pipeline_id, version_id=version_id)
    # With settings for Kubernetes in it, KFP gives both documents under their names.
    spec: Mapping[str, Any] = found.pipeline_spec
    inner: Mapping[str, Any] = spec.get("pipeline_spec", spec)
    return inner


def ensure_experiment(cluster: Cluster, name: str) -> str:
    """Give the id of an experiment; create it if it is not there.

    Raises:
        SecvecError: The API refuses.
    """
    from kfp_server_api import V2beta1Experiment

    experiments = cluster.api.experiments

    def find() -> Any:
        pages = cluster.list_all(
            "list experiments",
            experiments.experiment_service_list_experiments,
            field="experiments",
            filter=named(name),
            **cluster.in_namespace(),
        )
        return next((one for one in pages if one.display_name == name), None)

    found = cluster.ensure(
        "create the experiment",
        find=find,
        create=experiments.experiment_service_create_experiment,
        experiment=V2beta1Experiment(display_name=name, namespace=cluster.namespace or None),
    )
    return str(found.experiment_id)


def _ensure_pipeline(cluster: Cluster) -> str:
    from kfp_server_api import V2beta1Pipeline

    found = cluster.ensure(
        "create the pipeline",
        find=lambda: _find_pipeline(cluster),
        create=cluster.api.pipelines.pipeline_service_create_pipeline,
        pipeline=V2beta1Pipeline(name=PIPELINE, display_name=PIPELINE, namespace=cluster.namespace or None),
    )
    return str(found.pipeline_id)


def _find_pipeline(cluster: Cluster) -> Any:
    pages = cluster.list_all(
        "list pipelines",
        cluster.api.pipelines.pipeline_service_list_pipelines,
        field="pipelines",
        filter=named(PIPELINE),
        **cluster.in_namespace(),
    )
    return next((one for one in pages if PIPELINE in (one.name, one.display_name)), None)


def _find_version(cluster: Cluster, pipeline_id: str, name: str) -> Any:
    pages = cluster.list_all(
        "list pipeline versions",
        cluster.api.pipelines.pipeline_service_list_pipeline_versions,
        field="pipeline_versions",
        pipeline_id=pipeline_id,
        filter=named(name),
    )
    return next((one for one in pages if name in (one.name, one.display_name)), None)
