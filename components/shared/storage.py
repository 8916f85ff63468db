"""Files by URI: a local folder (plain path or ``file://``), S3 (``s3://``), and read-only ``https://``."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from secvec.components.shared import https, s3
from secvec.components.shared.errors import SecvecError
from secvec.components.shared.s3_errors import pause

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")
_ACCEPTED = "a local path, file:///folder, s3://bucket/prefix"
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


def scheme_of(uri: str) -> str:
    """Name a URI's scheme: ``file`` (also for a plain path), ``s3`` or ``https``.

    Raises:
        SecvecError: Any other scheme, or text that is no URI.
    """
    match = _SCHEME.match(uri)
    scheme = match[1] if match else "file"
    if scheme not in ("file", "s3", "https"):
        raise SecvecError(
            f"unsupported URI scheme {scheme!r}",
            where=https.public_form(uri),
            accepted=f"{_ACCEPTED}, https:// (read only)",
        )
    if not uri or "\0" in uri or (match and not uri.startswith(f"{scheme}://")):
        raise SecvecError("is not a URI", where=repr(uri), accepted=_ACCEPTED)
    return scheme


def local_path(uri: str) -> Path:
    """Give the absolute local path of a plain path or ``file://`` URI.

    Raises:
        SecvecError: The URI is not local.
    """
    if scheme_of(uri) != "file":
        raise SecvecError(
            "is not local", where=https.public_form(uri), accepted="a local path, file:///folder"
        )
    if not uri.startswith("file://"):
        return expand_user(uri).absolute()
    try:
        parts = urlsplit(uri)
    except ValueError:  # brackets that hold no address
        parts = urlsplit("file://malformed")
    if parts.netloc not in ("", "localhost") or not parts.path or parts.query or parts.fragment:
        raise SecvecError(
            "is not a local file URI", where=uri, accepted="file:///folder, with ? and # quoted"
        )
    return Path(unquote(parts.path))


def expand_user(path: str | Path) -> Path:
    """Put home folders for ``~`` and ``~user``; an unknown user's stays a name like any other."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 (Path.expanduser raises on an unknown user)


def join_uri(base: str, *parts: str) -> str:
    """Append relative names to a URI; they are quoted where the scheme asks for it.

    Raises:
        SecvecError: A name is absolute, empty or climbs out of `base`.
    """
    for part in parts:
        check_name(part, where=base)
    escape = quote if base.startswith(("file://", "https://")) else str
    return "/".join([base.rstrip("/"), *(escape(part) for part in parts)])


def check_name(name: str, *, where: str) -> None:
    """Refuse a relative file name that could leave its folder or that not every store can hold.

    Raises:
        SecvecError: The name is absolute, or has an empty, ``.`` or ``..`` part, a backslash or a control
            character.
    """
    if any(part in ("", ".", "..") for part in name.split("/")) or "\\" in name or not name.isprintable():
        raise SecvecError(
            f"unsafe file name {name!r}", where=where, accepted="a relative path without '..' or backslashes"
        )


def list_files(folder: Path) -> list[str]:
    """List a local folder's files at any depth, as sorted relative POSIX paths.

    Raises:
        SecvecError: The folder is absent or unreadable, or holds anything but plain files and folders with
            safe names.
    """
    if folder.is_symlink() or not folder.is_dir():
        raise SecvecError("no such folder", where=str(folder), accepted="an existing folder, not a link")
    names = []
    with local_errors(folder):
        # os.walk, as Path.rglob leaves out what it may not read without a word.
        for root, folders, files in os.walk(folder, onerror=_raise):
            for path in (Path(root, name) for name in folders + files):
                mode = path.lstat().st_mode
                if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
                    raise SecvecError("is a link or a special file", where=str(path), accepted="a plain file")
                check_name(name := path.relative_to(folder).as_posix(), where=str(folder))
                if stat.S_ISREG(mode):
                    names.append(name)
    return sorted(names)


def read_bytes(uri: str) -> bytes:
    """Read one small file whole.

    Raises:
        SecvecError: The file cannot be read.
    """
    scheme = scheme_of(uri)
    if scheme == "s3":
        return s3.read_object(uri)
    if scheme == "https":
        return b"".join(https.read_chunks(uri))
    path = local_path(uri)
    with local_errors(path):
        return path.read_bytes()


def write_bytes(uri: str, data: bytes, *, create_only: bool = False) -> None:
    """Write one small file whole: it is there with all its bytes or not at all.

    Args:
        uri: Where to.
        data: All bytes.
        create_only: Never replace: an identical file is left as it is, a differing one is an error.

    Raises:
        SecvecError: The file cannot be written, or `create_only` met other content.
    """
    if not _write(uri, data, create_only=create_only) and not _holds(uri, data):
        raise SecvecError("exists with other content", where=uri, accepted="a name that is not taken")


def _holds(uri: str, data: bytes) -> bool:
    # What differs is read again where a network lies between: a bit may have turned on the way.
    for tries in range(1, 3 if scheme_of(uri) == "s3" else 1):
        if read_bytes(uri) == data:
            return True
        pause(tries)
    return read_bytes(uri) == data


def create_bytes(uri: str, data: bytes) -> bool:
    """Write one small file whole unless one is there, whatever it holds; tell whether it was written.

    Raises:
        SecvecError: The file cannot be written.
    """
    return _write(uri, data, create_only=True)


def exists(uri: str) -> bool:
    """Tell whether a file is there.

    Raises:
        SecvecError: It cannot be told: no permission, no bucket, no server.
    """
    if _writable_scheme(uri) == "s3":
        return s3.describe_object(uri) is not None
    path = local_path(uri)
    with local_errors(path):
        return path.is_file()


def list_uris(prefix: str) -> list[str]:
    """List all files under a folder, at any depth, sorted; a folder that is not there is empty.

    Raises:
        SecvecError: The folder cannot be listed, or holds links or unsafe names.
    """
    if _writable_scheme(prefix) == "s3":
        return s3.list_objects(prefix)
    folder = local_path(prefix)
    return [join_uri(prefix, name) for name in list_files(folder)] if folder.exists() else []


def download_file(uri: str, path: Path) -> None:
    """Copy one file to a local path, which appears only when it is complete.

    Raises:
        SecvecError: The file cannot be read, or the path not be written.
    """
    scheme = scheme_of(uri)
    with _beside(path) as partial:
        if scheme == "s3":
            s3.download_object(uri, partial)
        elif scheme == "https":
            with partial.open("xb") as stream:
                stream.writelines(https.read_chunks(uri))
        else:
            _copy_local(local_path(uri), partial)
        partial.replace(path)


def download_folder(uri: str, folder: Path) -> None:
    """Copy all files under a URI into a local folder.

    Raises:
        SecvecError: There is no file, or one cannot be copied.
    """
    for name in _names_under(uri):
        download_file(join_uri(uri, name), folder / name)


def upload_folder(folder: Path, uri: str) -> None:
    """Copy all files of a local folder under a URI.

    Raises:
        SecvecError: There is no file, or one cannot be copied.
    """
    scheme = _writable_scheme(uri)
    for name in _names_under(str(folder)):
        target = join_uri(uri, name)
        if scheme == "s3":
            s3.upload_object(folder / name, target)
        else:
            download_file(str(folder / name), local_path(target))


@contextmanager
def local_errors(path: Path, *, needed: int | None = None) -> Iterator[None]:
    """Turn what the operating system raises about a path into one line.

    Args:
        path: What is being read or written.
        needed: Bytes that the work needs on the disk, if known.

    Raises:
        SecvecError: For an absent file, a refused permission, a full disk and every other failure.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _DISK_FULL:
            raise disk_full(path, needed=needed) from error
        accepted = "a path that exists and that this process may use"
        raise SecvecError(str(error.strerror or error), where=str(path), accepted=accepted) from error


def disk_full(path: Path, *, needed: int | None = None) -> SecvecError:
    """Make the error for a disk that is full: the path, the bytes needed and the bytes free."""
    wanted = f"{needed} bytes needed, " if needed is not None else ""
    return SecvecError(f"disk full: {wanted}{free_bytes(path)} bytes free", where=str(path))


def tells_disk_full(error: BaseException) -> bool:
    """Whether an error of any library says that the disk is full."""
    # safetensors gives the operating system's error only in its text.
    full = getattr(error, "errno", None) in _DISK_FULL
    return full or "No space left on device" in str(error)


def sync_tree(folder: Path) -> None:
    """Wait until a folder and all that is in it is safe on the disk."""
    for path in (*folder.rglob("*"), folder):
        sync_path(path)


def sync_path(path: Path) -> None:
    """Wait until a file, or the names in a folder, are safe on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def free_bytes(path: Path) -> int:
    """Give the bytes free on the disk on which a path lies or would lie."""
    return shutil.disk_usage(next(one for one in (path, *path.parents) if one.exists())).free


def _write(uri: str, data: bytes, *, create_only: bool) -> bool:
    if _writable_scheme(uri) == "s3":
        return s3.write_object(uri, data, create_only=create_only)
    return _write_local(local_path(uri), data, create_only=create_only)


def _writable_scheme(uri: str) -> str:
    scheme = scheme_of(uri)
    if scheme == "https":
        raise SecvecError("https is read only", where=https.public_form(uri), accepted=_ACCEPTED)
    return scheme


def _names_under(uri: str) -> list[str]:
    found = list_uris(uri)
    if not found:
        raise SecvecError("is empty or not there", where=uri, accepted="a folder with files")
    names = [one.removeprefix(uri.rstrip("/") + "/") for one in found]
    return [unquote(name) for name in names] if uri.startswith("file://") else names


def _raise(error: OSError) -> None:
    raise error


@contextmanager
def _beside(path: Path, *, needed: int | None = None) -> Iterator[Path]:
    """Yield a scratch name beside `path`, on the same disk; whatever is there at the end is removed."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    with local_errors(path, needed=needed):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
        finally:
            partial.unlink(missing_ok=True)


def _write_local(path: Path, data: bytes, *, create_only: bool) -> bool:
    """Write a file whole; return False if `create_only` and it was there already."""
    with _beside(path, needed=len(data)) as partial:
        with partial.open("xb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        if not create_only:
            partial.replace(path)
            return True
        # A hard link, unlike a rename, never replaces what is there.
        try:
            path.hardlink_to(partial)
        except FileExistsError:
            return False
    return True


def _copy_local(source: Path, target: Path) -> None:
    with local_errors(source):
        stream = source.open("rb")
    with stream, target.open("xb") as out:
        shutil.copyfileobj(stream, out, 1 << 20)
