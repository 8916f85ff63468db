"""Vectors that are revoked, expired or rotated, and who may open one at all."""

from __future__ import annotations

import ast
import json
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from secvec.components.shared.artifacts import fetch
from secvec.components.shared.custody import ensure_custody_key
from secvec.components.shared.errors import SecvecError
from secvec.components.shared.references import Reference
from secvec.components.shared.vectors import (
    check_in_force,
    find_current,
    make_validity,
    open_vector,
    publish_vector,
    read_certificate,
    revoke_vector,
    rotate_vector,
)

ROOT = Path(__file__).parents[3]
BASE = "sha256:" + "a" * 64
FILES = {"adapter_config.json": b"{}", "adapter_model.safetensors": bytes(range(200))}
CERTIFICATE = {
    "schema": 1,
    "passed": True,
    "base_digest": BASE,
    "data_digest": "sha256:" + "d" * 64,
    "vector_tensors_digest": "sha256:" + "e" * 64,
}


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Folder or bucket of store and log, with a custody key."""
    where = str(tmp_path) if request.param == "local" else str(request.getfixturevalue("s3_bucket"))
    monkeypatch.setenv("SECVEC_AUDIT_LOG", f"{where}/audit")
    monkeypatch.setenv("SECVEC_CUSTODY_KEY", str(ensure_custody_key(tmp_path / "custody.key")))
    monkeypatch.setenv("SECVEC_CACHE", str(tmp_path / "cache"))
    return where


@pytest.fixture
def vector(place: str) -> Reference:
    return publish(f"{place}/store")


def publish(store: str, **changes: Any) -> Reference:
    certificate = {**CERTIFICATE, **make_validity(1), **changes}
    return publish_vector(FILES, certificate, store=store, event="vector_sealed")


def open_it(vector: Reference) -> dict[str, bytes]:
    return open_vector(vector, base_digest=BASE, opened_by="fine_tune_guarded")


def read_log(place: str) -> list[dict[str, Any]]:
    from secvec.components.shared.audit import open_log

    return [json.loads(line) for line in open_log().read_lines()]


def test_a_vector_in_force_opens(vector: Reference, place: str) -> None:
    assert open_it(vector) == FILES
    assert [entry["event"] for entry in read_log(place)] == ["vector_sealed", "vector_opened"]


def test_sealing_is_in_the_log_before_anything_is_published(
    place: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SECVEC_AUDIT_LOG", "/dev/full")
    with pytest.raises(SecvecError, match="cannot write the audit log"):
        publish(str(tmp_path / "store"))
    assert not list((tmp_path / "store").rglob("*.sealed"))


def test_a_revoked_vector_is_refused_everywhere(vector: Reference, place: str) -> None:
    revoke_vector(vector, reason="a copy was found on a laptop")
    for use in (open_it, read_certificate):
        with pytest.raises(SecvecError, match=r"was revoked at .*: a copy was found on a laptop"):
            use(vector)
    events = [entry["event"] for entry in read_log(place)]
    assert events == ["vector_sealed", "vector_revoked", "vector_refused"]


def test_a_revoked_vector_is_refused_from_a_copy_too(vector: Reference, place: str) -> None:
    copy = publish(f"{place}/elsewhere")
    revoke_vector(vector, reason="leaked")
    with pytest.raises(SecvecError, match="leaked"):
        open_it(copy)


def test_removing_the_record_beside_the_vector_is_not_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECVEC_AUDIT_LOG", str(tmp_path / "audit"))
    monkeypatch.setenv("SECVEC_CUSTODY_KEY", str(ensure_custody_key(tmp_path / "custody.key")))
    vector = publish(str(tmp_path / "store"))
    revoke_vector(vector, reason="leaked")
    shutil.rmtree(tmp_path / "store" / "revoked")
    with pytest.raises(SecvecError, match="leaked"):
        open_it(vector)


def test_revoking_again_finishes_what_was_begun(vector: Reference, place: str, tmp_path: Path) -> None:
    first = revoke_vector(vector, reason="leaked")
    assert revoke_vector(vector, reason="another reason") == first


def test_without_a_log_nothing_is_revoked_or_rotated(
    vector: Reference, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SECVEC_AUDIT_LOG", "/dev/full")
    with pytest.raises(SecvecError, match="audit log"):
        revoke_vector(vector, reason="leaked")
    with pytest.raises(SecvecError, match="audit log"):
        rotate_vector(vector, new_key=str(ensure_custody_key(tmp_path / "new.key")))
    assert read_certificate(vector)["passed"]


@pytest.mark.parametrize(
    ("shift", "problem"),
    [
        (timedelta(days=2), "expired at"),
        (timedelta(days=1), "expired at"),
        (timedelta(days=-1), "after this machine's time"),
        (timedelta(minutes=-11), "after this machine's time"),
        (timedelta(minutes=-9), ""),
        (timedelta(hours=23), ""),
    ],
)
def test_a_certificate_is_held_against_the_clock(shift: timedelta, problem: str) -> None:
    now = datetime.now(UTC)
    certificate = {"issued_at": now.isoformat(), "expires_at": (now + timedelta(days=1)).isoformat()}
    if problem:
        with pytest.raises(SecvecError, match=problem):
            check_in_force(certificate, where="vector", now=now + shift)
    else:
        check_in_force(certificate, where="vector", now=now + shift)


@pytest.mark.parametrize(
    "dates",
    [{"expires_at": None}, {"issued_at": ""}, {"expires_at": "2030-01-01T00:00:00"}, {"issued_at": 3}],
    ids=str,
)
def test_a_certificate_without_dates_is_refused(dates: dict[str, Any], tmp_path: Path, place: str) -> None:
    with pytest.raises(SecvecError, match="no dates"):
        read_certificate(publish(f"{place}/store", **dates))


def test_an_expired_vector_is_refused_and_its_date_cannot_be_edited(place: str, tmp_path: Path) -> None:
    past = {"issued_at": "2020-01-01T00:00:00+00:00", "expires_at": "2020-06-01T00:00:00+00:00"}
    expired = publish(f"{place}/store", **past)
    with pytest.raises(SecvecError, match="expired at 2020-06-01"):
        open_it(expired)
    from secvec.components.shared.artifacts import publish as publish_folder

    forged = tmp_path / "forged"
    shutil.copytree(fetch(expired), forged)
    certificate = json.loads((forged / "certificate.json").read_text()) | make_validity(30)
    (forged / "certificate.json").write_text(json.dumps(certificate))
    (forged / "manifest.json").unlink()
    with pytest.raises(SecvecError, match="cannot decrypt a vector"):
        open_it(publish_folder(forged, kind="vector", store=f"{place}/store"))


def test_a_certificate_of_another_vector_does_not_open_this_one(vector: Reference, place: str) -> None:
    """So a revocation cannot be dodged by naming other tensors."""
    from secvec.components.shared.custody import open_sealed
    from secvec.components.shared.vectors import vector_context

    context = vector_context({**read_certificate(vector), "vector_tensors_digest": "sha256:" + "0" * 64})
    with pytest.raises(SecvecError, match="cannot decrypt a vector"):
        open_sealed((fetch(vector) / "vector.sealed").read_bytes(), context=context)
    assert read_log(place)[-1]["event"] == "vector_refused"


def test_a_rotated_vector_opens_under_the_new_key_by_its_old_reference(
    vector: Reference, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = ensure_custody_key(tmp_path / "new.key")
    new = rotate_vector(vector, new_key=str(key))
    with pytest.raises(SecvecError, match="cannot decrypt a vector"):
        open_it(vector)
    monkeypatch.setenv("SECVEC_CUSTODY_KEY", str(key))
    assert open_it(vector) == open_it(new) == FILES
    assert read_certificate(new) == read_certificate(vector)
    with pytest.raises(SecvecError, match="was rotated before"):
        rotate_vector(vector, new_key=str(ensure_custody_key(tmp_path / "third.key")))
    third = rotate_vector(new, new_key=str(ensure_custody_key(tmp_path / "third.key")))
    assert find_current(vector) == third


def test_a_rotated_copy_of_a_revoked_vector_is_refused(vector: Reference, tmp_path: Path) -> None:
    key = str(ensure_custody_key(tmp_path / "new.key"))
    new = rotate_vector(vector, new_key=key)
    revoke_vector(vector, reason="leaked")
    with pytest.raises(SecvecError, match="leaked"):
        read_certificate(new)


def test_a_record_of_rotation_cannot_lead_to_another_vector(
    vector: Reference, place: str, tmp_path: Path
) -> None:
    from secvec.components.shared.storage import write_bytes

    other = publish(f"{place}/store", data_digest="sha256:" + "9" * 64)
    name = vector.digest.removeprefix("sha256:")
    write_bytes(f"{place}/store/rotated/{name}.json", other.model_dump_json().encode())
    with pytest.raises(SecvecError, match="leads to another vector"):
        open_it(vector)


@pytest.mark.parametrize("name", ["revoked/" + "e" * 64, "rotated/{vector}"])
def test_a_damaged_record_refuses(vector: Reference, place: str, name: str) -> None:
    from secvec.components.shared.storage import write_bytes

    record = name.format(vector=vector.digest.removeprefix("sha256:"))
    write_bytes(f"{place}/store/{record}.json", b"{}")
    with pytest.raises(SecvecError, match=r"is no (revocation|reference)"):
        open_it(vector)


OPENERS = {
    "open_sealed": {"components/shared/custody.py", "components/shared/vectors.py"},
    "open_vector": {
        "components/shared/adapters.py",
        "components/shared/vectors.py",
        "components/fine_tune_guarded/step.py",
        "components/train_security_vector/importing.py",
    },
    "load_with_vector": {"components/shared/adapters.py", "components/evaluate_harm/step.py"},
}


@pytest.mark.parametrize("function", OPENERS)
def test_rule_4_nothing_else_opens_a_vector(function: str) -> None:
    found = set()
    for top in ("components", "pipelines"):
        for path in (ROOT / top).rglob("*.py"):
            names = {
                getattr(node, "id", getattr(node, "attr", getattr(node, "name", "")))
                for node in ast.walk(ast.parse(path.read_text()))
            }
            if function in names:
                found.add(path.relative_to(ROOT).as_posix())
    assert found == OPENERS[function]
