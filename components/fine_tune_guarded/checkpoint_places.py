"""Where checkpoints lie: on a disk of this machine or a volume of the cluster, and in S3 where one is named.

``SECVEC_CHECKPOINTS`` is a folder, for example on a persistent volume, or ``s3://bucket/prefix``; without it
they lie in the cache. What lies in S3 was complete on the disk before, and is verified when it comes back.
Nothing is deleted there: give the prefix a lifecycle rule.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from secvec.components.fine_tune_guarded.checkpoints import newest_complete, step_of
from secvec.components.shared import s3
from secvec.components.shared.artifacts import cache_folder, download_verified, scratch_folder
from secvec.components.shared.errors import SecvecError
from secvec.components.shared.manifest import (
    MANIFEST_NAME,
    digest_bytes,
    parse_manifest,
    read_manifest,
    verify_manifest,
)
from secvec.components.shared.progress import report
from secvec.components.shared.storage import (
    disk_full,
    free_bytes,
    join_uri,
    list_uris,
    local_path,
    read_bytes,
    scheme_of,
    sync_tree,
    write_bytes,
)

VARIABLE = "SECVEC_CHECKPOINTS"
_NAME = re.compile(r"checkpoint-(\d+)-([0-9a-f]{64})")


def local_place(key: str) -> Path:
    """The folder on a disk in which a training writes its checkpoints."""
    named = os.environ.get(VARIABLE, "")
    if named and scheme_of(named) == "file":
        return local_path(named) / key
    return cache_folder() / "training" / key


def remote_place(key: str) -> str:
    """The URI under which they are kept as well; empty where there is none.

    Raises:
        SecvecError: The variable names a place that cannot be written.
    """
    named = os.environ.get(VARIABLE, "")
    if not named or scheme_of(named) == "file":
        return ""
    if scheme_of(named) != "s3":
        raise SecvecError("is no place for checkpoints", where=named, accepted="a folder, s3://bucket/prefix")
    return join_uri(named, key)


def keep(folder: Path, *, place: str) -> None:
    """Copy a complete checkpoint to S3, its manifest last; a server that is away does not stop a training."""
    try:
        _upload(folder, place=place)
    except SecvecError as error:
        report("checkpoint_not_kept", reason=str(error))


def _upload(folder: Path, *, place: str) -> None:
    data = (folder / MANIFEST_NAME).read_bytes()
    manifest = read_manifest(folder)
    target = join_uri(place, f"{folder.name}-{digest_bytes(data).removeprefix('sha256:')}")
    for name, entry in manifest.files.items():
        s3.upload_object(folder / name, join_uri(target, name), metadata={"sha256": entry.digest})
    write_bytes(join_uri(target, MANIFEST_NAME), data, create_only=True)


def bring_back(work: Path, *, place: str) -> None:
    """Fetch the newest checkpoint in S3 that verifies, if it is newer than the newest on the disk."""
    newest = newest_complete(work)
    reached = step_of(newest) if newest else 0
    for step, digest in sorted(_find(place), reverse=True):
        if step <= reached:
            return
        source = join_uri(place, f"checkpoint-{step}-{digest}")
        try:
            _fetch(source, work / f"checkpoint-{step}", digest=f"sha256:{digest}")
        except SecvecError as error:
            report("checkpoint_passed_over", reason=str(error))
            continue
        return


def _find(place: str) -> set[tuple[int, str]]:
    found = set()
    for uri in list_uris(place):
        folder, _, name = uri.removeprefix(f"{place}/").partition("/")
        if name == MANIFEST_NAME and (match := _NAME.fullmatch(folder)):
            found.add((int(match[1]), match[2]))
    return found


def _fetch(source: str, target: Path, *, digest: str) -> None:
    data = read_bytes(where := join_uri(source, MANIFEST_NAME))
    manifest = parse_manifest(data, where=where, digest=digest)
    needed = sum(entry.size for entry in manifest.files.values())
    if free_bytes(target) < needed:
        raise disk_full(target, needed=needed)
    with scratch_folder(target.parent / ".fetching") as staged:
        for name, entry in manifest.files.items():
            download_verified(join_uri(source, name), staged / name, entry)
        write_bytes(str(staged / MANIFEST_NAME), data)
        sync_tree(staged)
        _replace(staged, target, check=lambda: verify_manifest(target, digest=digest))


def _replace(staged: Path, target: Path, *, check: Callable[[], object]) -> None:
    """Put a folder in the place of a torn one; another process of the same pod may do the same."""
    try:
        check()
        return
    except SecvecError:
        shutil.rmtree(target, ignore_errors=True)
    try:
        staged.rename(target)
    except OSError:
        check()
