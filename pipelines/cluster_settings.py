"""What differs from cluster to cluster: one YAML file, so that one run config serves all of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from secvec.components.shared.errors import SecvecError
from secvec.components.shared.settings import Settings
from secvec.components.shared.storage import expand_user

# https://github.com/distribution/reference: the grammar of an image's name
_PATH = r"[a-z0-9]+(?:(?:\.|_{1,2}|-+)[a-z0-9]+)*"
_TAG = r"(?::\w[\w.-]{0,127})?(?:@sha256:[0-9a-f]{64})?"
IMAGE = rf"^(?:[a-zA-Z0-9.-]+(?::[0-9]+)?/)?{_PATH}(?:/{_PATH})*{_TAG}$"
_OBJECT = r"^[a-z0-9](?:[-a-z0-9.]{0,251}[a-z0-9])?$"
_NAMESPACE = r"^(?:[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?)?$"

# A volume of the pod is named like the secret or claim: no dots, and at most 63 characters.
_VOLUME = r"^[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?$"
SHARED_MEMORY = "shared-memory"
DEFAULT_SECRETS = {"custody_secret": "secvec-custody", "signing_secret": "secvec-signing"}

Image = Annotated[str, Field(pattern=IMAGE)]
ObjectName = Annotated[str, Field(pattern=_OBJECT)]
VolumeName = Annotated[str, Field(pattern=_VOLUME)]


class Accelerator(Settings):
    """What every training step asks of a node."""

    type: str = Field(
        default="nvidia.com/gpu",
        pattern=r"^[a-z0-9.-]+/[A-Za-z0-9._-]+$",
        description="a device's resource name",
    )
    count: int = Field(default=1, ge=1, strict=True, description="devices of one pod, at least 1")


class Toleration(Settings):
    """A Kubernetes toleration, spelled as in a pod."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    key: str = Field(default="", description="taint key; empty with Exists: every taint")
    operator: Literal["Exists", "Equal"] = Field(default="Equal", description="Exists or Equal")
    value: str = Field(default="", description="taint value, with Equal")
    effect: Literal["", "NoSchedule", "PreferNoSchedule", "NoExecute"] = Field(
        default="", description="effect"
    )
    toleration_seconds: int | None = Field(
        default=None, alias="tolerationSeconds", description="seconds, or all"
    )


class ClusterSettings(Settings):
    """How to reach a cluster, and the pipeline parameters that depend on it; what is absent is default."""

    host: str = Field(default="", description="address of the Kubeflow Pipelines API: https://...")
    namespace: str = Field(
        default="",
        pattern=_NAMESPACE,
        description="the user's namespace, on a cluster with more than one user",
    )
    experiment: str = Field(
        default="guarded-fine-tuning",
        pattern=r"^[\w][\w .:-]{0,126}$",
        description="name of the KFP experiment",
    )
    ca_certificate: str = Field(default="", description="PEM file with the certificate authority of the host")
    kube_context: str = Field(
        default="", description="kubeconfig context of the same cluster, to see what holds a pod back"
    )
    pod_namespace: str = Field(
        default="kubeflow",
        pattern=_NAMESPACE,
        description="where pods run on a cluster with a single user: Kubeflow Pipelines' own namespace",
    )
    service_account: ObjectName | None = Field(default=None, description="service account of the run's pods")
    pipeline_root: str | None = Field(
        default=None,
        pattern=r"^(s3|minio|gs)://.+",
        description="where KFP keeps its own artifacts: s3://...",
    )

    image: Image | None = Field(
        default=None, description="image of every step: registry/name:tag or @sha256:..."
    )
    training_image: Image | None = Field(
        default=None, description="image of the steps that train or generate"
    )
    accelerator: Accelerator | None = Field(
        default=None, description="a mapping of type and count (at least 1), or nothing: train on CPUs"
    )
    training_cpu: str | None = Field(
        default=None,
        pattern=r"^(?:[1-9][0-9]*m?|[0-9]+\.[0-9]+)$",
        description="CPUs of a training step: 4 or 500m",
    )
    training_memory: str | None = Field(
        default=None,
        pattern=r"^[1-9][0-9]*(?:\.[0-9]+)?(?:Ki|Mi|Gi|Ti|k|M|G|T)?$",
        description="memory of a training step: 64Gi",
    )
    tolerations: tuple[Toleration, ...] | None = Field(
        default=None, description="a list of Kubernetes tolerations for training steps"
    )
    node_selector: dict[str, str] | None = Field(
        default=None, description="a mapping of node labels to values for training steps"
    )
    custody_secret: VolumeName | None = Field(
        default=None, description="secret that opens security vectors: a-z, 0-9 and -"
    )
    signing_secret: VolumeName | None = Field(
        default=None, description="secret with the signing key: a-z, 0-9 and -"
    )
    storage_secret: ObjectName | None = Field(
        default=None, description="secret with S3 credentials, where pods have no role of their own"
    )
    image_pull_secret: ObjectName | None = Field(default=None, description="secret for the image registry")
    environment: ObjectName | None = Field(
        default=None, description="config map with MLflow's address and the like"
    )
    workspace_claim: VolumeName | None = Field(
        default=None, description="volume claim on which steps with a model keep their caches and checkpoints"
    )

    @model_validator(mode="after")
    def _refuse_one_name_twice(self) -> Self:
        """A pod mounts secrets and claims under their names, and one that has a name twice is refused."""
        secrets = {name: getattr(self, name) or default for name, default in DEFAULT_SECRETS.items()}
        if len(set(secrets.values())) < len(secrets):
            raise ValueError("custody_secret and signing_secret must be two secrets")
        if self.workspace_claim in (*secrets.values(), SHARED_MEMORY):
            raise ValueError(f"workspace_claim may not be {self.workspace_claim}, as another volume is named")
        return self

    def to_parameters(self) -> dict[str, Any]:
        """Give the pipeline parameters that this file sets."""
        told = {name: getattr(self, name) for name in _PARAMETERS}
        told["training_image"] = self.training_image or self.image
        if self.accelerator:
            # Strings: KFP's driver reads a number here as nothing at all, and the pod gets no device.
            told |= {
                "accelerator_type": self.accelerator.type,
                "accelerator_count": str(self.accelerator.count),
            }
        if self.tolerations is not None:
            told["tolerations"] = [_spell(toleration) for toleration in self.tolerations]
        return {name: value for name, value in told.items() if value is not None}


_PARAMETERS = (
    "image",
    "training_image",
    "training_cpu",
    "training_memory",
    "node_selector",
    "custody_secret",
    "signing_secret",
    "storage_secret",
    "image_pull_secret",
    "environment",
    "workspace_claim",
)


def read_cluster_settings(path: Path | None, *, options: Mapping[str, str] | None = None) -> ClusterSettings:
    """Read a cluster's file.

    Args:
        path: The file; None where everything is given by options.
        options: Values that win over those of the file.

    Raises:
        SecvecError: No such file, no YAML mapping, an unknown key or a value that is not accepted.
    """
    chosen = dict(options or {})
    if path is None:
        return ClusterSettings.read(chosen, where="options")
    settings = ClusterSettings.read({**_read_mapping(path), **chosen}, where=str(path))
    if settings.ca_certificate:
        anchored = path.resolve().parent / expand_user(settings.ca_certificate)
        settings = settings.model_copy(update={"ca_certificate": str(anchored)})
    return settings


def _read_mapping(path: Path) -> Mapping[str, Any]:
    import yaml

    keys = f"keys: {', '.join(ClusterSettings.model_fields)}"
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SecvecError(
            f"cannot be read ({error.strerror})", where=str(path), accepted="a YAML file"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}, line {mark.line + 1}" if mark else str(path)
        raise SecvecError("is no YAML", where=where, accepted=keys) from error
    if not isinstance(values, Mapping) or not all(isinstance(key, str) for key in values):
        raise SecvecError("is no mapping of keys to values", where=str(path), accepted=keys)
    return values


def _spell(toleration: Toleration) -> dict[str, Any]:
    return {
        key: value for key, value in toleration.model_dump(by_alias=True).items() if value not in ("", None)
    }
