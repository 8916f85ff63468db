"""Further suites: over-refusal and coherence, wherever an evaluation measured them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from secvec.components.gate_promotion.figures import STATISTICS, read_number
from secvec.components.gate_promotion.policy import Policy
from secvec.components.gate_promotion.verdict import Outcome, Reason


def judge_suites(statistics: Mapping[str, Any], policy: Policy) -> list[Reason]:
    """Hold the guarded arm's rate on every such suite against the policy, which may require one."""
    wanted = {
        "over_refusal": (policy.max_over_refusal, policy.require_over_refusal),
        "coherence": (policy.max_incoherent, policy.require_coherence),
    }
    suites = statistics.get("suites", {})
    if not isinstance(suites, Mapping):
        return [_reason("suites", "FAIL", "malformed", "suites by name", "suites")]
    reasons = []
    for kind, (bound, required) in wanted.items():
        found = {name: suite for name, suite in suites.items() if _kind(name, suite) == kind}
        reasons += [_judge(kind, str(name), suite, bound) for name, suite in sorted(found.items())]
        if not found:
            outcome: Outcome = "INDETERMINATE" if required else "PASS"
            reasons.append(_reason(kind, outcome, "not measured", bound, "suites"))
    return reasons


def _kind(name: Any, suite: Any) -> str:
    """What a suite measures; its key says so too, so that one without a readable kind is not passed over."""
    kind = suite.get("kind") if isinstance(suite, Mapping) else None
    return kind if isinstance(kind, str) else str(name).rpartition("/")[2]


def _judge(kind: str, name: str, suite: Any, bound: float) -> Reason:
    arms = suite.get("arms") if isinstance(suite, Mapping) else None
    arm = arms.get("guarded") if isinstance(arms, Mapping) else None
    rate = read_number(arm.get("rate")) if isinstance(arm, Mapping) else None
    usable = rate is not None and 0 <= rate <= 1
    outcome: Outcome = "PASS" if usable and rate is not None and rate <= bound else "FAIL"
    return _reason(kind, outcome, rate if usable else None, bound, f"suites.{name}.arms.guarded.rate")


def _reason(
    check: str, outcome: Outcome, figure: float | str | None, bound: float | str, source: str
) -> Reason:
    return Reason(
        check=check, outcome=outcome, figure=figure, bound=bound, source=f"{STATISTICS}:{source}"[:300]
    )
