"""Fine-tuning over several nodes, as a TrainJob of Kubeflow Trainer (trainer.kubeflow.org/v1alpha1).

The nodes are pods like that of the step: its image, resources, placement, variables and secrets are read
from the cluster, so that nothing of it is configured twice. The TrainJob belongs to the step's pod and goes
with it. Results come back through the store. (The Kubeflow SDK's own ``train`` takes variables as plain text
only; here secrets stay references.)
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from secvec.components.fine_tune_guarded.launch import MODULE
from secvec.components.shared.errors import SecvecError
from secvec.components.shared.progress import report

POD_VARIABLE = "KFP_POD_NAME"
# Kubeflow Trainer's own runtime for PyTorch: it tells torchrun through PET_ variables about the other nodes.
RUNTIME = "torch-distributed"
_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_RESOURCE = ("trainer.kubeflow.org", "v1alpha1")
_PLURAL = "trainjobs"
_MANAGER = "secvec.components/fine-tune-guarded"
_PLACEMENT = ("serviceAccountName", "nodeSelector", "tolerations", "affinity", "imagePullSecrets")
# What Argo and KFP put beside a step for themselves.
_OTHERS = ("ARGO_", "kube-api-access", "var-run-argo", "kfp-launcher", "tmp-dir-argo", "input-artifacts")
_SECONDS = 10.0


def run_train_job(job: Mapping[str, Any], *, nodes: int, processes: int) -> None:
    """Create a TrainJob, wait for its end and remove it.

    Args:
        job: Arguments of `step.fine_tune_guarded`, as JSON; every node must reach what it names.
        nodes: Pods that train together.
        processes: Processes in each of them.

    Raises:
        SecvecError: This is no pod of a pipeline, the cluster refuses the TrainJob, or it failed.
    """
    from kubernetes import client

    namespace, pod = _find_own_pod()
    made = make_train_job(pod, job, nodes=nodes, processes=processes)
    name, where = made["metadata"]["name"], f"TrainJob {namespace}/{made['metadata']['name']}"
    api = client.CustomObjectsApi()
    with _api_errors(where):
        api.create_namespaced_custom_object(*_RESOURCE, namespace, _PLURAL, made)
    try:
        report("train_job", name=name, nodes=nodes, processes=processes)
        while not (ended := _ended(_read(api, namespace, name, where))):
            time.sleep(_SECONDS)
    finally:
        with _api_errors(where):
            api.delete_namespaced_custom_object(*_RESOURCE, namespace, _PLURAL, name)
    if ended["type"] == "Failed":
        raise SecvecError(
            f"failed ({' '.join(str(ended.get('message', '')).split()) or ended.get('reason', 'no reason')})",
            where=where,
        )


def make_train_job(
    pod: Mapping[str, Any], job: Mapping[str, Any], *, nodes: int, processes: int
) -> dict[str, Any]:
    """Describe the TrainJob whose nodes are like a pod.

    Args:
        pod: The pod of the step, as the Kubernetes API gives it.
        job: What each process is started with.
        nodes: Pods that train together.
        processes: Processes in each of them.
    """
    from kubeflow_trainer_api.models import TrainerV1alpha1TrainJob

    spec = pod["spec"]
    container = next((one for one in spec["containers"] if one["name"] == "main"), spec["containers"][0])
    torchrun = ["torchrun", f"--nproc-per-node={processes}", "-m", MODULE, json.dumps(job)]
    described = {
        "apiVersion": "/".join(_RESOURCE),
        "kind": "TrainJob",
        "metadata": {
            "name": f"secvec-{pod['metadata']['uid'][:13]}",
            "labels": {"app.kubernetes.io/part-of": "secvec"},
            "ownerReferences": [
                {
                    "apiVersion": "v1",
                    "kind": "Pod",
                    "name": pod["metadata"]["name"],
                    "uid": pod["metadata"]["uid"],
                }
            ],
        },
        "spec": {
            "runtimeRef": {"apiGroup": _RESOURCE[0], "kind": "ClusterTrainingRuntime", "name": RUNTIME},
            "trainer": {
                "image": container["image"],
                "command": torchrun,
                "env": [one for one in container.get("env", []) if not one["name"].startswith(_OTHERS)],
                "numNodes": nodes,
                "numProcPerNode": processes,
                "resourcesPerNode": container.get("resources", {}),
            },
            "runtimePatches": [{"manager": _MANAGER, "trainingRuntimeSpec": _patch(spec, container)}],
        },
    }
    # The model of the published schema: an unknown or misspelt field does not come through it.
    made = TrainerV1alpha1TrainJob.from_dict(described)
    return dict(made.to_dict())


def _patch(spec: Mapping[str, Any], container: Mapping[str, Any]) -> dict[str, Any]:
    """Where nodes run and what they mount, in the form of the runtime's pods."""
    volumes = [one for one in spec.get("volumes", []) if not one["name"].startswith(_OTHERS)]
    names = {one["name"] for one in volumes}
    mounts = [one for one in container.get("volumeMounts", []) if one["name"] in names]
    pod = {name: spec[name] for name in (*_PLACEMENT, "securityContext") if spec.get(name)}
    node = {"name": "node", "volumeMounts": mounts}
    if "securityContext" in container:
        node["securityContext"] = container["securityContext"]
    pod |= {"volumes": volumes, "containers": [node]}
    jobs = [{"name": "node", "template": {"spec": {"template": {"spec": pod}}}}]
    return {"template": {"spec": {"replicatedJobs": jobs}}}


def _find_own_pod() -> tuple[str, dict[str, Any]]:
    from kubernetes import client, config

    name = os.environ.get(POD_VARIABLE, "")
    if not name or not _NAMESPACE.exists():
        raise SecvecError(
            "more than one node outside of a pod of a pipeline",
            where="fine_tune_guarded: nodes",
            accepted="1 on this machine; more on a cluster with Kubeflow Trainer",
        )
    config.load_incluster_config()
    namespace = _NAMESPACE.read_text().strip()
    with _api_errors(f"pod {namespace}/{name}"):
        found = client.CoreV1Api().read_namespaced_pod(name, namespace)
    return namespace, client.ApiClient().sanitize_for_serialization(found)


@contextmanager
def _api_errors(where: str) -> Iterator[None]:
    from kubernetes.client import ApiException
    from urllib3.exceptions import HTTPError

    try:
        yield
    except (ApiException, HTTPError) as error:
        reason = getattr(error, "reason", None) or type(error).__name__
        raise SecvecError(
            f"the Kubernetes API refuses ({getattr(error, 'status', '')} {reason})".replace("( ", "("),
            where=where,
            accepted="Kubeflow Trainer 2.3 on the cluster, and the rights of manifests/base/rbac.yaml",
        ) from error


def _read(api: Any, namespace: str, name: str, where: str) -> dict[str, Any]:
    with _api_errors(where):
        return dict(api.get_namespaced_custom_object(*_RESOURCE, namespace, _PLURAL, name))


def _ended(job: Mapping[str, Any]) -> dict[str, Any]:
    conditions = job.get("status", {}).get("conditions", [])
    ends = [one for one in conditions if one["type"] in ("Complete", "Failed") and one["status"] == "True"]
    return dict(ends[0]) if ends else {}
