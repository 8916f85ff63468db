"""The digest of secvec's own code: what cache keys and signed statements are bound to."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path

import rfc8785

_SUFFIXES = {".py", ".j2", ".json", ".yaml"}


@functools.cache
def code_digest() -> str:
    """Give ``sha256:<hex>`` over the package's code and data files, by relative name and content.

    An editable checkout and a wheel built from it have the same digest.
    """
    import secvec.components
    import secvec.pipelines

    digests = {
        f"{package.__name__}/{path.relative_to(root).as_posix()}": hashlib.sha256(
            path.read_bytes()
        ).hexdigest()
        for package in (secvec.components, secvec.pipelines)
        for root in [Path(package.__path__[0])]
        for path in _packaged_files(root)
    }
    return f"sha256:{hashlib.sha256(rfc8785.dumps(digests)).hexdigest()}"


def _packaged_files(folder: Path) -> Iterator[Path]:
    # Only folders that are packages go into a wheel; examples and caches beside them do not. A component's
    # metadata say when it was last verified and decide nothing.
    for path in folder.iterdir():
        if path.is_dir() and (path / "__init__.py").is_file():
            yield from _packaged_files(path)
        elif path.is_file() and path.suffix in _SUFFIXES and path.name != "metadata.yaml":
            yield path
