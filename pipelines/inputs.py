"""Looks at a run's inputs before any work is done for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from secvec.components.shared.errors import SecvecError
from secvec.pipelines.guarded_fine_tuning.config import SOURCE_FIELDS, RunConfig


def check_inputs(config: RunConfig) -> None:
    """Refuse a run whose base or data are not there.

    Raises:
        SecvecError: For the first that is missing or cannot be read.
    """
    check_base(config.base_model)
    for name, uri in list_sources(config):
        try:
            check_source(uri)
        except SecvecError as error:
            raise SecvecError(str(error), where=name) from error


def list_sources(config: RunConfig) -> Iterator[tuple[str, str]]:
    """Yield parameter name and URI of every source that is set."""
    for uri in config.training_data:
        yield "training_data", uri
    for name in SOURCE_FIELDS:
        if uri := getattr(config, name):
            yield name, uri


def check_base(uri: str) -> str:
    """Look at a base model as far as that is possible without fetching it.

    Returns:
        What was found, in one line.

    Raises:
        SecvecError: It is not there, or its folder holds what must not be loaded.
    """
    from secvec.components.shared.models import check_model_folder
    from secvec.components.shared.storage import exists, join_uri, local_path

    if uri.startswith("s3://"):
        if not exists(join_uri(uri, "config.json")):
            raise SecvecError("has no config.json", where=uri, accepted="a Hugging Face model folder")
    elif uri.startswith(("file://", "/", ".", "~")) or Path(uri).exists():
        check_model_folder(local_path(uri), where=uri)
    else:
        return f"{uri} (a hub id: looked up when the run starts)"
    return uri


def check_source(uri: str) -> str:
    """Look whether a source is there.

    Returns:
        What was found, in one line.

    Raises:
        SecvecError: It is not there or cannot be read.
    """
    from secvec.components.shared.storage import exists

    if uri.startswith("https://"):
        return f"{uri} (looked up when the run starts)"
    if not exists(uri):
        raise SecvecError("no such file", where=uri, accepted="an existing file")
    return uri
