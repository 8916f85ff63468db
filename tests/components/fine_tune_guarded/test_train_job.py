"""A TrainJob's nodes are like the step's pod, and its end is the step's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client
from werkzeug import Request, Response
from werkzeug.serving import make_server

from secvec.components.fine_tune_guarded import train_job
from secvec.components.fine_tune_guarded.launch import MODULE
from secvec.components.fine_tune_guarded.train_job import make_train_job, run_train_job
from secvec.components.shared.errors import SecvecError

POD: dict[str, Any] = {
    "metadata": {"name": "step-1", "uid": "0f3c2a8e-1111-4222-8333-444455556666"},
    "spec": {
        "serviceAccountName": "secvec-fine-tuner",
        "nodeSelector": {"gpu": "h100"},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
        "securityContext": {"runAsNonRoot": True},
        "volumes": [
            {"name": "shm", "emptyDir": {"medium": "Memory"}},
            {"name": "var-run-argo", "emptyDir": {}},
        ],
        "containers": [
            {"name": "wait", "image": "argoexec"},
            {
                "name": "main",
                "image": "registry/secvec-gpu@sha256:" + "0" * 64,
                "env": [
                    {"name": "ARGO_TEMPLATE", "value": "{}"},
                    {"name": "KFP_RUN_ID", "value": "run-7"},
                    {
                        "name": "SECVEC_CUSTODY_KEY",
                        "valueFrom": {"secretKeyRef": {"name": "secvec-custody", "key": "custody.key"}},
                    },
                ],
                "resources": {"limits": {"nvidia.com/gpu": "4"}},
                "volumeMounts": [
                    {"name": "shm", "mountPath": "/dev/shm"},
                    {"name": "var-run-argo", "mountPath": "/var/run/argo"},
                ],
                "securityContext": {"allowPrivilegeEscalation": False},
            },
        ],
    },
}
JOB = {"base_model": "s3://b/base", "seed": 0}


class Cluster:
    """The part of the Kubernetes API that a TrainJob needs."""

    def __init__(self) -> None:
        self.jobs: dict[str, Any] = {}
        self.requests: list[tuple[str, str]] = []
        self.ends = [{}, {"type": "Complete", "status": "True"}]
        self.refuse = 0

    def __call__(self, environ: Any, start: Any) -> Any:
        request = Request(environ)
        self.requests.append((request.method, request.path))
        return self.answer(request)(environ, start)

    def answer(self, request: Request) -> Response:
        if request.path.startswith("/api/v1/namespaces/team/pods/"):
            return self.give(POD)
        if self.refuse:
            return Response(status=self.refuse)
        if request.method == "POST":
            made = json.loads(request.get_data())
            self.jobs[made["metadata"]["name"]] = made
            return self.give(made)
        name = request.path.rsplit("/", 1)[1]
        if request.method == "DELETE":
            return self.give(self.jobs.pop(name))
        end = self.ends.pop(0)
        return self.give(self.jobs[name] | ({"status": {"conditions": [end]}} if end else {}))

    @staticmethod
    def give(body: Any) -> Response:
        return Response(json.dumps(body), mimetype="application/json")


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    import threading

    from kubernetes import config

    found = Cluster()
    server = make_server("127.0.0.1", 0, found)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def use_it() -> None:
        settings = client.Configuration()
        settings.host = f"http://127.0.0.1:{server.server_port}"
        client.Configuration.set_default(settings)

    (tmp_path / "namespace").write_text("team")
    monkeypatch.setattr(train_job, "_NAMESPACE", tmp_path / "namespace")
    monkeypatch.setattr(train_job, "_SECONDS", 0.01)
    monkeypatch.setattr(config, "load_incluster_config", use_it)
    monkeypatch.setenv("KFP_POD_NAME", "step-1")
    yield found
    server.shutdown()
    client.Configuration.set_default(None)


def test_nodes_are_like_the_pod_of_the_step() -> None:
    made = make_train_job(POD, JOB, nodes=3, processes=4)
    trainer = made["spec"]["trainer"]
    main = POD["spec"]["containers"][1]
    assert (trainer["numNodes"], trainer["numProcPerNode"]) == (3, 4)
    assert trainer["image"] == main["image"]
    assert trainer["resourcesPerNode"] == main["resources"]
    assert trainer["command"] == ["torchrun", "--nproc-per-node=4", "-m", MODULE, json.dumps(JOB)]
    # secrets stay references, and what is Argo's own stays behind
    assert [one["name"] for one in trainer["env"]] == ["KFP_RUN_ID", "SECVEC_CUSTODY_KEY"]
    assert trainer["env"][1]["valueFrom"]["secretKeyRef"]["name"] == "secvec-custody"
    [patch] = made["spec"]["runtimePatches"]
    [node] = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod = node["template"]["spec"]["template"]["spec"]
    for name in ("serviceAccountName", "nodeSelector", "tolerations", "securityContext"):
        assert pod[name] == POD["spec"][name]
    assert [one["name"] for one in pod["volumes"]] == ["shm"]
    [container] = pod["containers"]
    assert container["volumeMounts"] == [{"name": "shm", "mountPath": "/dev/shm"}]
    assert container["securityContext"] == {"allowPrivilegeEscalation": False}
    assert made["metadata"]["ownerReferences"][0]["uid"] == POD["metadata"]["uid"]


def test_a_train_job_is_followed_to_its_end_and_removed(cluster: Cluster) -> None:
    run_train_job(JOB, nodes=2, processes=1)
    assert [method for method, _ in cluster.requests] == ["GET", "POST", "GET", "GET", "DELETE"]
    assert cluster.requests[1][1] == "/apis/trainer.kubeflow.org/v1alpha1/namespaces/team/trainjobs"
    assert cluster.jobs == {}


def test_a_failed_train_job_fails_the_step(cluster: Cluster) -> None:
    cluster.ends = [{"type": "Failed", "status": "True", "message": "node 1\nwas killed"}]
    with pytest.raises(SecvecError, match=r"TrainJob team/secvec-.*: failed \(node 1 was killed\)"):
        run_train_job(JOB, nodes=2, processes=1)
    assert cluster.jobs == {}


@pytest.mark.parametrize("status", [403, 404, 422])
def test_a_cluster_that_refuses_is_named(cluster: Cluster, status: int) -> None:
    cluster.refuse = status
    with pytest.raises(SecvecError, match=rf"TrainJob team/secvec-.*\({status}.*accepted: Kubeflow Trainer"):
        run_train_job(JOB, nodes=2, processes=1)


def test_more_nodes_need_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KFP_POD_NAME", raising=False)
    with pytest.raises(SecvecError, match="more than one node outside of a pod"):
        run_train_job(JOB, nodes=2, processes=1)
