"""Key files: whose modes are accepted, on a machine and as Kubernetes mounts them."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from secvec.components.shared.errors import SecvecError
from secvec.components.shared.private_files import read_private


def mount(folder: Path) -> Path:
    """A key as kubelet lays it out: the file is a link through ``..data`` into a dated folder."""
    (folder / "..2026").mkdir()
    (folder / "..2026" / "key").write_bytes(b"secret")
    (folder / "..2026" / "key").chmod(0o644)
    (folder / "..data").symlink_to("..2026")
    (folder / "key").symlink_to("..data/key")
    return folder / "key"


@pytest.fixture
def as_pod(monkeypatch: pytest.MonkeyPatch) -> Any:
    """See files as root's, as a user that is not root, on a volume that can or cannot be written."""
    real = os.fstat

    def pretend(*, read_only: bool = True, owner: int = 0, mode: int = 0o100644) -> None:
        monkeypatch.setattr(os, "geteuid", lambda: 10001)
        monkeypatch.setattr(
            "secvec.components.shared.private_files.os.fstat",
            lambda descriptor: SimpleNamespace(st_uid=owner, st_mode=mode, st_size=real(descriptor).st_size),
        )
        flag = os.ST_RDONLY if read_only else 0
        monkeypatch.setattr(
            "secvec.components.shared.private_files.os.fstatvfs",
            lambda descriptor: SimpleNamespace(f_flag=flag),
        )

    return pretend


def test_a_secret_that_kubernetes_mounted_is_read(tmp_path: Path, as_pod: Any) -> None:
    """Kubeflow Pipelines mounts secrets with mode 644 and offers no other."""
    path = mount(tmp_path)
    as_pod()
    with path.open("rb") as stream:
        assert stream.read() == b"secret"
    assert read_private(path, what="a key") == b"secret"


@pytest.mark.parametrize(
    "change",
    [{"read_only": False}, {"owner": 10001}, {"owner": 20000}, {"mode": 0o100646}, {"mode": 0o100664}],
    ids=str,
)
def test_what_only_looks_like_one_is_refused(tmp_path: Path, as_pod: Any, change: dict[str, Any]) -> None:
    path = mount(tmp_path)
    as_pod(**change)
    with pytest.raises(SecvecError, match="open to other users"):
        read_private(path, what="a key")


def test_a_file_of_root_that_all_may_read_is_refused(tmp_path: Path, as_pod: Any) -> None:
    path = tmp_path / "key"
    path.write_bytes(b"secret")
    as_pod()
    with pytest.raises(SecvecError, match="open to other users"):
        read_private(path, what="a key")
