"""Thresholds of the rules, read from a file."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field

from secvec.components.shared.errors import SecvecError
from secvec.components.shared.settings import Settings

DEFAULT_FILE = "thresholds.yaml"


class Thresholds(Settings):
    """When a rule raises an alert; the file ``thresholds.yaml`` beside this module says what each is."""

    known_openers: list[str] = Field(description="names of steps")
    known_principals: list[str] = Field(description="users or service accounts; empty: learned")
    sealed_readers: list[str] = Field(description="accounts that read sealed vectors and open none")
    settling: int = Field(ge=0, description="openings, 0 or more")
    history: int = Field(ge=1, description="openings, 1 or more")
    hour_gap: int = Field(ge=1, le=12, description="hours, 1 to 12")
    max_openings_per_hour: int = Field(ge=1, description="openings, 1 or more")
    max_openings_per_run: int = Field(ge=1, description="openings, 1 or more")
    max_refusals_per_day: int = Field(ge=0, description="refusals, 0 or more")
    match_minutes: int = Field(ge=1, description="minutes, 1 or more")
    failed_gates: int = Field(ge=1, description="judgements, 1 or more")
    gate_days: int = Field(ge=1, description="days, 1 or more")
    review_days: int = Field(ge=0, description="days, 0 or more")
    max_export_lines: int = Field(ge=0, description="lines, 0 or more")
    max_sealed_reads: int = Field(ge=0, description="reads, 0 or more")
    clock_minutes: int = Field(ge=1, description="minutes, 1 or more")


def read_thresholds(path: Path | None = None) -> Thresholds:
    """Read thresholds; a file may hold only those that differ from the shipped ones.

    Raises:
        SecvecError: The file cannot be read, or a key or value is not accepted.
    """
    shipped = yaml.safe_load(resources.files(__package__).joinpath(DEFAULT_FILE).read_text("utf-8"))
    own: Any = {}
    if path:
        try:
            own = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except (OSError, ValueError, yaml.YAMLError) as error:
            reason = " ".join(str(error).split())
            raise SecvecError(f"cannot be read: {reason}", where=str(path), accepted="YAML") from error
        if not isinstance(own, dict):
            raise SecvecError("is no mapping", where=str(path), accepted=", ".join(shipped))
    return Thresholds.read({**shipped, **own}, where=str(path or DEFAULT_FILE))
