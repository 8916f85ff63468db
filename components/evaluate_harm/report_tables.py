"""Rows of the report's tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from secvec.components.evaluate_harm.catalogue import Texts

_SUSPECTS = 10
Rate = tuple[float | None, float | None, float | None]
"""A rate with its lower and upper bound, each None where it was not measured."""


@dataclass(frozen=True)
class RateRow:
    """A named row with one rate per arm over `n` prompts."""

    name: str
    n: int
    arms: Mapping[str, Rate]


@dataclass(frozen=True)
class JudgeRow:
    """What one judge found about the model under test, and how far it can be believed."""

    name: str
    rate: Rate
    corrected: Rate | None
    unparsable: int
    unavailable: int
    calibration: str
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class ContrastRow:
    """The model under test against another on the same prompts."""

    name: str
    n: int
    difference: tuple[str, ...]
    passed: bool
    worse: str


@dataclass(frozen=True)
class SuspectRow:
    """A training row that the vector explains well, by its place: its text stays where it is."""

    place: str
    category: str
    label: str
    nats: str


@dataclass(frozen=True)
class _Strata:
    arms: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def rates(self) -> dict[str, Rate]:
        return {arm: (f["rate"], f["lower95"], f["upper95"]) for arm, f in self.arms.items()}

    def n(self) -> int:
        return max((int(f["n"]) for f in self.arms.values()), default=0)

    def row(self, name: str) -> RateRow:
        return RateRow(name, self.n(), self.rates())


def list_attacks(statistics: Mapping[str, Any], text: Texts) -> list[RateRow]:
    """Harm per attack form."""
    return [_Strata(arms).row(text(f"attack_{form}")) for form, arms in statistics.get("attacks", {}).items()]


def list_categories(statistics: Mapping[str, Any], text: Texts) -> list[RateRow]:
    """Harm per category of the harm prompts."""
    return [
        RateRow(
            category or text("none_named"),
            max(int(figures["n_harm"]) for figures in arms.values()),
            {arm: (f["harm_rate"], f["harm_lower95"], f["harm_upper95"]) for arm, f in arms.items()},
        )
        for category, arms in statistics["categories"].items()
    ]


def list_languages(statistics: Mapping[str, Any], text: Texts) -> list[RateRow]:
    """Harm per language of the harm prompts."""
    return [
        _Strata(arms).row(language or text("none_named"))
        for language, arms in statistics.get("languages", {}).items()
    ]


def list_suites(statistics: Mapping[str, Any], text: Texts) -> list[RateRow]:
    """Every suite, then its categories."""
    rows = []
    for found in statistics.get("suites", {}).values():
        name = f"{found['suite']} ({text('kind_' + found['kind'])})"
        rows.append(_Strata(found["arms"]).row(name))
        rows += [_Strata(arms).row(f"– {category}") for category, arms in found["categories"].items()]
    return rows


def list_costs(statistics: Mapping[str, Any], text: Texts) -> list[str]:
    """One line per trained arm: time, device hours and price of its whole training."""
    lines = []
    cost = statistics.get("cost") or {}
    for arm, key in (("guarded", "cost_hours"), ("unguarded", "cost_hours_compared")):
        if found := cost.get("arms", {}).get(arm):
            price = ""
            if found["price"] is not None:
                price = text("cost_price", amount=f"{found['price']:.2f}", currency=cost["currency"])
            time = format_duration(found["seconds"], text)
            lines.append(text(key, time=time, hours=f"{found['device_hours']:.3g}", price=price))
    return lines


def list_judges(statistics: Mapping[str, Any], text: Texts) -> list[JudgeRow]:
    """Every judge's finding about the model under test."""
    rows = []
    for judge in statistics.get("judges", []):
        if found := judge["arms"].get("guarded"):
            corrected, record = found["corrected"], judge["calibration"]
            rows.append(
                JudgeRow(
                    name=judge["name"],
                    rate=(found["harm_rate"], found["harm_lower95"], found["harm_upper95"]),
                    corrected=corrected and (corrected["rate"], corrected["lower95"], corrected["upper95"]),
                    unparsable=found["unparsable"],
                    unavailable=found["unavailable"],
                    calibration=_describe_record(record, text) if record else text("judge_uncalibrated"),
                    reasons=tuple(judge["reasons"]),
                )
            )
    return rows


def list_agreements(statistics: Mapping[str, Any], text: Texts) -> list[str]:
    """One sentence per pair of judges."""
    return [
        text(
            "judge_agreement",
            first=pair["judges"][0],
            second=pair["judges"][1],
            rate=f"{100 * pair['agreement']:.1f}%",
            n=pair["n"],
            kappa="–" if pair["kappa"] is None else f"{pair['kappa']:.2f}",
        )
        for pair in statistics.get("judge_agreement", [])
        if pair["agreement"] is not None
    ]


def list_contrasts(statistics: Mapping[str, Any], text: Texts, names: Mapping[str, str]) -> list[ContrastRow]:
    """Paired differences against the other models, harm and utility."""
    return [
        ContrastRow(
            name=text(
                f"contrast_{found['measure']}",
                other=names.get(found["against"], text("champion")),
            ),
            n=found["n_prompts"],
            difference=tuple(f"{100 * found[key]:+.1f}" for key in ("difference", "lower95", "upper95")),
            passed=found["non_inferior"],
            worse=", ".join(category or text("none_named") for category in found["worse_categories"]),
        )
        for found in statistics.get("contrasts", [])
    ]


def list_suspects(statistics: Mapping[str, Any]) -> list[SuspectRow]:
    """Training rows that the vector explains best."""
    found = statistics.get("attribution") or {}
    return [
        SuspectRow(
            place=f"{row['source']}:{row['line']}",
            category=row["category"],
            label=row["label"],
            nats=f"{row['nats_per_token']:+.3f}",
        )
        for row in found.get("most_suspect", [])[:_SUSPECTS]
    ]


def describe_power(statistics: Mapping[str, Any], text: Texts) -> str:
    """What so many prompts can show; empty where nobody was asked for harm."""
    found = statistics.get("power")
    if not found:
        return ""
    return text(
        "power",
        n=found["n"],
        bound=f"{100 * found['bound_without_harm']:.2g}%",
        margin=f"{100 * found['margin']:.3g}",
        power=f"{100 * found['power']:.0f}%",
        rate=f"{100 * found['rate']:.2g}%",
        needed=found["needed"],
    )


def _describe_record(record: Mapping[str, Any], text: Texts) -> str:
    return text(
        "judge_record",
        sensitivity=f"{100 * record['sensitivity']:.1f}%",
        specificity=f"{100 * record['specificity']:.1f}%",
        n=record["n_harmful"] + record["n_harmless"],
        kappa=f"{record['kappa']:.2f}",
        set=record["reference_set"],
        date=record["date"],
    )


def format_duration(seconds: float, text: Texts) -> str:
    """Hours and minutes, minutes and seconds, or seconds with three significant digits."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return text("hours", hours=minutes // 60, minutes=minutes % 60)
    if minutes:
        return text("minutes", minutes=minutes, seconds=rest)
    return text("seconds", value=f"{seconds:.3g}")
