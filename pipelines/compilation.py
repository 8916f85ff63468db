"""Compiles the pipeline to the YAML that a Kubeflow cluster takes."""

from __future__ import annotations

import secrets
import warnings
from pathlib import Path
from typing import Any

from secvec.components.shared.code_digest import code_digest
from secvec.components.shared.errors import SecvecError
from secvec.pipelines.guarded_fine_tuning.config import RunConfig


def compile_to(
    path: Path, *, config: RunConfig | None = None, workspace: bool = False, sharded: bool = False
) -> None:
    """Write the compiled pipeline, whole or not at all.

    Args:
        path: YAML file to write.
        config: Values that become the pipeline's defaults; without one, only the code digest has a default.
        workspace: Whether steps with a model keep their caches on a volume claim, which is then a parameter.
        sharded: Whether training rows are read in shares; also where the config says so.

    Raises:
        SecvecError: The file cannot be written or is not named ``.yaml``.
    """
    from kfp import compiler

    from secvec.pipelines.guarded_fine_tuning.pipeline import choose_pipeline

    if path.suffix != ".yaml":
        raise SecvecError("is no YAML file name", where=str(path), accepted="a name that ends in .yaml")
    sharded = sharded or (config is not None and config.sharded)
    chosen = choose_pipeline(workspace=workspace, sharded=sharded)
    partial = path.with_name(f".{secrets.token_hex(8)}.yaml")
    try:
        with warnings.catch_warnings(action="ignore"):
            compiler.Compiler().compile(chosen, str(partial), pipeline_parameters=_defaults(config))
        partial.replace(path)
    except OSError as error:
        raise SecvecError(
            f"cannot be written ({error.strerror})", where=str(path), accepted="a path in a writable folder"
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def _defaults(config: RunConfig | None) -> dict[str, Any]:
    digest = code_digest()
    if config is None:
        return {"code_digest": digest}
    values = config.to_parameters(store=config.store, code_digest=digest)
    # A cluster has no folder beside the config: a store that is not named must be given with each run.
    return {name: value for name, value in values.items() if name != "store" or value}
