"""Files that hold a key: created for their owner alone, refused when others may read them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from secvec.components.shared.errors import SecvecError


def read_private(path: Path, *, what: str) -> bytes:
    """Read a key file after checking who else may.

    Raises:
        SecvecError: It is missing, not a file, or open to other users.
    """
    accepted = f"a file only its owner may read (chmod 600) holding {what}"
    try:
        with path.open("rb") as stream:
            status = os.fstat(stream.fileno())
            # Kubernetes mounts a secret as root's, readable through the pod's group.
            shared = 0o077 if status.st_uid == os.geteuid() else 0o037
            if _is_secret_volume(path, stream.fileno()):
                shared = 0o022
            if not stat.S_ISREG(status.st_mode) or status.st_mode & shared:
                mode = stat.S_IMODE(status.st_mode)
                raise SecvecError(
                    f"is open to other users (mode {mode:03o})", where=str(path), accepted=accepted
                )
            return stream.read()
    except OSError as error:
        raise SecvecError(f"cannot be read ({error.strerror})", where=str(path), accepted=accepted) from error


def _is_secret_volume(path: Path, descriptor: int) -> bool:
    """Tell whether Kubernetes mounted the file from a secret, into this container and no other.

    Kubeflow Pipelines cannot choose its mode, which is then 644. Such a volume is root's, cannot be written,
    and reaches its files through a link named ``..data``.
    """
    foreign = os.fstat(descriptor).st_uid == 0 != os.geteuid()
    read_only = os.fstatvfs(descriptor).f_flag & os.ST_RDONLY
    return bool(foreign and read_only and (path.parent / "..data").is_symlink())


def create_private(path: Path, content: bytes) -> bool:
    """Create a key file with mode 0600; one that exists is left alone.

    Returns:
        Whether the file was created.

    Raises:
        SecvecError: The folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
        # A link is create-only: of two processes that start together, one wins and both read the same key.
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError as error:
        raise SecvecError(
            f"cannot be created ({error.strerror})", where=str(path), accepted="a path in a writable folder"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    return True
