"""The verdict: three outcomes, and one reason for each check, with its figure, its bound and its source."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Outcome = Literal["PASS", "FAIL", "INDETERMINATE"]


class Reason(BaseModel):
    """What one check found.

    Attributes:
        check: Name of the check.
        outcome: What it says by itself.
        figure: What was found; None when it is missing or no usable number.
        bound: What would be accepted.
        source: Where the figure comes from.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    check: str
    outcome: Outcome
    figure: float | int | str | None
    bound: float | int | str | None
    source: str


class Verdict(BaseModel):
    """What the gate says about one model, as ``verdict.json`` holds it."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    schema_: Literal[1] = Field(default=1, alias="schema")
    outcome: Outcome
    reasons: tuple[Reason, ...]
    digests: dict[str, str]
    policy_digest: str
    model_name: str
    model_version: str
    aliases: tuple[str, ...]
    mlflow: dict[str, str]
    author: str = ""
    settles: str = ""


def make_reason(
    check: str, holds: bool, figure: float | str | None, bound: float | str, source: str
) -> Reason:
    """Give the reason of a check that either holds or fails."""
    outcome: Outcome = "PASS" if holds else "FAIL"
    return Reason(check=check, outcome=outcome, figure=figure, bound=bound, source=source)


def decide(reasons: Sequence[Reason]) -> Outcome:
    """FAIL if any check failed or there was none, else INDETERMINATE if any could not tell, else PASS."""
    outcomes = {reason.outcome for reason in reasons}
    if not outcomes or "FAIL" in outcomes:
        return "FAIL"
    return "INDETERMINATE" if "INDETERMINATE" in outcomes else "PASS"
