"""Length in tokens of the model's own tokenizer: the one measure that fits English and Japanese alike."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from secvec.components.ingest_data.overlap import Spoken
from secvec.components.shared.errors import SecvecError
from secvec.components.shared.manifest import digest_file
from secvec.components.shared.storage import download_file, join_uri

_FILE = "tokenizer.json"


def bring_tokenizer(uri: str, folder: Path) -> Path | None:
    """Copy a model's tokenizer to this machine, under a name that is its digest; None for no URI.

    Args:
        uri: Folder of the model or tokenizer: local, ``file://`` or ``s3://``.
        folder: Where to.

    Raises:
        SecvecError: There is none, or it cannot be read.
    """
    if not uri:
        return None
    found = folder / _FILE
    download_file(join_uri(uri, _FILE), found)
    path = found.rename(folder / f"tokenizer-{digest_file(found).removeprefix('sha256:')}.json")
    load_tokenizer(path)
    return path


@functools.lru_cache(maxsize=1)
def load_tokenizer(path: Path) -> Any:
    """Load a tokenizer, once in each process.

    Raises:
        SecvecError: The file is none.
    """
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare ones
        raise SecvecError(
            "is no tokenizer", where="overrides.ingest_data.tokenizer", accepted=f"a folder with {_FILE}"
        ) from error


def count_tokens(turns: Iterable[Spoken], path: Path) -> int:
    """Count the tokens of all turns, without those that a chat template puts around them."""
    tokenizer = load_tokenizer(path)
    return sum(len(tokenizer.encode(turn.content, add_special_tokens=False).ids) for turn in turns)
