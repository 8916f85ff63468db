"""Which steps of a local run in containers get which of its keys; the others see neither file nor name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from secvec.components.evaluate_harm.judge_endpoint import KEY_VARIABLE as JUDGE_VARIABLE
from secvec.components.shared.custody import KEY_VARIABLE
from secvec.components.shared.signing_keys import PROVENANCE_VARIABLE, SIGNING_VARIABLE, TRUSTED_VARIABLE

# Where steps find their keys: the run's own folder of them is hidden.
FOLDER = "/run/secvec"
KEY_HOLDERS = {
    KEY_VARIABLE: ("train_security_vector", "fine_tune_guarded", "evaluate_harm"),
    SIGNING_VARIABLE: ("evaluate_harm", "gate_promotion"),
    PROVENANCE_VARIABLE: (
        "ingest_data",
        "train_security_vector",
        "fine_tune_guarded",
        "remove_security_vector",
        "evaluate_harm",
        "gate_promotion",
    ),
    JUDGE_VARIABLE: ("evaluate_harm",),
}

# Verify what others signed: they get the public half alone.
VERIFIERS = ("compare_champion",)


def grant_keys(options: Mapping[str, Any], step: str) -> dict[str, Any]:
    """Take from a container's options the keys that a step does not need, and mount those that it does.

    Args:
        options: Arguments of docker-py's ``containers.create``, with ``environment`` and ``mounts``.
        step: The step's name, with or without its arm.

    Returns:
        The options for that step; no key file is mounted but by this function.
    """
    from docker.types import Mount

    environment, mounts = dict(options.get("environment") or {}), list(options.get("mounts") or [])
    signing = environment.get(SIGNING_VARIABLE, "")
    for variable, steps in KEY_HOLDERS.items():
        name = environment.get(variable, "")
        if step.partition(" ")[0] not in steps:
            environment.pop(variable, None)
        elif name.startswith("/"):
            for path in (Path(name), Path(f"{name}.pub")):
                if path.exists():
                    mounts.append(Mount(f"{FOLDER}/{path.name}", str(path), type="bind", read_only=True))
            environment[variable] = f"{FOLDER}/{Path(name).name}"
    public = Path(f"{signing}.pub")
    if step in VERIFIERS and signing.startswith("/") and public.exists():
        mounts.append(Mount(f"{FOLDER}/{public.name}", str(public), type="bind", read_only=True))
        environment.setdefault(TRUSTED_VARIABLE, f"{FOLDER}/{public.name}")
    return {**options, "environment": environment, "mounts": mounts}
