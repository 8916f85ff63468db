"""Where each step runs, what it may use and what it may open: parameters on a cluster, nothing locally.

Names are pipeline parameters, so that one compiled file serves every cluster; what a step is allowed is not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from kfp import dsl, kubernetes

from secvec.pipelines.cluster_settings import SHARED_MEMORY

Grant = Literal["opens_vectors", "signs", "attests", "trusts", "asks_judges"]

CUSTODY_FOLDER = "/var/run/secvec/custody"
SIGNING_FOLDER = "/var/run/secvec/signing"
# Where the images keep verified copies, checkpoints and journals.
CACHE_FOLDER = "/home/secvec/cache"
_PUBLIC_KEY = "signing.pem.pub"
_PROVENANCE_KEY = "provenance.pem"
# Of a served judge; it lies among the credentials for what is outside the cluster.
_JUDGE_KEY = "SECVEC_JUDGE_KEY"
_SETTINGS = (
    "AWS_ENDPOINT_URL",
    "AWS_REGION",
    "HF_HUB_DISABLE_TELEMETRY",
    "HF_HUB_OFFLINE",
    "MLFLOW_DISABLE_TELEMETRY",
    "MLFLOW_EXPERIMENT_NAME",
    "MLFLOW_TRACKING_URI",
    "SECVEC_AUDIT_LOG",
    "TOKENIZERS_PARALLELISM",
    "TRANSFORMERS_OFFLINE",
)
_GRANTED_SETTINGS: dict[Grant, tuple[str, ...]] = {
    "opens_vectors": ("SECVEC_CUSTODY_KEY",),
    "signs": ("SECVEC_SIGNING_KEY", "SECVEC_TRUSTED_KEYS"),
    "attests": (),
    "trusts": (),
    "asks_judges": (),
}


@dataclass(frozen=True)
class Role:
    """What a step is, whoever runs it where.

    Attributes:
        identity: Value of the pod label by which ``manifests/step-identity`` gives it an account of its own.
        hours: After which its pod is ended, so that nothing holds a device for ever.
        retries: How often it is tried again when its pod fails.
        grants: Keys that it gets, and no other step.
        holds_model: Whether it needs the memory and the nodes of training.
        computes: Whether it also needs the accelerator and shared memory.
    """

    identity: str
    hours: int
    retries: int = 2
    grants: tuple[Grant, ...] = ()
    holds_model: bool = False
    computes: bool = False


ROLES = {
    "ingest-data": Role("ingest", hours=12, grants=("attests",)),
    "read-share": Role("ingest", hours=12),
    "compare-champion": Role("gate", hours=1, grants=("trusts",)),
    "train-security-vector": Role(
        "vector-trainer", hours=48, grants=("opens_vectors", "attests"), holds_model=True, computes=True
    ),
    "fine-tune-guarded": Role(
        "fine-tuner", hours=14 * 24, grants=("opens_vectors", "attests"), holds_model=True, computes=True
    ),
    "remove-security-vector": Role("remover", hours=24, grants=("attests",), holds_model=True),
    "evaluate-harm": Role(
        "evaluator",
        hours=96,
        grants=("opens_vectors", "signs", "attests", "asks_judges"),
        holds_model=True,
        computes=True,
    ),
    # What the gate decides, it decides once.
    "gate-promotion": Role("gate", hours=2, retries=0, grants=("signs", "attests")),
    "record-outcome": Role("gate", hours=1, retries=0),
}


@dataclass(frozen=True)
class Placement:
    """The pipeline's parameters about clusters; inside the pipeline's function each is a KFP channel.

    No name may be empty: KFP's driver refuses to resolve an empty one. What is not there is optional, but a
    volume claim cannot be: without one, nothing mounts it.
    """

    image: Any
    training_image: Any
    accelerator_type: Any
    accelerator_count: Any
    training_cpu: Any
    training_memory: Any
    node_selector: Any
    tolerations: Any
    custody_secret: Any
    signing_secret: Any
    storage_secret: Any
    image_pull_secret: Any
    environment: Any
    workspace_claim: Any = None

    def place(self, task: dsl.PipelineTask) -> None:
        """Say of one task where it runs, what it may use, how long and how often."""
        role = ROLES[task.component_spec.name]
        task.set_container_image(self.training_image if role.holds_model else self.image)
        if role.retries:
            task.set_retry(
                role.retries, backoff_duration="60s", backoff_factor=2.0, backoff_max_duration="900s"
            )
        kubernetes.set_timeout(task, role.hours * 3600)
        kubernetes.add_pod_label(task, "secvec-role", role.identity)
        # KFP sets all else that the Pod Security level "restricted" asks of a step, and leaves this to it.
        kubernetes.set_security_context(task, run_as_non_root=True)
        kubernetes.set_image_pull_secrets(task, [self.image_pull_secret])
        # KFP labels its pods with the run; steps that share a run share one run in MLflow.
        kubernetes.use_field_path_as_env(task, "KFP_RUN_ID", "metadata.labels['pipeline/runid']")
        self._grant(task, role)
        if role.holds_model:
            self._give_resources(task, role)
            if self.workspace_claim is not None:
                self._keep_cache(task, role)

    def _grant(self, task: dsl.PipelineTask, role: Role) -> None:
        names = [*_SETTINGS, *(name for grant in role.grants for name in _GRANTED_SETTINGS[grant])]
        kubernetes.use_config_map_as_env(
            task, self.environment, {name: name for name in names}, optional=True
        )
        keys = {name: name for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
        kubernetes.use_secret_as_env(task, self.storage_secret, keys, optional=True)
        if "opens_vectors" in role.grants:
            # Optional: with KMS there is no key to mount.
            kubernetes.use_secret_as_volume(task, self.custody_secret, CUSTODY_FOLDER, optional=True)
        if "signs" in role.grants:
            kubernetes.use_secret_as_volume(task, self.signing_secret, SIGNING_FOLDER)
        if "attests" in role.grants:
            # One key of the secret: what signs evaluations and verdicts stays out of reach.
            kubernetes.use_secret_as_env(
                task, self.signing_secret, {_PROVENANCE_KEY: "SECVEC_PROVENANCE_KEY"}, optional=True
            )
        if "asks_judges" in role.grants:
            kubernetes.use_secret_as_env(task, self.storage_secret, {_JUDGE_KEY: _JUDGE_KEY}, optional=True)
        if "trusts" in role.grants:
            # The public half alone, for a step that only verifies.
            kubernetes.use_secret_as_env(
                task, self.signing_secret, {_PUBLIC_KEY: "SECVEC_TRUSTED_KEYS"}, optional=True
            )

    def _give_resources(self, task: dsl.PipelineTask, role: Role) -> None:
        used = [self.training_cpu, self.training_memory]
        task.set_cpu_request(self.training_cpu)
        task.set_memory_request(self.training_memory)
        task.set_memory_limit(self.training_memory)
        if role.computes:
            used += [self.accelerator_type, self.accelerator_count]
            task.set_accelerator_type(self.accelerator_type)
            task.set_accelerator_limit(self.accelerator_count)
            # Data loaders and collectives use more shared memory than the 64 MiB that pods have; it counts
            # as the pod's own, so its memory limit bounds it.
            kubernetes.empty_dir_mount(task, SHARED_MEMORY, "/dev/shm", medium="Memory")
        # kfp 2.17.0 hands no resource that is a parameter into the group that its task is in.
        task.register_pipeline_channels(used)
        kubernetes.add_node_selector_json(task, self.node_selector)
        kubernetes.add_toleration_json(task, self.tolerations)

    def _keep_cache(self, task: dsl.PipelineTask, role: Role) -> None:
        """Let what a step has fetched and reached outlive its pod, out of the other steps' reach."""
        kubernetes.mount_pvc(task, self.workspace_claim, CACHE_FOLDER, sub_path=role.identity)
        task.set_env_variable("SECVEC_CACHE", CACHE_FOLDER)
        task.register_pipeline_channels([self.workspace_claim])
