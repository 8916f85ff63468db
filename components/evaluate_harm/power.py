"""What a run can show, said before it starts: power, and the prompts that would be needed."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
from scipy.stats import binom, norm

from secvec.components.evaluate_harm.bounds import CONFIDENCE, bound_rate
from secvec.components.evaluate_harm.paired import find_region, region_chance, worst_chance

WANTED_POWER = 0.9
# What power is said for: a reference that answers one harmful prompt in fifty.
USUAL_RATE = 0.02
_MOST_PROMPTS = 1_000_000
_STEPS = 8


def foresee(n: int, *, margin: float) -> dict[str, Any]:
    """What so many prompts can show, and how many it would take; said before they are asked.

    Args:
        n: Harm prompts.
        margin: Of the comparison with another model, in (0, 1).

    Returns:
        JSON-ready figures: the smallest upper bound that the run can reach (no harmful answer at all), the
        chance that an equal model passes the non-inferiority test where one answer in fifty is harmful, and
        the prompts with which nine in ten do.
    """
    return {
        "n": n,
        "bound_without_harm": bound_rate(0, n)[1],
        "margin": margin,
        "rate": USUAL_RATE,
        "power": comparison_power(n, margin=margin, rate=USUAL_RATE),
        "needed": needed_for_comparison(margin=margin, rate=USUAL_RATE),
    }


def comparison_power(n: int, *, margin: float, rate: float, difference: float = 0.0) -> float:
    """The chance that the non-inferiority test passes.

    Args:
        n: Prompts, each answered once by both models.
        margin: How much worse the candidate may be, in (0, 1).
        rate: The reference's rate of bad events. The models are taken to err on unrelated prompts: on
            related ones, which is usual, power is higher.
        difference: How much worse the candidate really is; 0 for an equal model.

    Returns:
        A chance in [0, 1].
    """
    lost = rate * (1 - rate - difference)
    if n > 4000:
        discordance = 2 * lost + difference
        spread = math.sqrt(max(discordance - difference**2, 1e-12) / n)
        return float(norm.cdf((margin - difference) / spread - norm.ppf(CONFIDENCE)))
    region = find_region(n, difference=margin, at_most=_critical_score(n, margin))
    return float(region_chance(region, n=n, lost=np.array([lost]), difference=difference)[0])


def needed_for_comparison(*, margin: float, rate: float, power: float = WANTED_POWER) -> int:
    """The prompts with which an equal model passes the non-inferiority test with a given chance.

    Args:
        margin: How much worse the candidate may be, in (0, 1).
        rate: The reference's rate of bad events.
        power: The chance wanted, in (0, 1).

    Returns:
        Prompts, to within some percent.
    """
    wanted = float(norm.ppf(CONFIDENCE) + norm.ppf(power))
    # never fewer than it takes to pass without a single event
    least = math.ceil(math.log(1 - CONFIDENCE) / math.log1p(-margin))
    n = max(least, math.ceil(wanted**2 * 2 * rate * (1 - rate) / margin**2))
    for _ in range(_STEPS):
        found = comparison_power(n, margin=margin, rate=rate)
        if power <= found <= power + 0.01 or (found >= power and n == least):
            break
        # the distance in standard errors grows with the square root of n
        reached = float(norm.ppf(CONFIDENCE) + norm.ppf(min(max(found, 0.2), 1 - 1e-6)))
        n = max(least, math.ceil(n * (wanted / reached) ** 2 * 1.005))
    return n


def bound_power(n: int, *, limit: float, rate: float) -> float:
    """The chance that the upper 95% bound of a rate comes out at or below a limit.

    Args:
        n: Prompts.
        limit: The largest bound that passes, in (0, 1).
        rate: The true rate.
    """
    low, high = -1, n
    while low < high:
        middle = (low + high + 1) // 2
        if bound_rate(middle, n)[1] <= limit:
            low = middle
        else:
            high = middle - 1
    return float(binom.cdf(low, n, rate)) if low >= 0 else 0.0


def needed_for_bound(*, limit: float, rate: float = 0.0, power: float = WANTED_POWER) -> int | None:
    """The prompts with which a rate's upper bound passes with a given chance; None if it never does.

    Args:
        limit: The largest bound that passes, in (0, 1).
        rate: The true rate.
        power: The chance wanted, in (0, 1).
    """
    if rate >= limit:
        return None
    n = math.ceil(math.log(1 - CONFIDENCE) / math.log1p(-limit))
    while n < _MOST_PROMPTS and bound_power(n, limit=limit, rate=rate) < power:
        n = max(n + 1, math.ceil(n * 1.02))
    return n


@lru_cache(maxsize=256)
def _critical_score(n: int, margin: float) -> float:
    """The largest score that rejects with at most 5% chance whatever the models' rates."""
    low, high = -6.0, -1.0
    for _ in range(14):
        middle = (low + high) / 2
        region = find_region(n, difference=margin, at_most=middle)
        if worst_chance(region, n=n, difference=margin) <= 1 - CONFIDENCE:
            low = middle
        else:
            high = middle
    return low
