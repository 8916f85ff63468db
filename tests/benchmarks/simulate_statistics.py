"""Simulate the statistics of an evaluation: coverage, false passes, power, correction.

Run as ``python tests/benchmarks/simulate_statistics.py [DRAWS]`` (default 10,000; some minutes on one core).
The same functions run with the same number of draws in the tests, on fewer cases.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np
from scipy.stats import norm

from secvec.components.evaluate_harm.bounds import bound_clustered_rate, bound_loss, bound_rate
from secvec.components.evaluate_harm.calibration import Calibration
from secvec.components.evaluate_harm.comparisons import compare_paired
from secvec.components.evaluate_harm.correction import correct_rate
from secvec.components.evaluate_harm.paired import compute_p_value, score_difference
from secvec.components.evaluate_harm.power import comparison_power

SIZES = (50, 200, 1000)
RATES = (0.0, 0.01, 0.1, 0.5)
SAMPLES = 5


def cover_rate(n: int, rate: float, *, draws: int, seed: int = 0) -> tuple[float, float]:
    """Coverage of the lower and the upper exact bound."""
    random = np.random.default_rng(seed)
    counts, times = np.unique(random.binomial(n, rate, draws), return_counts=True)
    return _cover([bound_rate(int(k), n) for k in counts], times, rate)


def cover_clustered_rate(n: int, rate: float, *, draws: int, seed: int = 0) -> tuple[float, float]:
    """Coverage where each prompt has five answers that resemble each other (intraclass correlation 1/3)."""
    random = np.random.default_rng(seed)
    bounds = [
        bound_clustered_rate(list(_draw_shares(random, n, rate)), samples=SAMPLES) for _ in range(draws)
    ]
    return _cover(bounds, np.ones(draws), rate)


def cover_loss(n: int, *, draws: int, seed: int = 0) -> tuple[float, float]:
    """Coverage of the bounds of a mean loss of 0.5 nats per token, gamma-distributed (skewness 1.4)."""
    random = np.random.default_rng(seed)
    bounds = []
    for _ in range(draws):
        tokens = random.integers(4, 12, size=n)
        losses = tokens * random.gamma(2.0, 0.25, size=n)
        _, low, high = bound_loss(losses.tolist(), tokens.tolist())
        bounds.append((low or 0.0, high or 0.0))
    return _cover(bounds, np.ones(draws), 0.5)


def pass_equal(n: int, rate: float, *, margin: float, related: float, draws: int, seed: int = 0) -> float:
    """Share of candidates that pass and are as good as the reference: the power of the test."""
    lost = (1 - related) * rate * (1 - rate)
    return _pass(n, (lost, lost), margin=margin, draws=draws, seed=seed)


def pass_at_margin(n: int, rate: float, *, margin: float, related: float, draws: int, seed: int = 0) -> float:
    """Share of candidates that pass although they are worse by exactly the margin.

    Because bounds invert the test, one less this share is the coverage of the upper bound too.

    Args:
        n: Prompts.
        rate: The reference's rate of bad events.
        margin: The margin, and the true difference.
        related: From 0 (unrelated errors) to 1 (the candidate errs wherever the reference does).
        draws: Simulated runs.
        seed: Of the draws.
    """
    lost = (1 - related) * rate * (1 - rate - margin)
    return _pass(n, (lost + margin, lost), margin=margin, draws=draws, seed=seed)


def _pass(n: int, chances: tuple[float, float], *, margin: float, draws: int, seed: int) -> float:
    """Share of runs that pass, from the chances that only the candidate errs and only the reference does."""
    random = np.random.default_rng(seed)
    pairs = random.multinomial(n, [*chances, 1 - sum(chances)], size=draws)
    kinds, times = np.unique(pairs[:, :2], axis=0, return_counts=True)
    scores = score_difference(kinds[:, 0], kinds[:, 1], n=n, difference=margin)
    # the p-value grows with the score, so that a bisection finds where it stops passing
    order = np.argsort(scores, kind="stable")
    low, high = 0, len(order)
    while low < high:
        middle = (low + high) // 2
        gained, missed = kinds[order[middle]]
        if compute_p_value(int(gained), int(missed), n=n, difference=margin) <= 0.05:
            low = middle + 1
        else:
            high = middle
    return float(times[order[:low]].sum() / draws)


def pass_clustered_at_margin(n: int, rate: float, *, margin: float, draws: int, seed: int = 0) -> float:
    """As `pass_at_margin`, with five related answers per prompt of each model."""
    random = np.random.default_rng(seed)
    passed = 0
    for _ in range(draws):
        first = _draw_shares(random, n, rate + margin)
        second = _draw_shares(random, n, rate)
        spread = float(np.std(first - second)) / n**0.5
        # only a run that could pass is worth the exact test
        if np.mean(first - second) < margin - norm.ppf(0.85) * spread:
            events = [{str(i): [v] * SAMPLES for i, v in enumerate(shares)} for shares in (first, second)]
            passed += compare_paired(events[0], events[1], margin=margin).non_inferior
    return passed / draws


def cover_corrected(
    n: int, rate: float, *, sensitivity: float, specificity: float, draws: int, seed: int = 0
) -> tuple[float, float, float]:
    """Coverage of both corrected bounds and mean error of the estimate, calibrated on 200 + 200 answers."""
    random = np.random.default_rng(seed)
    apparent = rate * sensitivity + (1 - rate) * (1 - specificity)
    counts = np.stack(
        [
            random.binomial(n, apparent, draws),
            random.binomial(200, sensitivity, draws),
            random.binomial(200, specificity, draws),
        ],
        axis=1,
    )
    kinds, times = np.unique(counts, axis=0, return_counts=True)
    found = [correct_rate(int(hits), n, make_calibration(int(se), int(sp))) for hits, se, sp in kinds]
    covered = _cover([(c.lower95, c.upper95) for c in found], times, rate)
    plain = [(hits / n - (1 - sp / 200)) / (se / 200 + sp / 200 - 1) for hits, se, sp in kinds]
    return *covered, float(np.average(plain, weights=times)) - rate


def make_calibration(found_harmful: int, found_harmless: int) -> Calibration:
    """Counts of a judge on 200 harmful and 200 harmless answers."""
    return Calibration(
        judge="sha256:0",
        reference_set="simulated",
        date="2025-01-01",
        n_harmful=200,
        found_harmful=found_harmful,
        n_harmless=200,
        found_harmless=found_harmless,
    )


def _draw_shares(random: np.random.Generator, n: int, rate: float) -> np.ndarray:
    """Shares of bad answers per prompt, the prompts' own rates beta-distributed."""
    own = random.beta(2 * rate, 2 * (1 - rate), n) if 0 < rate < 1 else np.full(n, rate)
    return random.binomial(SAMPLES, own) / SAMPLES


def _cover(bounds: list[tuple[float, float]], times: np.ndarray, truth: float) -> tuple[float, float]:
    low, high = np.array(bounds).T
    # rounding of a percent-point function, far below one event in a million
    inside = [low <= truth + 1e-9, high >= truth - 1e-9]
    return float(np.average(inside[0], weights=times)), float(np.average(inside[1], weights=times))


def _report(draws: int) -> Iterator[str]:
    yield "one-sided 95% bounds: coverage of the lower and of the upper one"
    for n in SIZES:
        for rate in RATES:
            exact = cover_rate(n, rate, draws=draws)
            clustered = cover_clustered_rate(n, rate, draws=draws)
            corrected = cover_corrected(n, rate, sensitivity=0.95, specificity=0.97, draws=draws)
            yield (
                f"n {n:5} rate {rate:4}  exact {_show(exact)}  clustered {_show(clustered)}  "
                f"corrected {_show(corrected[:2])} mean error {corrected[2]:+.4f}"
            )
        yield f"n {n:5} mean loss {_show(cover_loss(n, draws=draws))}"
    yield "false passes of the non-inferiority test at the margin (at most 0.05)"
    for n in SIZES:
        for margin in (0.02, 0.05, 0.1):
            found = [
                pass_at_margin(n, rate, margin=margin, related=related, draws=draws)
                for rate in RATES
                for related in (0.0, 0.5)
            ]
            yield f"n {n:5} margin {margin}: " + " ".join(f"{share:.4f}" for share in found)
    for n, rate in ((50, 0.1), (200, 0.01), (200, 0.1), (200, 0.5)):
        share = pass_clustered_at_margin(n, rate, margin=0.1, draws=draws)
        yield f"n {n:5} rate {rate} margin 0.1, five answers per prompt: {share:.4f}"
    yield from _report_power(draws)


def _report_power(draws: int) -> Iterator[str]:
    yield f"power of an equal model at n = 1,000, by rate {RATES}: simulated, and as foreseen before a run"
    for margin in (0.02, 0.05, 0.08):
        for related in (0.0, 0.5):
            powers = [pass_equal(1000, rate, margin=margin, related=related, draws=draws) for rate in RATES]
            yield f"margin {margin}, related errors {related}: " + " ".join(f"{one:.4f}" for one in powers)
        powers = [comparison_power(1000, margin=margin, rate=rate) for rate in RATES]
        yield f"margin {margin}, foreseen: " + " ".join(f"{power:.4f}" for power in powers)


def _show(pair: tuple[float, ...]) -> str:
    return "/".join(f"{value:.4f}" for value in pair)


if __name__ == "__main__":
    for line in _report(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000):
        print(line, flush=True)
