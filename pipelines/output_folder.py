"""The output folder of a local run, for commands that look at it afterwards."""

from __future__ import annotations

import os
from pathlib import Path

from secvec.components.shared.audit import LOG_VARIABLE
from secvec.components.shared.custody import KEY_VARIABLE
from secvec.components.shared.errors import SecvecError
from secvec.components.shared.signing_keys import PROVENANCE_VARIABLE, SIGNING_VARIABLE
from secvec.components.shared.storage import expand_user
from secvec.components.shared.tracking import URI_VARIABLE


def adopt_output(folder: Path) -> None:
    """Take keys, log and MLflow store of a run's output folder where the environment names no others.

    Raises:
        SecvecError: No run has written there.
    """
    folder = expand_user(folder).absolute()
    found = {
        LOG_VARIABLE: (folder / "audit.jsonl", "{}"),
        KEY_VARIABLE: (folder / "keys" / "custody.key", "{}"),
        SIGNING_VARIABLE: (folder / "keys" / "signing.pem", "{}"),
        PROVENANCE_VARIABLE: (folder / "keys" / "provenance.pem", "{}"),
        URI_VARIABLE: (folder / "mlflow.db", "sqlite:///{}"),
    }
    if not any(path.exists() for path, _ in found.values()):
        raise SecvecError("no run has written here", where=str(folder), accepted="the --output of a run")
    for variable, (path, form) in found.items():
        if path.exists() and not os.environ.get(variable):
            os.environ[variable] = form.format(path)
