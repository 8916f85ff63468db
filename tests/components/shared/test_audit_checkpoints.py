import json
import threading
from pathlib import Path
from typing import Any

import boto3
import pytest

from secvec.components.shared import audit, s3, tracking
from secvec.components.shared.audit_chain import LogState
from secvec.components.shared.audit_checkpoints import verify_log, write_checkpoint
from secvec.components.shared.audit_stores import ObjectLog
from secvec.components.shared.errors import SecvecError
from secvec.components.shared.signing_keys import ensure_signing_key


@pytest.fixture(scope="module")
def mlflow_store(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("mlflow")
    uri = f"sqlite:///{folder}/mlflow.db"
    tracking.initialise(uri, f"file://{folder}/artifacts")
    return uri


@pytest.fixture
def signer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECVEC_SIGNING_KEY", str(ensure_signing_key(tmp_path / "signing")))
    for name in ("SECVEC_TRUSTED_KEYS", "MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "SECVEC_AUDIT_PIN"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def log(tmp_path: Path, signer: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "log.jsonl"
    monkeypatch.setenv("SECVEC_AUDIT_LOG", str(path))
    return path


@pytest.fixture
def object_log(s3_bucket: str, signer: None, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("SECVEC_AUDIT_LOG", f"{s3_bucket}/audit/log")
    return f"{s3_bucket}/audit/log"


def fill(count: int) -> None:
    for number in range(count):
        audit.note("tested", number=number)


def test_a_log_with_its_checkpoints_verifies(log: Path) -> None:
    fill(3)
    assert write_checkpoint() == audit.verify()
    fill(2)
    found = verify_log()
    assert (found.state.size, found.checkpoints, found.covered) == (5, 1, 3)


def test_a_log_without_checkpoints_says_so(log: Path) -> None:
    fill(2)
    assert (verify_log().checkpoints, verify_log().covered) == (0, 0)


def test_a_checkpoint_is_on_the_disk_before_it_counts(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(1)
    waits: list[int] = []
    monkeypatch.setattr("os.fsync", waits.append)
    write_checkpoint()
    assert waits


def test_a_log_cut_back_is_found(log: Path) -> None:
    fill(3)
    write_checkpoint()
    log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:2]))
    assert audit.verify().size == 2
    with pytest.raises(SecvecError, match="was cut back from 3 lines to 2"):
        verify_log()


def test_a_last_line_edited_is_found(log: Path) -> None:
    fill(2)
    write_checkpoint()
    log.write_bytes(log.read_bytes().replace(b'"number":1', b'"number":2'))
    assert audit.verify().size == 2
    with pytest.raises(SecvecError, match="was rewritten before line 2"):
        verify_log()


def test_a_fork_is_found(log: Path) -> None:
    fill(2)
    before = log.read_bytes()
    fill(2)
    write_checkpoint()
    log.write_bytes(before)
    fill(3)
    assert audit.verify().size == 5
    with pytest.raises(SecvecError, match="was rewritten before line 4"):
        verify_log()


def test_logs_that_share_a_pin_are_told_apart(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECVEC_AUDIT_PIN", str(log.parent / "pins"))
    fill(3)
    write_checkpoint()
    monkeypatch.setenv("SECVEC_AUDIT_LOG", str(log.parent / "other.jsonl"))
    fill(5)
    write_checkpoint()
    assert (verify_log().checkpoints, verify_log().covered) == (2, 5)
    # a log that is named is the one that is looked at, whatever the environment names
    assert audit.verify(str(log)).size == 3
    assert (verify_log(str(log)).checkpoints, verify_log(str(log)).covered) == (2, 3)


def test_the_checkpoint_of_an_empty_log_holds_for_what_is_appended(log: Path) -> None:
    log.touch()
    assert verify_log().state == LogState()
    fill(1)
    write_checkpoint()
    log.write_bytes(b"")
    with pytest.raises(SecvecError, match="is another log"):
        verify_log()


@pytest.mark.parametrize("place", ["pin", "mlflow"])
def test_a_log_replaced_together_with_its_checkpoints_is_found(
    log: Path, place: str, mlflow_store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if place == "pin":
        monkeypatch.setenv("SECVEC_AUDIT_PIN", str(log.parent / "elsewhere"))
    else:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_store)
        client = tracking.connect()
        experiment = client.get_experiment_by_name("secvec").experiment_id
        monkeypatch.setenv("MLFLOW_RUN_ID", client.create_run(experiment).info.run_id)
    fill(3)
    write_checkpoint()
    assert verify_log().checkpoints == 2
    kept = log.read_bytes()
    (log.parent / "log.jsonl.checkpoints").unlink()
    assert verify_log().checkpoints == 1
    log.write_bytes(kept.splitlines(keepends=True)[0])
    with pytest.raises(SecvecError, match="was cut back"):
        verify_log()
    log.unlink()
    fill(4)
    with pytest.raises(SecvecError, match="is another log"):
        verify_log()


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"junk", b'{"payload":"e30=","payloadType":"x","signatures":[]}']
)
def test_a_forged_checkpoint_is_found(log: Path, content: bytes) -> None:
    fill(1)
    write_checkpoint()
    kept = log.with_name("log.jsonl.checkpoints")
    kept.write_bytes(kept.read_bytes() + content + b"\n")
    with pytest.raises(SecvecError, match="checkpoints of"):
        verify_log()


def test_a_checkpoint_by_a_stranger_is_found(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(1)
    monkeypatch.setenv("SECVEC_TRUSTED_KEYS", str(tmp_path / "signing.pub"))
    monkeypatch.setenv("SECVEC_SIGNING_KEY", str(ensure_signing_key(tmp_path / "stranger")))
    write_checkpoint()
    with pytest.raises(SecvecError, match="cannot be believed"):
        verify_log()


def test_a_checkpoint_needs_a_key(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(1)
    monkeypatch.delenv("SECVEC_SIGNING_KEY")
    with pytest.raises(SecvecError, match="no signing key"):
        write_checkpoint()


def test_a_log_that_is_not_there(log: Path) -> None:
    with pytest.raises(SecvecError, match="cannot read the audit log"):
        verify_log()


def test_a_log_on_s3(object_log: str) -> None:
    for size in range(1, 6):
        assert audit.append("tested", number=size).size == size
    assert audit.verify().size == 5
    write_checkpoint()
    assert (verify_log().state.size, verify_log().covered) == (5, 5)
    assert verify_log(f"{object_log}/") == verify_log()


def objects(uri: str) -> tuple[Any, str, list[str]]:
    client = boto3.client("s3")
    bucket = uri.split("/")[2]
    keys = [one["Key"] for one in client.list_objects_v2(Bucket=bucket)["Contents"]]
    return client, bucket, sorted(key for key in keys if "/segments/" in key)


@pytest.mark.parametrize("position", [0, 2])
def test_a_line_deleted_on_s3_is_found(object_log: str, position: int) -> None:
    fill(4)
    client, bucket, keys = objects(object_log)
    client.delete_object(Bucket=bucket, Key=keys[position])
    with pytest.raises(SecvecError, match=f"segment {position + 1} is missing"):
        audit.verify()


def test_the_last_line_deleted_on_s3_is_found_by_the_checkpoint(object_log: str) -> None:
    fill(4)
    write_checkpoint()
    client, bucket, keys = objects(object_log)
    client.delete_object(Bucket=bucket, Key=keys[-1])
    assert audit.verify().size == 3
    with pytest.raises(SecvecError, match="was cut back from 4 lines to 3"):
        verify_log()


def test_a_line_edited_on_s3_is_found(object_log: str) -> None:
    fill(3)
    client, bucket, keys = objects(object_log)
    line = json.loads(client.get_object(Bucket=bucket, Key=keys[1])["Body"].read())
    line["fields"]["number"] = 9
    client.put_object(
        Bucket=bucket, Key=keys[1], Body=json.dumps(line, sort_keys=True, separators=(",", ":")) + "\n"
    )
    with pytest.raises(SecvecError, match="line 3 does not follow"):
        audit.verify()


def test_writers_on_s3_make_one_chain(object_log: str) -> None:
    threads = [threading.Thread(target=fill, args=(5,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert audit.verify().size == 20


def test_an_s3_log_that_cannot_be_written(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECVEC_AUDIT_LOG", "s3://no-such-bucket-here/log")
    with pytest.raises(SecvecError, match="cannot write the audit log"):
        audit.append("tested")


def test_many_events_are_one_segment_on_s3(object_log: str) -> None:
    audit.append("tested", number=0)
    assert audit.append_all([("tested", {"number": number}) for number in range(1, 30)]).size == 30
    assert audit.append_all([]).size == 30
    assert audit.append("tested", number=30) == audit.verify()
    assert len(objects(object_log)[2]) == 3


@pytest.mark.parametrize("cut", [0, 1, 40])
def test_a_segment_cut_short_on_s3_is_found(object_log: str, cut: int) -> None:
    audit.append_all([("tested", {"number": number}) for number in range(3)])
    client, bucket, (key,) = objects(object_log)
    content = client.get_object(Bucket=bucket, Key=key)["Body"].read()
    client.put_object(Bucket=bucket, Key=key, Body=content[: len(content) - cut] if cut else b"")
    with pytest.raises(SecvecError, match=r"line . is not a whole audit entry"):
        audit.verify()


@pytest.mark.parametrize("kind", ["log", "object_log"])
def test_a_log_that_is_gone_is_not_begun_anew(kind: str, request: pytest.FixtureRequest) -> None:
    place = request.getfixturevalue(kind)
    audit.append("tested")
    write_checkpoint()
    if kind == "log":
        place.unlink()
    else:
        client, bucket, (key,) = objects(place)
        client.delete_object(Bucket=bucket, Key=key)
    with pytest.raises(SecvecError, match="it is gone, but its checkpoints are there"):
        audit.append("tested")


def test_the_first_checkpoint_of_a_size_stays_on_s3(object_log: str) -> None:
    audit.append("tested")
    log = audit.open_log()
    for content in (b"first", b"second"):
        log.write_checkpoint(log.state(), content)
    assert log.read_checkpoints() == [b"first"]


def test_a_segment_that_another_writer_replaced_is_written_once_more(
    object_log: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a server that lets two create-only writes of one name through."""
    audit.append("tested", by="first")
    write, others = s3.write_object, []

    def write_twice(uri: str, content: bytes, *, create_only: bool) -> bool:
        done = write(uri, content, create_only=create_only)
        if not others:
            others.append(content.replace(b'"mine"', b'"other"'))
            write(uri, others[0], create_only=False)
        return done

    monkeypatch.setattr(s3, "write_object", write_twice)
    assert audit.append("tested", by="mine") == audit.verify()
    assert [one["fields"]["by"] for one in audit.read_entries()] == ["first", "other", "mine"]


def test_a_log_on_s3_where_every_number_is_taken_is_an_error(
    object_log: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    audit.append("tested")
    monkeypatch.setattr(s3, "write_object", lambda *_, **__: False)
    with pytest.raises(SecvecError, match="other writers took 50 segments in a row"):
        monkeypatch.setattr(ObjectLog, "_state_after", lambda *_: LogState())
        audit.append("tested")
