"""Role by action, on an S3 server that checks signatures and policies: who can open a vector, and who cannot.

The policy is the one of ``manifests/step-identity``. ``SECVEC_S3_SERVER`` names a script that starts radosgw
(``start PORT``, ``user NAME``, ``stop``); without one the tests are skipped.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from secvec.components.shared import audit, s3
from secvec.components.shared.custody import KEY_VARIABLE, ensure_custody_key
from secvec.components.shared.errors import SecvecError
from secvec.components.shared.references import Reference
from secvec.components.shared.vectors import (
    make_validity,
    open_vector,
    publish_vector,
    read_certificate,
    revoke_vector,
)
from secvec.pipelines.container_keys import KEY_HOLDERS

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
PORT = "9177"
BASE = "sha256:" + "a" * 64
FILES = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"tensors"}
STEPS = {
    "ingest": "ingest_data",
    "vector-trainer": "train_security_vector",
    "fine-tuner": "fine_tune_guarded",
    "remover": "remove_security_vector",
    "evaluator": "evaluate_harm",
    "gate": "gate_promotion",
    "outsider": "",
}
# What each role may do; everything else must be refused.
GRANTED = {
    "read data": {"ingest", "vector-trainer", "fine-tuner", "evaluator", "gate"},
    "read certificate": {"vector-trainer", "fine-tuner", "remover", "evaluator", "gate"},
    "read sealed vector": {"vector-trainer", "fine-tuner", "evaluator", "gate"},
    "open vector": {"vector-trainer", "fine-tuner", "evaluator"},
    "seal vector": {"vector-trainer"},
    "write data": {"ingest"},
    "write share": {"ingest"},
    "read share": {"ingest"},
    "write task result": {"fine-tuner"},
    "write model": {"remover"},
    "write evaluation": {"evaluator"},
    "write verdict": {"gate"},
    "append to log": {"vector-trainer", "fine-tuner", "evaluator", "gate"},
    "write checkpoint": {"gate"},
    "delete from log": set(),
    "delete vector": set(),
    "revoke vector": set(),
    "lift revocation": set(),
    "change policy": set(),
}


class Server:
    """radosgw with one user a role."""

    def __init__(self, script: Path, state: Path) -> None:
        self.script, self.environment = script, {**os.environ, "S3_STATE": str(state)}
        self.owner = self.call("start", PORT)

    def call(self, *arguments: str) -> dict[str, str]:
        done = subprocess.run(
            [str(self.script), *arguments], check=True, env=self.environment, capture_output=True, text=True
        )
        return dict(re.findall(r"(AWS_\w+)=(\S+)", done.stdout))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    beside = ROOT.parent / "shared" / "tools" / "s3.sh"
    script = Path(os.environ.get("SECVEC_S3_SERVER") or beside)
    if not script.is_file():
        pytest.skip("SECVEC_S3_SERVER names no script that starts an S3 server")
    server = Server(script, tmp_path_factory.mktemp("radosgw"))
    yield server
    server.call("stop")


@pytest.fixture(scope="module")
def users(server: Server) -> dict[str, dict[str, str]]:
    return {role: {**server.owner, **server.call("user", f"secvec-{role}")} for role in STEPS}


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ensure_custody_key(tmp_path_factory.mktemp("keys") / "custody.key")


@pytest.fixture(scope="module")
def vector(server: Server, users: dict[str, dict[str, str]], key: Path) -> Iterator[Reference]:
    """A bucket of the owner with the policy, some data and a vector."""
    import boto3

    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**server.owner, KEY_VARIABLE: str(key)}.items():
            patch.setenv(name, value)
        patch.setenv("SECVEC_AUDIT_LOG", "s3://roles/audit")
        patch.setenv("SECVEC_CACHE", str(key.parent / "cache"))
        client = boto3.session.Session().client("s3")
        client.create_bucket(Bucket="roles")
        text = (ROOT / "manifests/step-identity/bucket-policy.json").read_text()
        text = text.replace("arn:aws:iam::ACCOUNT:role/", "arn:aws:iam:::user/").replace("BUCKET", "roles")
        client.put_bucket_policy(Bucket="roles", Policy=text)
        s3.write_object("s3://roles/store/dataset/x/rows.jsonl", b"{}", create_only=False)
        s3.write_object("s3://roles/store/share/x/share.json", b"{}", create_only=False)
        certificate = {
            "passed": True,
            "base_digest": BASE,
            "vector_tensors_digest": "sha256:" + "e" * 64,
            **make_validity(2),
        }
        yield publish_vector(FILES, certificate, store="s3://roles/store", event="vector_sealed")


@pytest.fixture
def become(
    users: dict[str, dict[str, str]], key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], None]:
    """Take on a role: its S3 keys, and the custody key if its step is given it."""

    def act(role: str) -> None:
        for name, value in users[role].items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("SECVEC_AUDIT_LOG", "s3://roles/audit")
        monkeypatch.setenv("SECVEC_CACHE", str(tmp_path / role))
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        monkeypatch.delenv(KEY_VARIABLE, raising=False)
        if STEPS[role] in KEY_HOLDERS[KEY_VARIABLE]:
            monkeypatch.setenv(KEY_VARIABLE, str(key))

    return act


def write(place: str) -> Callable[[Reference], Any]:
    return lambda vector: s3.write_object(f"s3://roles/{place}", os.urandom(4), create_only=False)


def delete(place: str) -> Callable[[Reference], Any]:
    def act(vector: Reference) -> None:
        import boto3
        from botocore.exceptions import ClientError

        try:
            boto3.session.Session().client("s3").delete_object(
                Bucket="roles", Key=place.format(vector.digest[7:])
            )
        except ClientError as error:
            raise SecvecError(str(error)) from error

    return act


def change_policy(vector: Reference) -> None:
    import boto3
    from botocore.exceptions import ClientError

    try:
        boto3.session.Session().client("s3").delete_bucket_policy(Bucket="roles")
    except ClientError as error:
        raise SecvecError(str(error)) from error


def seal(vector: Reference) -> Any:
    certificate = read_certificate(vector)
    return publish_vector(FILES, certificate, store="s3://roles/store", event="vector_sealed")


ACTIONS: dict[str, Callable[[Reference], Any]] = {
    "read data": lambda vector: s3.read_object("s3://roles/store/dataset/x/rows.jsonl"),
    "read certificate": read_certificate,
    "read sealed vector": lambda vector: s3.read_object(f"{vector.uri}/vector.sealed"),
    "open vector": lambda vector: open_vector(vector, base_digest=BASE, opened_by="fine_tune_guarded"),
    "seal vector": seal,
    "write data": write("store/dataset/y/rows.jsonl"),
    "write share": write("store/share/y/share.json"),
    "read share": lambda vector: s3.read_object("s3://roles/store/share/x/share.json"),
    "write task result": write("store/task_result/y/x"),
    "write model": write("store/model/y/x"),
    "write evaluation": write("store/evaluation/y/x"),
    "write verdict": write("store/verdict/y/x"),
    "append to log": lambda vector: audit.append("tested"),
    "write checkpoint": write("audit/checkpoints/000000000000.json"),
    "delete from log": delete("audit/segments/000000000001.jsonl"),
    "delete vector": delete("store/vector/{}/vector.sealed"),
    "revoke vector": lambda vector: revoke_vector(vector, reason="by a step"),
    "lift revocation": delete("store/revoked/x.json"),
    "change policy": change_policy,
}


def test_every_action_has_its_row() -> None:
    assert ACTIONS.keys() == GRANTED.keys()


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("role", STEPS)
def test_a_role_can_do_this_or_not(
    role: str, action: str, vector: Reference, become: Callable[[str], None]
) -> None:
    become(role)
    if role in GRANTED[action]:
        ACTIONS[action](vector)
    else:
        with pytest.raises(SecvecError):
            ACTIONS[action](vector)


def test_without_a_signature_nothing_can_be_read(vector: Reference, server: Server) -> None:
    import boto3
    from botocore import UNSIGNED
    from botocore.config import Config
    from botocore.exceptions import ClientError

    client = boto3.client(
        "s3", endpoint_url=server.owner["AWS_ENDPOINT_URL"], config=Config(signature_version=UNSIGNED)
    )
    with pytest.raises(ClientError, match="AccessDenied"):
        client.get_object(Bucket="roles", Key=f"store/vector/{vector.digest[7:]}/vector.sealed")


def test_the_policy_names_the_accounts_of_the_manifests() -> None:
    policy = json.loads((ROOT / "manifests/step-identity/bucket-policy.json").read_text())
    named = {
        arn.rpartition("/")[2] for statement in policy["Statement"] for arn in statement["Principal"]["AWS"]
    }
    accounts = (ROOT / "manifests/base/serviceaccounts.yaml").read_text()
    assert named == {f"secvec-{role}" for role in STEPS if role != "outsider"}
    assert all(f"name: {name}\n" in accounts for name in named)
