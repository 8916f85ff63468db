"""Attempts: whoever tries often enough passes once by luck, so tries are counted in the audit log."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from secvec.components.gate_promotion.policy import Policy
from secvec.components.gate_promotion.verdict import Outcome, Reason
from secvec.components.shared import audit
from secvec.components.shared.audit_chain import follow_lines, parse_line
from secvec.components.shared.errors import SecvecError

EVENT = "gate_attempted"
_FAMILY = ("base", "data")


def count_attempts(digests: Mapping[str, str]) -> int:
    """Log this attempt, then count the models that were judged for the same base and data, this one included.

    Logging first makes gates that judge at the same time see each other.

    Args:
        digests: What lies before the gate, by role.

    Raises:
        SecvecError: The log cannot be written or read, or is not as it was written.
    """
    audit.append(EVENT, **{role: digests[role] for role in (*_FAMILY, "model", "evaluation")})
    log, models = audit.open_log(), set[str]()
    try:
        for _ in follow_lines(_watch(log.read_lines(), digests, models), where=str(log)):
            pass
    except OSError as error:
        raise SecvecError(f"cannot read the audit log ({error.strerror})", where=str(log)) from error
    return len(models)


def check_attempts(attempts: int, policy: Policy) -> Reason:
    """More attempts than the budget leave the verdict to people."""
    outcome: Outcome = "PASS" if 1 <= attempts <= policy.max_attempts else "INDETERMINATE"
    return Reason(
        check="attempts",
        outcome=outcome,
        figure=attempts,
        bound=policy.max_attempts,
        source=f"audit log: {EVENT}",
    )


def _watch(lines: Iterable[bytes], digests: Mapping[str, str], models: set[str]) -> Iterator[bytes]:
    """Pass lines on to the check of the chain, and note the models of this family."""
    for line in lines:
        if EVENT.encode() in line and (entry := parse_line(line)) and entry["event"] == EVENT:
            fields = entry["fields"]
            if all(fields.get(role) == digests[role] for role in _FAMILY):
                models.add(str(fields.get("model")))
        yield line
