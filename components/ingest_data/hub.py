"""Data sets of the Hugging Face hub, as ``hf://datasets/owner/name[@revision][/path]``: files, no code."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import NamedTuple

from secvec.components.shared.errors import SecvecError

_FORM = "hf://datasets/owner/name, with @revision and /folder if wanted"
_URI = re.compile(
    r"hf://datasets/(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w.-]+))?(?:/(?P<path>[^?#]+))?", re.ASCII
)


class _Place(NamedTuple):
    repo: str
    revision: str
    path: str


def is_hub_uri(uri: str) -> bool:
    """Tell whether a URI names a data set of the hub."""
    return uri.startswith("hf://")


def list_files(uri: str) -> list[str]:
    """List a data set's files as URIs that name the commit they were found at.

    Raises:
        SecvecError: The hub cannot be reached, or has no such data set.
    """
    from huggingface_hub import HfApi

    place = _parse(uri)
    try:
        info = HfApi(endpoint=os.environ.get("HF_ENDPOINT")).dataset_info(
            place.repo, revision=place.revision or None, files_metadata=False
        )
    except Exception as error:  # the hub client raises a dozen types, all of which mean: not to be had
        raise _unreachable(uri, error) from error
    below = place.path.rstrip("/")
    return [
        f"hf://datasets/{place.repo}@{info.sha}/{one.rfilename}"
        for one in info.siblings or []
        if not below or one.rfilename == below or one.rfilename.startswith(f"{below}/")
    ]


def name_in(uri: str) -> str:
    """Return a file's path in its data set."""
    return _parse(uri).path


def download(uri: str, path: Path) -> None:
    """Copy one file of a data set to a local path.

    Raises:
        SecvecError: The hub cannot be reached, or has no such file.
    """
    from huggingface_hub import HfApi

    place = _parse(uri)
    folder = path.with_name(f"{path.name}.hub")
    try:
        found = HfApi(endpoint=os.environ.get("HF_ENDPOINT")).hf_hub_download(
            place.repo, place.path, repo_type="dataset", revision=place.revision or None, local_dir=folder
        )
        shutil.move(found, path)
    except Exception as error:
        raise _unreachable(uri, error) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _parse(uri: str) -> _Place:
    match = _URI.fullmatch(uri)
    if match is None or ".." in uri.split("/"):
        raise SecvecError("is no data set of the hub", where=uri, accepted=_FORM)
    return _Place(match["repo"], match["revision"] or "", match["path"] or "")


def _unreachable(uri: str, error: Exception) -> SecvecError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return SecvecError(f"cannot be fetched from the hub ({reason})", where=uri, accepted=_FORM)
