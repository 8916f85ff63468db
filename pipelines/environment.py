"""What the steps of a local run find in their environment."""

from __future__ import annotations

import os
from pathlib import Path

from secvec.components.shared.audit import LOG_VARIABLE
from secvec.components.shared.custody import KEY_VARIABLE, ensure_custody_key
from secvec.components.shared.progress import EVENTS_VARIABLE
from secvec.components.shared.signing_keys import PROVENANCE_VARIABLE, SIGNING_VARIABLE, ensure_signing_key
from secvec.components.shared.tracking import DEFAULT_EXPERIMENT, EXPERIMENT_VARIABLE, URI_VARIABLE


def step_environment(output: Path, *, base_model: str) -> dict[str, str]:
    """Give the environment of a local run; what the caller has set already is kept.

    Creates signing and custody keys under ``<output>/keys`` unless the environment names others.

    Args:
        output: The run's output folder.
        base_model: Where the base comes from: only a hub id leaves the hub's client on line.

    Raises:
        SecvecError: A key cannot be created.
    """
    keys = output / "keys"
    if not os.environ.get(SIGNING_VARIABLE):
        ensure_signing_key(keys / "signing.pem")
    if not os.environ.get(PROVENANCE_VARIABLE):
        ensure_signing_key(keys / "provenance.pem")
    if not os.environ.get(KEY_VARIABLE):
        ensure_custody_key(keys / "custody.key")
    defaults = {
        SIGNING_VARIABLE: str(keys / "signing.pem"),
        PROVENANCE_VARIABLE: str(keys / "provenance.pem"),
        KEY_VARIABLE: str(keys / "custody.key"),
        LOG_VARIABLE: str(output / "audit.jsonl"),
        URI_VARIABLE: f"sqlite:///{output / 'mlflow.db'}",
        EXPERIMENT_VARIABLE: DEFAULT_EXPERIMENT,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "GIT_PYTHON_REFRESH": "quiet",
    }
    if Path(base_model).exists() or "://" in base_model:
        defaults |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    always = {EVENTS_VARIABLE: str(output / "events.jsonl"), "TMPDIR": str(output / "tmp")}
    return defaults | {key: value for key, value in os.environ.items() if value} | always
