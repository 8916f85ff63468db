"""The shipped folder's OpenSSF signature, and the format's own tool."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from secvec.components.shared.errors import SecvecError
from secvec.components.shared.manifest import digest_file
from secvec.components.shared.model_signature import sign_model, verify_model_signature
from secvec.components.shared.signing_keys import ensure_signing_key


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SECVEC_SIGNING_KEY", str(ensure_signing_key(tmp_path / "key")))
    model = tmp_path / "model"
    (model / "sub").mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "sub/Z", "sub/a"):
        (model / name).write_text(name)
    return model


def digests(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): digest_file(p) for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def signed(folder: Path) -> tuple[bytes, bytes]:
    found = sign_model(digests(folder), name="model")
    assert found
    return found


def test_the_same_files_have_the_same_signature(folder: Path, signed: tuple[bytes, bytes]) -> None:
    verify_model_signature(signed[0], public_key=signed[1].decode(), files=digests(folder))
    assert sign_model(dict(reversed(digests(folder).items())), name="model") == signed


def test_the_formats_own_tool_verifies_it(folder: Path, signed: tuple[bytes, bytes], tmp_path: Path) -> None:
    from model_signing import verifying

    (tmp_path / "model.sig").write_bytes(signed[0])
    (tmp_path / "model.pub").write_bytes(signed[1])
    config = verifying.Config().use_elliptic_key_verifier(public_key=tmp_path / "model.pub")
    config.verify(folder, tmp_path / "model.sig")
    (folder / "sub" / "a").write_text("b")
    with pytest.raises(ValueError, match="mismatch"):
        verifying.Config().use_elliptic_key_verifier(public_key=tmp_path / "model.pub").verify(
            folder, tmp_path / "model.sig"
        )


@pytest.mark.parametrize(
    "change",
    [
        lambda files: files.pop("config.json"),
        lambda files: files.update({"more": "sha256:" + "0" * 64}),
        lambda files: files.update({"config.json": "sha256:" + "0" * 64}),
        lambda files: files.update({".git/config": "sha256:" + "0" * 64}),
        lambda files: files.clear(),
    ],
    ids=range(5),
)
def test_other_files_are_refused(folder: Path, signed: tuple[bytes, bytes], change: Any) -> None:
    files = digests(folder)
    change(files)
    with pytest.raises(SecvecError, match=r"model\.sig: is not about this file"):
        verify_model_signature(signed[0], public_key=signed[1].decode(), files=files)


EDITS: list[Callable[[Any], Any]] = [
    lambda bundle: bundle.clear(),
    lambda bundle: bundle.update(mediaType="application/json"),
    lambda bundle: bundle["verificationMaterial"].update(certificate={"rawBytes": ""}),
    lambda bundle: bundle["verificationMaterial"]["publicKey"].update(hint="0" * 64),
    lambda bundle: bundle["verificationMaterial"].pop("publicKey"),
    lambda bundle: bundle["dsseEnvelope"].update(payload="e30="),
    lambda bundle: bundle["dsseEnvelope"].update(payloadType="text/plain"),
    lambda bundle: bundle["dsseEnvelope"].update(signatures=[]),
    lambda bundle: bundle["dsseEnvelope"]["signatures"].append(bundle["dsseEnvelope"]["signatures"][0]),
    lambda bundle: bundle["dsseEnvelope"]["signatures"][0].update(sig=""),
    lambda bundle: bundle["dsseEnvelope"]["signatures"][0].update(keyid="x"),
]


@pytest.mark.parametrize("edit", EDITS, ids=range(len(EDITS)))
def test_an_edited_bundle_is_refused(folder: Path, signed: tuple[bytes, bytes], edit: Any) -> None:
    bundle = json.loads(signed[0])
    edit(bundle)
    with pytest.raises(SecvecError, match="cannot be believed"):
        verify_model_signature(
            json.dumps(bundle).encode(), public_key=signed[1].decode(), files=digests(folder)
        )


@pytest.mark.parametrize(
    "change",
    [
        {"ignore_paths": ["config.json"]},
        {"ignore_paths": [".git"]},
        {"allow_symlinks": True},
        {"method": "shards"},
        {"hash_type": "blake2b"},
    ],
    ids=str,
)
def test_a_signature_that_leaves_something_out_is_refused(
    folder: Path, change: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Signed by the right key, in a form that the format allows and this product does not."""
    from secvec.components.shared import model_signature

    with monkeypatch.context() as patch:
        patch.setattr(model_signature, "_SERIALIZATION", {**model_signature._SERIALIZATION, **change})
        found = sign_model(digests(folder), name="model")
    assert found
    with pytest.raises(SecvecError, match="not of the strict form"):
        verify_model_signature(found[0], public_key=found[1].decode(), files=digests(folder))


def test_another_key_is_refused(
    folder: Path, signed: tuple[bytes, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECVEC_SIGNING_KEY", str(ensure_signing_key(tmp_path / "other")))
    other = sign_model(digests(folder), name="model")
    assert other and other[1] != signed[1]
    with pytest.raises(SecvecError, match="cannot be believed"):
        verify_model_signature(signed[0], public_key=other[1].decode(), files=digests(folder))


def test_a_key_in_a_kms_leaves_the_folder_to_the_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECVEC_SIGNING_KEY", "awskms:arn:aws:kms:eu-west-1:111122223333:key/x")
    assert sign_model({"a": "sha256:" + "0" * 64}, name="model") is None
