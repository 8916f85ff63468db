"""An MLflow store in a file, which is there whole or not at all.

MLflow makes one in fifty transactions. A store whose making was cut off can be neither used nor finished: the
next attempt begins with a change that has been made already, and fails.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from secvec.components.shared.storage import local_errors

_SQLITE = "sqlite:///"


@contextmanager
def made_whole(tracking_uri: str) -> Iterator[str]:
    """Yield the URI under which to make a store; a new file gets its own name at the end.

    Args:
        tracking_uri: The store. One that exists, or is no file, is yielded as it is.
    """
    path = Path(tracking_uri.removeprefix(_SQLITE))
    if not tracking_uri.startswith(_SQLITE) or path.exists() or not path.parent.is_dir():
        yield tracking_uri
        return
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        yield f"{_SQLITE}{partial}"
        # Somebody else's, made meanwhile, stays.
        with local_errors(path), suppress(FileExistsError):
            path.hardlink_to(partial)
    finally:
        partial.unlink(missing_ok=True)
