"""``secvec doctor``: what a run needs, looked at before it starts."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from secvec.components.shared.errors import SecvecError
from secvec.pipelines.guarded_fine_tuning.config import RunConfig
from secvec.pipelines.inputs import check_base, check_source, list_sources

_PACKAGES = ("secvec", "torch", "transformers", "peft", "kfp", "mlflow", "boto3")
_GIB = 2**30


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        subject: What.
        good: Whether a run can do with it.
        text: What was found, in one line.
    """

    subject: str
    good: bool
    text: str


def examine(output: Path, *, config: RunConfig | None = None) -> list[Finding]:
    """Look at versions, machine, output folder, keys, MLflow, store and, given a config, its sources.

    Args:
        output: Folder that a run would write to; nothing is left in it.
        config: The run that is planned.
    """
    store = (config.store if config else "") or ""
    findings = [*_examine_packages(), _examine_machine(), _examine_folder(output)]
    findings += [_try("signing key", _check_signing_key), _try("custody key", _check_custody_key)]
    findings.append(_try("mlflow", _check_mlflow))
    if store:
        findings.append(_try("store", lambda: _check_store(store)))
    if config:
        findings.append(_try("base model", partial(check_base, config.base_model)))
        findings += [_try(name, partial(check_source, uri)) for name, uri in list_sources(config)]
    return findings


def show_findings(findings: list[Finding], *, console: Console) -> bool:
    """Print one line per finding and tell whether all are good."""
    table = Table.grid(padding=(0, 1))
    for finding in findings:
        mark = Text("✓", style="green") if finding.good else Text("✗", style="bold red")
        table.add_row(mark, finding.subject, Text(finding.text, overflow="fold"))
    console.print(table)
    return all(finding.good for finding in findings)


def _try(subject: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding(subject, True, check())
    except SecvecError as error:
        return Finding(subject, False, str(error))


def _examine_packages() -> list[Finding]:
    found = [Finding("python", True, platform.python_version())]
    for name in _PACKAGES:
        try:
            found.append(Finding(name, True, version(name)))
        except PackageNotFoundError:
            found.append(Finding(name, False, "is not installed; accepted: what `make setup` installs"))
    return found


def _examine_machine() -> Finding:
    import torch

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / _GIB
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    text = f"{os.cpu_count()} CPU cores, {memory:.0f} GiB memory, {', '.join(gpus) or 'no GPU'}"
    return Finding("machine", True, text)


def _examine_folder(output: Path) -> Finding:
    there = next(path for path in (output.absolute(), *output.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        return Finding("output", False, f"{there}: cannot be written; accepted: a writable folder")
    return Finding(
        "output", True, f"{output.absolute()}, {shutil.disk_usage(there).free / _GIB:.0f} GiB free"
    )


def _check_signing_key() -> str:
    from secvec.components.shared.attestation import sign_statement
    from secvec.components.shared.signing_keys import SIGNING_VARIABLE

    if not os.environ.get(SIGNING_VARIABLE):
        return f"{SIGNING_VARIABLE} not set: a local run makes its own"
    sign_statement({"_type": "test"})
    return os.environ[SIGNING_VARIABLE]


def _check_custody_key() -> str:
    from secvec.components.shared.custody import KEY_VARIABLE, seal

    if not os.environ.get(KEY_VARIABLE):
        return f"{KEY_VARIABLE} not set: a local run makes its own"
    seal({"test": b""}, context={"base_digest": "test", "purpose": "doctor"})
    return os.environ[KEY_VARIABLE]


def _check_mlflow() -> str:
    from secvec.components.shared.tracking import URI_VARIABLE, connect

    uri = os.environ.get(URI_VARIABLE)
    if not uri:
        return f"{URI_VARIABLE} not set: a local run keeps a sqlite store in its output folder"
    connect(uri)
    return f"{uri} answers"


def _check_store(store: str) -> str:
    from secvec.components.shared.artifacts import check_store

    check_store(store)
    return f"{store} can be written and read"
