"""The manifest of an artifact folder: every file with its size and sha256, written last."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal

import rfc8785
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from secvec.components.shared.errors import SecvecError
from secvec.components.shared.storage import check_name, list_files, local_errors, write_bytes

MANIFEST_NAME = "manifest.json"
_DIGEST = r"^sha256:[0-9a-f]{64}$"


class Damaged(SecvecError):
    """Content has another digest or size than it must have."""


class FileEntry(BaseModel):
    """One file of an artifact: its sha256 digest and its size in bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    digest: str = Field(pattern=_DIGEST)
    size: int = Field(ge=0)


class Manifest(BaseModel):
    """What an artifact folder holds, and nothing besides.

    Attributes:
        kind: What the folder is: the kind of a published artifact, or its maker's own word.
        files: Entry by relative POSIX path; the manifest itself is not among them.
        about: Free facts about the artifact, as JSON; part of the digest.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_: Literal[1] = Field(default=1, alias="schema")
    kind: str = Field(pattern=r"^[a-z][a-z_]*$")
    files: dict[str, FileEntry] = Field(min_length=1)
    about: dict[str, Any] = {}

    def to_bytes(self) -> bytes:
        """Give the file's bytes: canonical JSON (RFC 8785), so that equal content has equal bytes."""
        return rfc8785.dumps(self.model_dump(mode="json", by_alias=True))


def digest_bytes(data: bytes) -> str:
    """Give ``sha256:<hex>`` of bytes."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def digest_file(path: Path) -> str:
    """Give ``sha256:<hex>`` of a file.

    Raises:
        SecvecError: The file cannot be read.
    """
    with local_errors(path), path.open("rb") as stream:
        return f"sha256:{hashlib.file_digest(stream, 'sha256').hexdigest()}"


def make_manifest(folder: Path, *, kind: str, about: dict[str, Any] | None = None) -> Manifest:
    """Hash every file of a folder, except a manifest that is already there.

    Raises:
        SecvecError: The folder is absent or empty, or holds a link, a device or a file with an unsafe name.
    """
    files = {
        name: FileEntry(digest=digest_file(folder / name), size=(folder / name).stat().st_size)
        for name in list_files(folder)
        if name != MANIFEST_NAME
    }
    if not files:
        raise SecvecError(
            "holds no files", where=str(folder), accepted=f"a folder with the files of a {kind}"
        )
    return Manifest(kind=kind, files=files, about=about or {})


def write_manifest(folder: Path, *, kind: str, about: dict[str, Any] | None = None) -> str:
    """Write a finished folder's manifest and return the artifact's digest, that of the manifest's bytes.

    Raises:
        SecvecError: As `make_manifest`, or the file cannot be written.
    """
    data = make_manifest(folder, kind=kind, about=about).to_bytes()
    write_bytes(str(folder / MANIFEST_NAME), data)
    return digest_bytes(data)


def read_manifest(folder: Path, *, digest: str | None = None) -> Manifest:
    """Read a folder's manifest without looking at its files.

    Raises:
        SecvecError: There is none, it is malformed, or it does not have the digest.
    """
    path = folder / MANIFEST_NAME
    with local_errors(path):
        if not path.is_file():
            raise unfinished(str(folder))
        return parse_manifest(path.read_bytes(), where=str(path), digest=digest)


def unfinished(where: str) -> SecvecError:
    """Make the error for a folder without a manifest: whoever was to write it never came to the end."""
    return SecvecError(
        f"is not there or unfinished: it has no {MANIFEST_NAME}", where=where, accepted="a finished folder"
    )


def parse_manifest(data: bytes, *, where: str, digest: str | None = None) -> Manifest:
    """Read a manifest's bytes, against their digest if it is known.

    Raises:
        SecvecError: The digest differs, or the bytes are no manifest, or name a file outside the folder.
    """
    if digest is not None and digest_bytes(data) != digest:
        raise Damaged(f"has digest {digest_bytes(data)}", where=where, accepted=digest)
    try:
        found = Manifest.model_validate_json(data)
    except ValidationError as error:
        raise SecvecError("is not a manifest", where=where, accepted="a secvec manifest, schema 1") from error
    for name in found.files:
        check_name(name, where=where)
    return found


def verify_manifest(folder: Path, *, digest: str | None = None) -> Manifest:
    """Check that a folder holds exactly the files of its manifest, byte for byte.

    Args:
        folder: The artifact folder.
        digest: What the manifest itself must hash to; without it the folder is only consistent with itself.

    Raises:
        SecvecError: The manifest is missing or differs, or any file is missing, extra or changed.
    """
    manifest = read_manifest(folder, digest=digest)
    found = set(list_files(folder)) - {MANIFEST_NAME}
    for name in sorted(found ^ manifest.files.keys()):
        problem = "is not in the manifest" if name in found else "is missing"
        raise SecvecError(
            f"file {name!r} {problem}", where=str(folder), accepted="exactly the manifest's files"
        )
    for name, entry in manifest.files.items():
        check_file(folder / name, entry)
    return manifest


def check_file(path: Path, entry: FileEntry, *, where: str = "") -> None:
    """Check one file against its entry.

    Args:
        path: The file.
        entry: What it must be.
        where: What an error names in place of the path.

    Raises:
        Damaged: Its size or digest differs.
    """
    with local_errors(path):
        size = path.stat().st_size
    if size != entry.size:
        raise Damaged(f"has {size} bytes", where=where or str(path), accepted=f"{entry.size} bytes")
    found = digest_file(path)
    if found != entry.digest:
        raise Damaged(f"has digest {found}", where=where or str(path), accepted=entry.digest)
