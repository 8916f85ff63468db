"""Artifacts: content-addressed folders in a store, published whole or not at all, verified when fetched."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from secvec.components.shared import s3
from secvec.components.shared.errors import SecvecError
from secvec.components.shared.manifest import (
    MANIFEST_NAME,
    Damaged,
    FileEntry,
    Manifest,
    check_file,
    digest_bytes,
    make_manifest,
    parse_manifest,
    unfinished,
    verify_manifest,
)
from secvec.components.shared.progress import report
from secvec.components.shared.references import Kind, Reference
from secvec.components.shared.s3_errors import pause
from secvec.components.shared.storage import (
    disk_full,
    download_file,
    exists,
    free_bytes,
    join_uri,
    local_errors,
    local_path,
    read_bytes,
    scheme_of,
    sync_path,
    sync_tree,
    tells_disk_full,
    write_bytes,
)

CACHE_VARIABLE = "SECVEC_CACHE"
_SCRATCH = ".building"
_MARK = ".secvec-store"
_READS = 4
_ABANDONED = timedelta(days=1)
_T = TypeVar("_T")


def cache_folder() -> Path:
    """Give the folder for verified copies of remote artifacts: ``SECVEC_CACHE`` or ``~/.cache/secvec``."""
    return local_path(os.environ.get(CACHE_VARIABLE) or "~/.cache/secvec")


def check_store(store: str) -> None:
    """Prove that a store can be written and read, so that a run fails before its work and not after.

    Also removes what was begun and not finished a day ago or longer, by runs that were killed. Leaves one
    constant file ``.secvec-store``: deleting may be forbidden where creating is allowed.

    Raises:
        SecvecError: The store is absent, read-only or refuses the credentials.
    """
    write_bytes(join_uri(store, _MARK), b"secvec artifact store, layout 1\n", create_only=True)
    with scratch_folder(_scratch_parent(store)) as folder:
        write_bytes(str(folder / _MARK), b"")
    _sweep_scratch(_scratch_parent(store))
    if scheme_of(store) == "s3":
        _sweep_uploads(store, older_than=_ABANDONED)


def artifact_uri(store: str, *, kind: Kind, digest: str) -> str:
    """Give the URI at which a store holds an artifact."""
    base = local_path(store).as_uri() if scheme_of(store) == "file" else store
    return join_uri(base, kind, digest.removeprefix("sha256:"))


@contextmanager
def building(kind: Kind, store: str) -> Iterator[Path]:
    """Yield an empty scratch folder in which to build an artifact; `publish` consumes it.

    In a local store it lies on the store's own disk, so that publishing is one rename. If the block raises,
    the folder is removed; a disk that filled up while it was built is told as such.

    Raises:
        SecvecError: The folder cannot be made, or the disk is full.
    """
    parent = _scratch_parent(store)
    folder = parent / f"{kind}-{secrets.token_hex(8)}"
    with local_errors(folder):
        folder.mkdir(parents=True)
    try:
        yield folder
    except BaseException as error:
        # Made before the folder is removed, when the disk is as full as it was.
        full = disk_full(folder) if tells_disk_full(error) else None
        shutil.rmtree(folder, ignore_errors=True)
        if full:
            raise full from error
        raise


def publish(folder: Path, *, kind: Kind, store: str, about: dict[str, Any] | None = None) -> Reference:
    """Put a finished folder into a store under its digest, the manifest last.

    Publishing the same content again gives the same reference. A folder from `building` is consumed; any
    other folder is left as it is.

    Raises:
        SecvecError: The folder holds links or nothing, the store cannot be written or is full, or a
            damaged artifact lies at the same place. Nothing partial is visible then.
    """
    owned = folder.resolve().parent == _scratch_parent(store).resolve()
    manifest = make_manifest(folder, kind=kind, about=about)
    data = manifest.to_bytes()
    digest = digest_bytes(data)
    uri = artifact_uri(store, kind=kind, digest=digest)
    if scheme_of(store) == "s3":
        _publish_s3(folder, manifest, uri=uri)
    else:
        _publish_local(folder, manifest, target=local_path(uri), owned=owned)
    if owned:
        shutil.rmtree(folder, ignore_errors=True)
    return Reference(kind=kind, uri=uri, digest=digest)


def fetch(reference: Reference) -> Path:
    """Give a verified local folder of a published artifact; it must not be changed.

    A local store's folder is verified where it lies; a remote artifact is copied into the cache first.

    Raises:
        SecvecError: The artifact is absent, unfinished, of another kind, or any byte of it differs.
    """
    if scheme_of(reference.uri) == "file":
        folder = local_path(reference.uri)
        manifest = verify_manifest(folder, digest=reference.digest)
    else:
        folder = cache_folder() / "artifacts" / reference.kind / reference.digest.removeprefix("sha256:")
        manifest = _fetch_remote(reference, folder)
    if manifest.kind != reference.kind:
        raise SecvecError(f"holds a {manifest.kind}", where=reference.uri, accepted=f"a {reference.kind}")
    return folder


def fetch_file(reference: Reference, name: str) -> bytes:
    """Give one verified small file of a published artifact, without touching the others.

    Raises:
        SecvecError: The artifact is absent or unfinished, has no such file, or the file differs.
    """
    source = join_uri(reference.uri, MANIFEST_NAME)
    if not exists(source):
        raise unfinished(reference.uri)
    _, manifest = _read_manifest(reference)
    entry = manifest.files.get(name)
    if manifest.kind != reference.kind or entry is None:
        problem = f"holds a {manifest.kind} without {name}" if entry is None else f"holds a {manifest.kind}"
        raise SecvecError(problem, where=reference.uri, accepted=f"a {reference.kind} with {name}")
    where = join_uri(reference.uri, name)

    def read() -> bytes:
        data = read_bytes(where)
        if digest_bytes(data) != entry.digest:
            raise Damaged(f"has digest {digest_bytes(data)}", where=where, accepted=entry.digest)
        return data

    return _again_if_damaged(read)


def _scratch_parent(store: str) -> Path:
    local = scheme_of(store) == "file"
    return (local_path(store) if local else cache_folder()) / _SCRATCH


@contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """Yield a new empty folder in a folder; it is removed at the end."""
    folder = parent / secrets.token_hex(8)
    try:
        with local_errors(folder):
            folder.mkdir(parents=True)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _sweep_scratch(parent: Path) -> None:
    until = time.time() - _ABANDONED.total_seconds()
    for folder in parent.glob("*"):
        with suppress(FileNotFoundError):
            if max(path.lstat().st_mtime for path in (folder, *folder.rglob("*"))) < until:
                shutil.rmtree(folder, ignore_errors=True)


def _publish_local(folder: Path, manifest: Manifest, *, target: Path, owned: bool) -> None:
    data = manifest.to_bytes()
    digest = digest_bytes(data)
    if target.exists():
        verify_manifest(target, digest=digest)
        return
    with scratch_folder(target.parents[1] / _SCRATCH) as copy:
        staged = folder if owned else _copy_files(folder, copy, manifest)
        write_bytes(str(staged / MANIFEST_NAME), data)
        _move_into_place(staged, target, digest=digest)


def _copy_files(source: Path, target: Path, manifest: Manifest) -> Path:
    _check_room(target, manifest)
    for name, entry in manifest.files.items():
        download_file(str(source / name), target / name)
        check_file(target / name, entry)
    return target


def _check_room(path: Path, manifest: Manifest) -> None:
    needed = sum(entry.size for entry in manifest.files.values())
    if free_bytes(path) < needed:
        raise disk_full(path, needed=needed)


def _move_into_place(staged: Path, target: Path, *, digest: str) -> None:
    """Rename a whole folder to where readers look; a folder that got there first must be the same."""
    with local_errors(target):
        sync_tree(staged)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            staged.rename(target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            verify_manifest(target, digest=digest)
        sync_path(target.parent)
        sync_path(target.parents[1])


def _publish_s3(folder: Path, manifest: Manifest, *, uri: str) -> None:
    for name, entry in manifest.files.items():
        target = join_uri(uri, name)
        if not _is_uploaded(target, entry):
            s3.upload_object(folder / name, target, metadata={"sha256": entry.digest})
    write_bytes(join_uri(uri, MANIFEST_NAME), manifest.to_bytes(), create_only=True)
    # What an earlier attempt began, or another that is not needed any more: its owner finds the object here.
    _sweep_uploads(uri)


def _sweep_uploads(uri: str, *, older_than: timedelta = timedelta()) -> None:
    try:
        count = s3.abort_uploads(uri, older_than=older_than)
    except SecvecError as error:
        # A role may lack the right to list them; then the next one, or the bucket's own rule, cleans up.
        report("uploads_not_swept", reason=str(error))
        return
    if count:
        report("uploads_swept", count=count, under=uri)


def _is_uploaded(uri: str, entry: FileEntry) -> bool:
    found = s3.describe_object(uri)
    if found is None:
        return False
    if found["size"] != entry.size or found["metadata"].get("sha256") != entry.digest:
        raise SecvecError("an object with other content is there", where=uri, accepted="none, or the same")
    return True


def _fetch_remote(reference: Reference, folder: Path) -> Manifest:
    if folder.exists():
        try:
            return verify_manifest(folder, digest=reference.digest)
        except SecvecError:
            # A damaged copy: the store has the original.
            with local_errors(folder):
                shutil.rmtree(folder)
    source = join_uri(reference.uri, MANIFEST_NAME)
    if scheme_of(source) == "s3" and not exists(source):
        raise unfinished(reference.uri)
    data, manifest = _read_manifest(reference)
    with scratch_folder(cache_folder() / _SCRATCH) as staged:
        _check_room(staged, manifest)
        for name, entry in manifest.files.items():
            download_verified(join_uri(reference.uri, name), staged / name, entry)
        write_bytes(str(staged / MANIFEST_NAME), data)
        _move_into_place(staged, folder, digest=reference.digest)
    return manifest


def _read_manifest(reference: Reference) -> tuple[bytes, Manifest]:
    source = join_uri(reference.uri, MANIFEST_NAME)

    def read() -> tuple[bytes, Manifest]:
        data = read_bytes(source)
        return data, parse_manifest(data, where=source, digest=reference.digest)

    return _again_if_damaged(read)


def download_verified(source: str, path: Path, entry: FileEntry) -> None:
    """Copy one file to a local path and hold it against its entry; a damaged copy is fetched again.

    Raises:
        SecvecError: It cannot be read, or is damaged each time.
    """

    def download() -> None:
        download_file(source, path)
        check_file(path, entry, where=source)

    _again_if_damaged(download)


def _again_if_damaged(read: Callable[[], _T]) -> _T:
    """Read what must have a digest, and again if it has another: most bits turn on the way."""
    for tries in range(1, _READS):
        try:
            return read()
        except Damaged:
            pause(tries)
    return read()
