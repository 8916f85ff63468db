import base64
import os
import stat
from pathlib import Path

import pytest

from secvec.components.shared import audit
from secvec.components.shared.custody import MAGIC, ensure_custody_key, open_sealed, seal
from secvec.components.shared.errors import SecvecError

CONTEXT = {"base_digest": "sha256:" + "a" * 64, "purpose": "security-vector"}
FILES = {"adapter_model.safetensors": os.urandom(20_000), "adapter_config.json": b"{}\n", "empty": b""}


@pytest.fixture
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = ensure_custody_key(tmp_path / "keys" / "custody")
    monkeypatch.setenv("SECVEC_CUSTODY_KEY", str(path))
    monkeypatch.setenv("SECVEC_AUDIT_LOG", str(tmp_path / "log.jsonl"))
    return path


def test_what_is_sealed_opens_again(key: Path) -> None:
    blob = seal(FILES, context=CONTEXT)
    assert open_sealed(blob, context=CONTEXT) == FILES


def test_nothing_of_the_content_can_be_read(key: Path) -> None:
    blob = seal(FILES, context=CONTEXT)
    assert FILES["adapter_model.safetensors"][:64] not in blob
    assert b"adapter_model" not in blob


def test_the_opening_is_in_the_log_before(key: Path, tmp_path: Path) -> None:
    blob = seal(FILES, context=CONTEXT)
    open_sealed(blob, context=CONTEXT, opened_by="fine_tune_guarded")
    assert '"vector_opened"' in (tmp_path / "log.jsonl").read_text()
    assert CONTEXT["base_digest"] in (tmp_path / "log.jsonl").read_text()
    assert audit.verify(str(tmp_path / "log.jsonl")).size == 1


@pytest.mark.parametrize("log", ["", "/dev/full", "/proc/none/log.jsonl"])
def test_rule_4_without_a_log_the_vector_is_not_opened(
    key: Path, monkeypatch: pytest.MonkeyPatch, log: str
) -> None:
    blob = seal(FILES, context=CONTEXT)
    monkeypatch.setenv("SECVEC_AUDIT_LOG", log)
    with pytest.raises(SecvecError, match="audit log"):
        open_sealed(blob, context=CONTEXT)


def test_nothing_is_written_to_disk_on_opening(key: Path, tmp_path: Path) -> None:
    blob = seal(FILES, context=CONTEXT)
    before = set(tmp_path.rglob("*"))
    open_sealed(blob, context=CONTEXT)
    assert set(tmp_path.rglob("*")) - before == {tmp_path / "log.jsonl"}


@pytest.mark.parametrize(
    "context",
    [
        {**CONTEXT, "base_digest": "sha256:" + "b" * 64},
        {**CONTEXT, "purpose": "other"},
        {**CONTEXT, "more": "x"},
    ],
)
def test_another_context_does_not_open_it(key: Path, context: dict[str, str]) -> None:
    blob = seal(FILES, context=CONTEXT)
    with pytest.raises(SecvecError, match="accepted"):
        open_sealed(blob, context=context)
    with pytest.raises(SecvecError, match="accepted"):
        open_sealed(seal(FILES, context=context), context=CONTEXT)


@pytest.mark.parametrize("context", [{}, {"base_digest": "x"}, {"purpose": "x", "base_digest": ""}])
def test_an_incomplete_context_is_refused(key: Path, context: dict[str, str]) -> None:
    with pytest.raises(SecvecError, match="encryption context lacks"):
        seal(FILES, context=context)


def test_another_key_does_not_open_it(key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blob = seal(FILES, context=CONTEXT)
    monkeypatch.setenv("SECVEC_CUSTODY_KEY", str(ensure_custody_key(tmp_path / "other")))
    with pytest.raises(SecvecError, match="cannot decrypt a vector"):
        open_sealed(blob, context=CONTEXT)


def test_any_changed_byte_is_refused(key: Path) -> None:
    blob = seal({"a": os.urandom(300)}, context=CONTEXT)
    for position in range(0, len(blob), 7):
        changed = bytearray(blob)
        changed[position] ^= 1
        with pytest.raises(SecvecError):
            open_sealed(bytes(changed), context=CONTEXT)


@pytest.mark.parametrize("change", ["empty", "cut", "extended", "magic only", "junk"])
def test_a_blob_of_another_length_is_refused(key: Path, change: str) -> None:
    blob = seal(FILES, context=CONTEXT)
    changed = {
        "empty": b"",
        "cut": blob[:-1],
        "extended": blob + b"x",
        "magic only": MAGIC,
        "junk": os.urandom(5000),
    }[change]
    with pytest.raises(SecvecError, match="not a whole sealed vector"):
        open_sealed(changed, context=CONTEXT)


def test_public_loaders_do_not_know_the_format(key: Path, tmp_path: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load

    with pytest.raises(SafetensorError):
        load(seal(FILES, context=CONTEXT))


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660])
def test_a_key_that_others_may_read_is_refused(key: Path, mode: int) -> None:
    key.chmod(mode)
    with pytest.raises(SecvecError, match="open to other users"):
        seal(FILES, context=CONTEXT)


@pytest.mark.parametrize(
    "content",
    [b"", b"not base64!", base64.b64encode(os.urandom(16)), os.urandom(32)],
    ids=["empty", "text", "half", "raw"],
)
def test_a_file_that_is_no_key_is_refused(key: Path, content: bytes) -> None:
    key.write_bytes(content)
    with pytest.raises(SecvecError, match="does not hold a custody key"):
        seal(FILES, context=CONTEXT)


def test_a_missing_key_is_named(key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key.unlink()
    with pytest.raises(SecvecError, match=r"keys/custody: cannot be read .*No such file"):
        seal(FILES, context=CONTEXT)
    monkeypatch.delenv("SECVEC_CUSTODY_KEY")
    with pytest.raises(SecvecError, match="no custody key is configured"):
        seal(FILES, context=CONTEXT)


def test_a_key_is_created_once_for_its_owner(key: Path) -> None:
    before = key.read_bytes()
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert ensure_custody_key(key).read_bytes() == before
    assert [path.name for path in key.parent.iterdir()] == ["custody"]


@pytest.fixture
def kms_key(key: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    import boto3
    from moto import mock_aws

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    with mock_aws():
        client = boto3.client("kms", region_name="eu-central-1")
        monkeypatch.setenv("SECVEC_CUSTODY_KEY", client.create_key()["KeyMetadata"]["Arn"])
        yield client


def test_a_kms_key_seals_and_opens(kms_key: object) -> None:
    blob = seal(FILES, context=CONTEXT)
    assert open_sealed(blob, context=CONTEXT) == FILES
    with pytest.raises(SecvecError, match="cannot decrypt a vector"):
        open_sealed(blob, context={**CONTEXT, "purpose": "other"})


def test_another_kms_key_does_not_open_it(kms_key: object, monkeypatch: pytest.MonkeyPatch) -> None:
    blob = seal(FILES, context=CONTEXT)
    monkeypatch.setenv("SECVEC_CUSTODY_KEY", kms_key.create_key()["KeyMetadata"]["Arn"])
    with pytest.raises(SecvecError, match="cannot decrypt a vector"):
        open_sealed(blob, context=CONTEXT)


@pytest.mark.parametrize("arn", ["arn:aws:s3:::bucket", "arn:aws:kms", "arn:aws:kms::1:key/x"])
def test_what_is_no_key_arn_is_refused(key: Path, monkeypatch: pytest.MonkeyPatch, arn: str) -> None:
    monkeypatch.setenv("SECVEC_CUSTODY_KEY", arn)
    with pytest.raises(SecvecError, match="not the ARN of a KMS key"):
        seal(FILES, context=CONTEXT)
