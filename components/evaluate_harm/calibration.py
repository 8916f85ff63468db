"""How well a judge agrees with people: the record that every judge carries, and how one is made."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from secvec.components.shared.errors import SecvecError
from secvec.components.shared.settings import Settings


class Calibration(Settings):
    """Counts of one judge against human labels, from which its sensitivity and specificity follow.

    Counts, not rates, so that the uncertainty of a small calibration set can be carried through.
    """

    judge: str = Field(description="digest of the judge that was calibrated")
    reference_set: str = Field(min_length=1, description="name and version of the labelled set")
    date: str = Field(pattern=r"^\d{4}-\d{2}-\d{2}$", description="day of the measurement, YYYY-MM-DD")
    n_harmful: int = Field(ge=1, description="answers that people called harmful, at least 1")
    found_harmful: int = Field(ge=0, description="those of them that the judge called harmful")
    n_harmless: int = Field(ge=1, description="answers that people called harmless, at least 1")
    found_harmless: int = Field(ge=0, description="those of them that the judge called harmless")

    @model_validator(mode="after")
    def _check_counts(self) -> Self:
        if self.found_harmful > self.n_harmful or self.found_harmless > self.n_harmless:
            raise ValueError("found more answers than there are")
        return self

    @property
    def n(self) -> int:
        """Labelled answers in all."""
        return self.n_harmful + self.n_harmless

    @property
    def sensitivity(self) -> float:
        """Share of harmful answers that the judge finds."""
        return self.found_harmful / self.n_harmful

    @property
    def specificity(self) -> float:
        """Share of harmless answers that the judge leaves alone."""
        return self.found_harmless / self.n_harmless

    @property
    def agreement(self) -> float:
        """Share of all answers on which judge and people agree."""
        return (self.found_harmful + self.found_harmless) / self.n

    @property
    def kappa(self) -> float:
        """Cohen's kappa (Educational and Psychological Measurement 20, 1960); 0.0 where it is undefined."""
        said = self.found_harmful + self.n_harmless - self.found_harmless
        chance = (self.n_harmful * said + self.n_harmless * (self.n - said)) / self.n**2
        return (self.agreement - chance) / (1 - chance) if chance < 1 else 0.0


def calibrate(
    human: Sequence[bool], found: Sequence[bool], *, judge: str, reference_set: str, date: str
) -> Calibration:
    """Compare a judge's findings with human labels.

    Args:
        human: Whether people called each answer harmful; both kinds must occur.
        found: Whether the judge did.
        judge: The judge's digest.
        reference_set: Name and version of the labelled set.
        date: Day of the measurement, YYYY-MM-DD.

    Raises:
        SecvecError: The set has no harmful or no harmless answer.
    """
    pairs = list(zip(human, found, strict=True))
    return Calibration.read(
        {
            "judge": judge,
            "reference_set": reference_set,
            "date": date,
            "n_harmful": sum(h for h, _ in pairs),
            "found_harmful": sum(h and f for h, f in pairs),
            "n_harmless": sum(not h for h, _ in pairs),
            "found_harmless": sum(not h and not f for h, f in pairs),
        },
        where=f"calibration on {reference_set}",
    )


def read_calibration(path: Path) -> Calibration:
    """Read a calibration record from a JSON file.

    Raises:
        SecvecError: No such file, no JSON object, or a field missing or out of range.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SecvecError(
            "is no calibration record", where=str(path), accepted="a JSON file written by calibration"
        ) from error
    if not isinstance(values, dict):
        raise SecvecError("is no calibration record", where=str(path), accepted="a JSON object")
    return Calibration.read(values, where=str(path))


@lru_cache(maxsize=1)
def load_shipped() -> tuple[Calibration, ...]:
    """The records of the judges that need nothing, as shipped."""
    text = files("secvec.components.evaluate_harm").joinpath("judge_calibrations.json").read_text()
    return tuple(Calibration.read(values, where="judge_calibrations.json") for values in json.loads(text))


def find_calibration(digest: str, records: Sequence[Calibration] = ()) -> Calibration | None:
    """The record of a judge, known by its digest: of those given, or of those that ship; None for neither.

    A record of other rules, weights or another rubric says nothing about this judge.
    """
    return next((record for record in (*records, *load_shipped()) if record.judge == digest), None)
