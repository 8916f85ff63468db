"""Non-inferiority and further suites, on the figures of a whole case."""

import copy
import math
from typing import Any

import pytest
from scipy.stats import binom

from secvec.components.gate_promotion.noninferiority import Champion, bound_excess
from secvec.components.gate_promotion.policy import Policy


def against(bench: Any, policy: Policy | None = None) -> dict[str, str]:
    found = bench.judge(policy)
    assert found.believed
    return {one.check: one.outcome for one in found.reasons if one.outcome != "PASS"}


def put_champion(bench: Any, model: str = "sha256:" + "c" * 64, **guarded: Any) -> None:
    statistics = copy.deepcopy(bench.parts["statistics"])
    statistics["arms"]["guarded"].update(guarded)
    bench.champion = Champion(number=1, model=model, statistics=statistics)


def test_the_bound_is_newcombes() -> None:
    # Newcombe 1998, table II, (a): 56/70 - 48/80, method 10, 95% two-sided: 0.0524 to 0.3339; one-sided at
    # 95% the limit is that of 90% two-sided, which lies inside.
    upper = bound_excess(56 / 70, 70, 48 / 80, 80)
    assert 0.2 < upper < 0.3339
    z = 1.6448536269514722
    assert bound_excess(0.0, 100, 0.0, 100) == pytest.approx(z * z / (100 + z * z))


@pytest.mark.parametrize(("rate", "other"), [(0.02, 0.02), (0.1, 0.05), (0.9, 0.9), (0.5, 0.5)])
def test_the_bound_covers_the_truth(rate: float, other: float) -> None:
    n, covered = 100, 0.0
    for mine in range(n + 1):
        for theirs in range(n + 1):
            chance = binom.pmf(mine, n, rate) * binom.pmf(theirs, n, other) if mine < 3 * n else 0
            if chance > 1e-9 and bound_excess(mine / n, n, theirs / n, n) >= rate - other:
                covered += chance
    assert covered > 0.93  # the method is approximate: it promises 0.95 on average


def test_against_the_base(bench: Any) -> None:
    assert against(bench) == {}
    policy = Policy(version=1, max_harm_rate=0.4, max_harm_upper95=0.5)
    guarded = bench.parts["statistics"]["arms"]["guarded"]
    guarded |= {"harm_rate": 0.04, "harm_upper95": binom_upper(8, 200)}
    assert against(bench, policy) == {"harm_against_base": "INDETERMINATE"}
    guarded |= {"harm_rate": 0.06, "harm_upper95": binom_upper(12, 200)}
    assert against(bench, policy) == {"harm_against_base": "FAIL"}
    bench.parts["statistics"]["arms"]["base"] |= {"harm_rate": 0.06}
    assert "harm_against_base" not in against(bench, policy)
    bench.parts["statistics"]["arms"]["base"] |= {"utility": 1.0, "n_utility": 20}
    bench.parts["statistics"]["arms"]["guarded"] |= {"utility": 0.88}
    assert against(bench, policy) == {"utility_against_base": "INDETERMINATE"}


def binom_upper(hits: int, n: int) -> float:
    from scipy.stats import beta

    return float(beta.ppf(0.95, hits + 1, n - hits))


@pytest.mark.parametrize(
    ("champion", "outcome"),
    [
        ({}, {}),
        ({"utility": 0.91, "n_utility": 100, "kept": 1.0}, {}),
        ({"utility": 1.0}, {"utility_against_champion": "INDETERMINATE"}),
        ({"utility": 1.0, "n_utility": 20}, {"utility_against_champion": "INDETERMINATE"}),
        ({"harm_rate": None}, {"harm_against_champion": "FAIL"}),
        ({"n_harm": None}, {"harm_against_champion": "FAIL"}),
        ({"kept": math.nan}, {"kept_against_champion": "FAIL"}),
    ],
    ids=str,
)
def test_against_the_champion(bench: Any, champion: dict[str, Any], outcome: dict[str, str]) -> None:
    bench.parts["statistics"]["arms"]["guarded"]["utility"] = 0.89
    put_champion(bench, **champion)
    assert against(bench) == outcome


def test_far_below_the_champion_fails(bench: Any) -> None:
    bench.parts["statistics"]["arms"]["guarded"]["utility"] = 0.8
    bench.parts["statistics"]["arms"]["unguarded"]["utility"] = 0.8
    put_champion(bench, utility=0.96)
    assert against(bench) == {"utility_against_champion": "FAIL"}


def test_a_loss_is_compared_with_the_champions(bench: Any) -> None:
    bench.parts["statistics"]["utility_metric"] = "loss"
    put_champion(bench, utility_loss=0.39)
    assert against(bench) == {}
    put_champion(bench, utility_loss=0.38)
    assert against(bench) == {"utility_against_champion": "FAIL"}
    reason = next(one for one in bench.judge().reasons if one.check == "utility_against_champion")
    assert reason.figure == pytest.approx(0.4 / 0.38 - 1)
    put_champion(bench, utility_loss=0.0)
    assert against(bench) == {"utility_against_champion": "FAIL"}


def test_the_champion_itself_is_not_compared(bench: Any) -> None:
    put_champion(bench, utility=1.0)
    model = bench.judge().reasons  # the digest of the model under judgement
    assert any(one.check == "utility_against_champion" for one in model)
    put_champion(bench, model="sha256:" + "3" * 64, utility=1.0)
    assert against(bench) == {}


@pytest.mark.parametrize("role", ["suite", "judge"])
def test_a_champion_measured_otherwise(bench: Any, role: str) -> None:
    put_champion(bench, utility=1.0)
    bench.champion.statistics["digests"][role] = "sha256:" + "e" * 64
    assert against(bench) == {}
    policy = Policy(version=1, require_comparable_champion=True)
    assert against(bench, policy) == {"champion": "INDETERMINATE"}


def test_a_champion_whose_evaluation_is_gone(bench: Any) -> None:
    bench.champion = Champion(number=1, model="sha256:x", statistics={}, problem="no such folder")
    assert against(bench) == {"champion": "INDETERMINATE"}


def put_suite(bench: Any, kind: str, rate: Any, name: str = "xs") -> None:
    suites = bench.parts["statistics"].setdefault("suites", {})
    suites[f"{name}/{kind}"] = {"suite": name, "kind": kind, "arms": {"guarded": {"rate": rate, "n": 100}}}


@pytest.mark.parametrize("kind", ["over_refusal", "coherence"])
def test_a_suite_out_of_bounds(bench: Any, kind: str) -> None:
    put_suite(bench, kind, 0.1)
    assert against(bench) == {}
    for rate in (0.11, 1.5, -0.1, None, True, "0"):
        put_suite(bench, kind, rate)
        assert against(bench) == {kind: "FAIL"}
    bench.parts["statistics"]["suites"][f"xs/{kind}"] = {"suite": "xs"}
    assert against(bench) == {kind: "FAIL"}


@pytest.mark.parametrize("suites", [None, [], "x", 1])
def test_suites_that_are_none(bench: Any, suites: Any) -> None:
    bench.parts["statistics"]["suites"] = suites
    assert against(bench) == {"suites": "FAIL"}


@pytest.mark.parametrize(
    ("switch", "kind"), [("require_over_refusal", "over_refusal"), ("require_coherence", "coherence")]
)
def test_a_suite_that_the_policy_requires(bench: Any, switch: str, kind: str) -> None:
    policy = Policy(version=1, **{switch: True})
    assert against(bench, policy) == {kind: "INDETERMINATE"}
    put_suite(bench, kind, 0.0)
    assert against(bench, policy) == {}
