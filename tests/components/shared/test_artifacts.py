from __future__ import annotations

import json
import os
import shutil
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from secvec.components.shared import s3
from secvec.components.shared.artifacts import building, check_store, fetch, fetch_file, publish
from secvec.components.shared.errors import SecvecError
from secvec.components.shared.manifest import digest_bytes, verify_manifest
from secvec.components.shared.references import Reference
from secvec.components.shared.storage import (
    join_uri,
    list_files,
    list_uris,
    local_path,
    write_bytes,
)

WEIGHTS = os.urandom(40_000)
LARGE = os.urandom(17 << 20)  # two ranged requests on S3


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "made"
    (made / "model").mkdir(parents=True)
    (made / "model" / "weights.bin").write_bytes(WEIGHTS)
    (made / "notes.json").write_text("{}")
    return made


@pytest.fixture(params=["file", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "s3":
        return f"{request.getfixturevalue('s3_bucket')}/my store"
    return str(tmp_path / "my store")


def _scratch_left(tmp_path: Path) -> list[Path]:
    return [path for parent in tmp_path.rglob(".building") for path in parent.iterdir()]


def test_artifact_travels_through_a_store(store: str, tmp_path: Path) -> None:
    with building("model", store) as scratch:
        (scratch / "model").mkdir()
        (scratch / "model" / "weights.bin").write_bytes(LARGE)
        reference = publish(scratch, kind="model", store=store, about={"seed": 1})
    found = fetch(reference)
    assert list_files(found) == ["manifest.json", "model/weights.bin"]
    assert (found / "model" / "weights.bin").read_bytes() == LARGE
    assert verify_manifest(found, digest=reference.digest).about == {"seed": 1}
    assert reference.digest == digest_bytes((found / "manifest.json").read_bytes())
    assert reference.uri.endswith(f"/model/{reference.digest.removeprefix('sha256:')}")
    assert fetch(reference) == found
    assert _scratch_left(tmp_path) == []


def test_publishing_outside_of_building_leaves_the_folder(store: str, folder: Path) -> None:
    reference = publish(folder, kind="model", store=store)
    assert list_files(folder) == ["model/weights.bin", "notes.json"]
    assert (fetch(reference) / "model" / "weights.bin").read_bytes() == WEIGHTS


def test_publishing_twice_gives_the_same_artifact(store: str, folder: Path, tmp_path: Path) -> None:
    first = publish(folder, kind="model", store=store)
    before = list_uris(store)
    with building("model", store) as scratch:
        shutil.copytree(folder, scratch, dirs_exist_ok=True)
        assert publish(scratch, kind="model", store=store) == first
    assert list_uris(store) == before
    assert _scratch_left(tmp_path) == []
    assert publish(folder, kind="model", store=store, about={"seed": 1}).digest != first.digest


def test_concurrent_publishers_agree(store: str, folder: Path, tmp_path: Path) -> None:
    barrier = threading.Barrier(6)
    found: list[Reference] = []

    def work() -> None:
        barrier.wait()
        found.append(publish(folder, kind="model", store=store))

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6
    assert len(set(map(str, found))) == 1
    fetch(found[0])
    assert _scratch_left(tmp_path) == []


def test_store_may_be_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.chdir(tmp_path)
    reference = publish(folder, kind="model", store="out")
    assert reference.uri.startswith(f"{tmp_path.as_uri()}/out/model/")
    monkeypatch.chdir("/")
    fetch(reference)


def test_failure_while_building_leaves_nothing(store: str, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="defect"), building("model", store) as scratch:
        (scratch / "x").write_text("x")
        raise RuntimeError("defect")
    assert _scratch_left(tmp_path) == []
    assert list_uris(store) == []


def test_fetching_the_wrong_kind_is_refused(store: str, folder: Path) -> None:
    reference = publish(folder, kind="model", store=store)
    wrong = reference.model_copy(update={"kind": "dataset"})
    with pytest.raises(SecvecError, match="holds a model; accepted: a dataset"):
        fetch(wrong)


def test_rule_6_another_digest_is_refused(store: str, folder: Path) -> None:
    reference = publish(folder, kind="model", store=store)
    wrong = reference.model_copy(update={"digest": "sha256:" + "0" * 64})
    with pytest.raises(SecvecError, match=f"has digest {reference.digest}; accepted: sha256:0000"):
        fetch(wrong)


def _change_stored(reference: Reference, name: str, change: bytes | None) -> None:
    """Replace or delete a stored file behind the store's back."""
    uri = join_uri(reference.uri, name)
    if uri.startswith("s3://"):
        import boto3

        bucket, key = s3.split_uri(uri)
        client = boto3.client("s3")
        if change is None:
            client.delete_object(Bucket=bucket, Key=key)
        else:
            client.put_object(Bucket=bucket, Key=key, Body=change)
    elif change is None:
        local_path(uri).unlink()
    else:
        local_path(uri).write_bytes(change)


FLIPPED = WEIGHTS[:-1000] + bytes([WEIGHTS[-1000] ^ 4]) + WEIGHTS[-999:]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (FLIPPED, r"weights\.bin: has digest sha256:\w+; accepted: sha256:"),
        (WEIGHTS[:-1], r"weights\.bin: has 39999 bytes; accepted: 40000 bytes"),
        (None, r"weights\.bin.* (is missing|no such object)"),
    ],
    ids=["flipped bit", "truncated", "deleted"],
)
def test_rule_6_stored_file_that_changed_is_refused(
    store: str, folder: Path, tmp_path: Path, change: bytes | None, problem: str
) -> None:
    reference = publish(folder, kind="model", store=store)
    _change_stored(reference, "model/weights.bin", change)
    with pytest.raises(SecvecError, match=problem):
        fetch(reference)
    assert not (tmp_path / "cache" / "artifacts").exists()
    assert _scratch_left(tmp_path) == []


def test_rule_6_artifact_without_manifest_is_unfinished(store: str, folder: Path) -> None:
    reference = publish(folder, kind="model", store=store)
    _change_stored(reference, "manifest.json", None)
    with pytest.raises(SecvecError, match="is not there or unfinished"):
        fetch(reference)


def test_rule_6_extra_stored_file_never_reaches_a_reader(store: str, folder: Path) -> None:
    reference = publish(folder, kind="model", store=store)
    _change_stored(reference, "model/adapter_config.json", b"{}")
    if reference.uri.startswith("s3://"):
        assert list_files(fetch(reference)) == ["manifest.json", "model/weights.bin", "notes.json"]
    else:
        with pytest.raises(SecvecError, match=r"file 'model/adapter_config\.json' is not in the manifest"):
            fetch(reference)


def test_rule_6_published_artifact_is_never_replaced(store: str, folder: Path) -> None:
    reference = publish(folder, kind="model", store=store)
    _change_stored(reference, "notes.json", b"[]")
    with pytest.raises(SecvecError, match=r"notes\.json: (has digest|an object with other content)"):
        publish(folder, kind="model", store=store)


def test_rule_6_manifest_is_written_last(s3_bucket: str, folder: Path) -> None:
    reference = publish(folder, kind="model", store=f"{s3_bucket}/first")
    second = reference.model_copy(update={"uri": reference.uri.replace("/first/", "/second/")})
    write_bytes(join_uri(second.uri, "notes.json"), b"in the way")
    with pytest.raises(SecvecError, match=r"notes\.json: an object with other content is there"):
        publish(folder, kind="model", store=f"{s3_bucket}/second")
    assert list_uris(second.uri) == [
        join_uri(second.uri, name) for name in ("model/weights.bin", "notes.json")
    ]
    with pytest.raises(SecvecError, match="is not there or unfinished"):
        fetch(second)
    _change_stored(second, "notes.json", None)
    assert publish(folder, kind="model", store=f"{s3_bucket}/second") == second
    fetch(second)


def test_damaged_copy_in_the_cache_is_fetched_again(s3_bucket: str, folder: Path) -> None:
    reference = publish(folder, kind="model", store=s3_bucket)
    found = fetch(reference)
    (found / "notes.json").write_text("[]")
    (found / "extra").write_text("x")
    assert (fetch(reference) / "notes.json").read_text() == "{}"
    assert list_files(found) == ["manifest.json", "model/weights.bin", "notes.json"]


class _Tamperer(BaseHTTPRequestHandler):
    """Stands between reader and S3 server, and alters the bodies of weights on the way."""

    protocol_version = "HTTP/1.1"
    upstream = ""
    fault = ""

    def do_GET(self) -> None:
        request = urllib.request.Request(
            self.upstream + self.path, headers=dict(self.headers), method=self.command
        )
        with urllib.request.urlopen(request) as answer:
            body = answer.read()
            self.send_response(answer.status)
            kept = [(k, v) for k, v in answer.headers.items() if not k.lower().startswith("x-amz-checksum")]
        if self.path.endswith("weights.bin") and self.command == "GET":
            body = body[:-1] if self.fault == "truncated" else body[:-1] + bytes([body[-1] ^ 1])
        for name, value in kept:
            if name.lower() not in ("content-length", "transfer-encoding", "connection", "date", "server"):
                self.send_header(name, value)
        length = dict(kept)["Content-Length"] if self.command == "HEAD" else len(body)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def _tampering(upstream: str, fault: str) -> Iterator[str]:
    handler = type("Handler", (_Tamperer,), {"upstream": upstream, "fault": fault})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("fault", ["truncated", "flipped"])
def test_rule_6_download_damaged_on_the_way_is_refused(
    s3_bucket: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    (folder / "model" / "weights.bin").write_bytes(LARGE)
    reference = publish(folder, kind="model", store=s3_bucket)
    with _tampering(os.environ["AWS_ENDPOINT_URL"], fault) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        with pytest.raises(SecvecError, match=r"weights\.bin: has (\d+ bytes|digest)"):
            fetch(reference)
    assert _scratch_left(tmp_path) == []
    assert not (tmp_path / "cache" / "artifacts").exists()


def test_manifest_that_names_a_file_outside_is_refused(s3_bucket: str, tmp_path: Path) -> None:
    entry = {"digest": digest_bytes(b"x"), "size": 1}
    data = json.dumps({"schema": 1, "kind": "model", "about": {}, "files": {"../../evil": entry}}).encode()
    reference = Reference(kind="model", uri=f"{s3_bucket}/a/b", digest=digest_bytes(data))
    write_bytes(f"{reference.uri}/manifest.json", data)
    with pytest.raises(SecvecError, match=r"unsafe file name '\.\./\.\./evil'"):
        fetch(reference)
    assert not list(tmp_path.rglob("evil"))


def test_check_store_leaves_a_usable_store(store: str, folder: Path, tmp_path: Path) -> None:
    check_store(store)
    check_store(store)
    assert _scratch_left(tmp_path) == []
    publish(folder, kind="model", store=store)


def test_check_store_removes_what_was_abandoned_and_nothing_else(tmp_path: Path) -> None:
    store = tmp_path / "store"
    for name, days in (("old", 2), ("young", 0), ("old-but-written-to", 2)):
        folder = store / ".building" / name
        folder.mkdir(parents=True)
        (folder / "file").write_bytes(b"x")
        for path in (folder / "file", folder):
            os.utime(path, (time.time() - days * 86400,) * 2)
    (store / ".building" / "old-but-written-to" / "file").touch()
    check_store(str(store))
    assert sorted(path.name for path in store.glob(".building/*")) == ["old-but-written-to", "young"]


def test_check_store_leaves_uploads_that_somebody_may_be_at(
    s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(s3, "abort_uploads", lambda uri, *, older_than: asked.append((uri, older_than.days)))
    check_store(f"{s3_bucket}/store")
    assert asked == [(f"{s3_bucket}/store", 1)]


def test_uploads_are_aborted_by_age(s3_bucket: str) -> None:
    import boto3

    client, bucket = boto3.client("s3"), s3_bucket.removeprefix("s3://")
    client.create_multipart_upload(Bucket=bucket, Key="store/x")  # the test server dates it to 2010
    assert s3.abort_uploads(f"{s3_bucket}/store", older_than=timedelta(days=36500)) == 0
    assert s3.abort_uploads(f"{s3_bucket}/store", older_than=timedelta(days=365)) == 1


def test_publishing_again_sweeps_the_uploads_of_an_attempt_that_was_killed(
    s3_bucket: str, folder: Path
) -> None:
    import boto3

    client, bucket = boto3.client("s3"), s3_bucket.removeprefix("s3://")
    reference = publish(folder, kind="dataset", store=f"{s3_bucket}/store")
    key = reference.uri.removeprefix(f"{s3_bucket}/")
    client.create_multipart_upload(Bucket=bucket, Key=f"{key}/rows.jsonl")
    client.create_multipart_upload(Bucket=bucket, Key="store/model/another")
    assert publish(folder, kind="dataset", store=f"{s3_bucket}/store") == reference
    (left,) = client.list_multipart_uploads(Bucket=bucket)["Uploads"]
    assert left["Key"] == "store/model/another"


@pytest.mark.parametrize(("bad", "survived"), [(1, True), (3, True), (4, False)])
def test_a_download_that_differs_is_fetched_again(
    s3_bucket: str, folder: Path, monkeypatch: pytest.MonkeyPatch, bad: int, survived: bool
) -> None:
    reference = publish(folder, kind="dataset", store=f"{s3_bucket}/store")
    monkeypatch.setattr("secvec.components.shared.artifacts.pause", lambda tries: None)
    download, left = s3.download_object, [bad]

    def spoil(uri: str, path: Path) -> None:
        download(uri, path)
        if left[0] and not uri.endswith("manifest.json"):
            left[0] -= 1
            path.write_bytes(bytes(path.stat().st_size))

    monkeypatch.setattr(s3, "download_object", spoil)
    if survived:
        assert fetch(reference).is_dir()
        return
    with pytest.raises(SecvecError, match=r"s3://.*: has digest sha256:.*; accepted: sha256:"):
        fetch(reference)


def test_check_store_refuses_a_file(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("x")
    with pytest.raises(SecvecError, match=r"store.*: (Not a directory|File exists); accepted: "):
        check_store(str(tmp_path / "store"))


def test_check_store_refuses_an_absent_bucket(s3_server: str) -> None:
    with pytest.raises(SecvecError, match="bucket 'no-such' does not exist"):
        check_store("s3://no-such/store")


def test_check_store_refuses_https() -> None:
    with pytest.raises(SecvecError, match="https is read only"):
        check_store("https://host/store")


def test_one_file_is_verified_without_the_others(folder: Path, store: str) -> None:
    reference = publish(folder, kind="model", store=store)
    assert fetch_file(reference, "notes.json") == b"{}"
    write_bytes(join_uri(reference.uri, "notes.json"), b"[]")
    with pytest.raises(SecvecError, match=r"notes\.json: has digest"):
        fetch_file(reference, "notes.json")
    with pytest.raises(SecvecError, match=r"without other\.json"):
        fetch_file(reference, "other.json")
    with pytest.raises(SecvecError, match="holds a model"):
        fetch_file(reference.model_copy(update={"kind": "vector"}), "notes.json")
    with pytest.raises(SecvecError, match=r"manifest\.json: has digest"):
        fetch_file(reference.model_copy(update={"digest": "sha256:" + "0" * 64}), "notes.json")
    absent = reference.model_copy(update={"uri": join_uri(store, "model", "0" * 64)})
    with pytest.raises(SecvecError, match="unfinished"):
        fetch_file(absent, "notes.json")
