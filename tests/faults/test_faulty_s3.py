"""A run or two of each fault that any S3 server can show; `faulty_s3` makes many, on one that checks."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import boto3
import pytest

from secvec.components.shared import s3
from tests.faults import faulty_s3
from tests.faults.fault_proxy import FAULTS, Fault, FaultProxy

# moto checks neither signatures nor checksums: what it would have to refuse is left to a real server.
CHECKED = {"flip_up", "clock_skew", "hang"}


@pytest.fixture
def bucket(s3_server: str) -> str:
    boto3.client("s3").create_bucket(Bucket=faulty_s3.BUCKET)
    return s3_server


@pytest.mark.parametrize(
    ("kind", "number"),
    [
        *((kind, 0) for kind in sorted(FAULTS.keys() - CHECKED)),
        *((kind, 3) for kind in ("503", "flip_down", "reset_up", "wrong_etag")),
    ],
)
def test_a_fault_is_survived_or_told_and_never_silent(
    bucket: str, kind: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("s3_errors", "artifacts"):
        monkeypatch.setattr(f"secvec.components.shared.{module}.pause", lambda tries: None)
    found = faulty_s3.run_once(bucket, kind=kind, number=number, seed=7)
    assert found["problems"] == []
    assert found["hits"] > 0
    assert bool(found["error"]) == (number == 3 and kind != "slow")


def test_corruption_that_nobody_told_would_be_seen(bucket: str, tmp_path: Path) -> None:
    from secvec.components.shared.artifacts import publish

    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "x").write_bytes(b"x")
    store = f"s3://{faulty_s3.BUCKET}/store"
    reference = publish(tmp_path / "source", kind="dataset", store=store)
    assert faulty_s3._look_past_the_proxy(store) == []
    s3.write_object(f"{reference.uri}/x", b"y", create_only=False)
    (problem,) = faulty_s3._look_past_the_proxy(store)
    assert problem.startswith("SILENT CORRUPTION: x")
    outcome = {"error": "", "crash": "", "fetched": {"x": b"y"}}
    (problem,) = faulty_s3._judge(outcome, {"x": b"x"}, always=True)
    assert problem.startswith("SILENT CORRUPTION")


def test_an_upload_that_nobody_finished_is_swept(bucket: str) -> None:
    client, name = boto3.client("s3"), faulty_s3.BUCKET
    client.create_multipart_upload(Bucket=name, Key="store/a/weights.bin")
    client.create_multipart_upload(Bucket=name, Key="elsewhere/b")
    assert s3.abort_uploads(f"s3://{name}/store") == 1
    (left,) = client.list_multipart_uploads(Bucket=name)["Uploads"]
    assert left["Key"] == "elsewhere/b"


def test_the_proxy_passes_on_what_it_does_not_spoil(bucket: str) -> None:
    import random

    fault = Fault("500", ("nothing",), None, random.Random(0))
    proxy = FaultProxy(int(bucket.rpartition(":")[2]), fault)
    with mock.patch.dict("os.environ", {"AWS_ENDPOINT_URL": proxy.url}):
        s3.write_object(f"s3://{faulty_s3.BUCKET}/x", b"content", create_only=True)
        assert s3.read_object(f"s3://{faulty_s3.BUCKET}/x") == b"content"
    proxy.close()
    assert fault.hits == 0
