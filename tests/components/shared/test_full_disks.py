"""Stores and caches on disks that are full, read-only or somebody else's."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from secvec.components.shared.artifacts import building, check_store, fetch, publish
from secvec.components.shared.errors import SecvecError


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """An artifact's files, 17 MiB and two bytes."""
    made = tmp_path / "made"
    (made / "model").mkdir(parents=True)
    (made / "model" / "weights.bin").write_bytes(os.urandom(17 << 20))
    (made / "notes.json").write_text("{}")
    return made


@contextmanager
def _mounted(folder: Path, options: str) -> Iterator[Path]:
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True, check=False
    )
    if made.returncode:
        pytest.skip(f"mounting a tmpfs is not permitted here: {made.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MiB."""
    if shutil.which("mount") is None:
        pytest.skip("there is no mount command")
    with _mounted(tmp_path / "disk", "size=1m") as folder:
        yield folder


def test_read_only_store_is_refused(tmp_path: Path) -> None:
    with _mounted(tmp_path / "disk", "ro") as disk, pytest.raises(SecvecError, match="Read-only file system"):
        check_store(str(disk / "store"))


def test_store_without_permission_is_refused(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere; the read-only disk stands in")
    tmp_path.chmod(0o500)
    with pytest.raises(SecvecError, match="Permission denied"):
        check_store(str(tmp_path / "store"))
    tmp_path.chmod(0o700)


def test_disk_full_while_building(small_disk: Path) -> None:
    store = str(small_disk / "store")
    refusal = pytest.raises(SecvecError, match=r"store/\.building/model-\w+: disk full: \d+ bytes free")
    with refusal, building("model", store) as scratch:
        (scratch / "weights.bin").write_bytes(bytes(2 << 20))
    assert list(small_disk.rglob("*")) == [small_disk / "store", small_disk / "store" / ".building"]


def test_disk_full_while_safetensors_writes(small_disk: Path) -> None:
    import torch
    from safetensors.torch import save_file

    with pytest.raises(SecvecError, match="disk full"), building("model", str(small_disk)) as scratch:
        save_file({"x": torch.zeros(1 << 20)}, scratch / "weights.safetensors")
    assert list(small_disk.rglob(".building/*")) == []


def test_disk_full_while_publishing_a_copy(small_disk: Path, large: Path) -> None:
    with pytest.raises(SecvecError, match=r"disk full: 17825794 bytes needed, \d+ bytes free"):
        publish(large, kind="model", store=str(small_disk))
    assert list(small_disk.rglob("*")) == [small_disk / ".building"]


def test_disk_full_while_writing_the_manifest(small_disk: Path) -> None:
    refusal = pytest.raises(SecvecError, match=r"disk full: \d+ bytes needed, 0 bytes free")
    with refusal, building("model", str(small_disk)) as scratch:
        with suppress(OSError), (scratch / "weights.bin").open("wb", buffering=0) as stream:
            while True:
                stream.write(bytes(4096))
        publish(scratch, kind="model", store=str(small_disk))
    assert list(small_disk.rglob("*")) == [small_disk / ".building"]


def test_disk_full_while_fetching(
    small_disk: Path, s3_bucket: str, large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = publish(large, kind="model", store=s3_bucket)
    monkeypatch.setenv("SECVEC_CACHE", str(small_disk))
    with pytest.raises(SecvecError, match=r"disk full: 17825794 bytes needed, \d+ bytes free"):
        fetch(reference)
    assert list(small_disk.rglob(".building/*")) == []
    assert not (small_disk / "artifacts").exists()
