"""Reconciliation: finishes or gives up what a crash left, and reports aliases that somebody else moved."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from secvec.components.gate_promotion.approvals import (
    CHECK,
    count_approvals,
    describe_approvals,
    find_obstacle,
)
from secvec.components.gate_promotion.intents import Intent, declare, find_open, find_settled, give_up
from secvec.components.gate_promotion.ledger import Ledger, Receipt
from secvec.components.gate_promotion.promoting import carry_out, find_moved, note_moved, show_receipt
from secvec.components.gate_promotion.promotion import CHAMPION, find_registered, grant_aliases
from secvec.components.gate_promotion.turns import LEASE_SECONDS, take_turn
from secvec.components.shared import audit
from secvec.components.shared.audit_checkpoints import write_checkpoint


@dataclass
class Reconciled:
    """What a reconciliation found and did.

    Attributes:
        finished: Keys of intents that it carried out.
        given_up: Keys of intents that a later promotion or their verdict's expiry had overtaken.
        settled: Keys of intents that people's approvals turned into a PASS, and that it carried out.
        shown: Aliases that lagged behind their receipt and now show it.
        moved: Aliases that somebody else moved: what they showed, and what the newest receipt says.
        restored: Whether those were moved back.
    """

    finished: list[str] = field(default_factory=list)
    given_up: list[str] = field(default_factory=list)
    settled: list[str] = field(default_factory=list)
    shown: list[str] = field(default_factory=list)
    moved: dict[str, tuple[str, str]] = field(default_factory=dict)
    restored: bool = False


def reconcile(
    name: str, *, store: str, restore: bool = False, seconds: float = LEASE_SECONDS
) -> Reconciled | None:
    """Bring registry and ledger of one registered model into agreement.

    Safe beside running gates: it takes its turn like any of them. An intent is finished only if nothing was
    promoted since it was declared; otherwise its own gate may still finish it, but nobody else will.

    Args:
        name: Registered model.
        store: URI of the store that holds its ledger.
        restore: Whether aliases that somebody else moved are moved back; they are reported in any case.
        seconds: How long another promoter's turn may stand still before it is taken over.

    Returns:
        What was found; None if the registry has no such model.

    Raises:
        SecvecError: MLflow, the store or the audit log does not answer, or a record cannot be believed.
    """
    registered = find_registered(name)
    if registered is None:
        return None
    ledger = Ledger(store, name=name, registered=registered)
    found = Reconciled()
    _settle_aliases(ledger, found, restore=restore, seconds=seconds)
    for intent in find_open(ledger):
        _settle_intent(intent, ledger, found, store=store, seconds=seconds)
    for intent in find_settled(ledger, "INDETERMINATE"):
        _settle_approved(intent, ledger, found, store=store, seconds=seconds)
    if any((found.finished, found.given_up, found.settled, found.shown, found.moved)):
        write_checkpoint()
    return found


def _settle_aliases(ledger: Ledger, found: Reconciled, *, restore: bool, seconds: float) -> None:
    latest, number = ledger.latest(), ledger.count()
    if (not number or ledger.is_released(number)) and not find_moved(ledger, latest):
        return
    with take_turn(ledger, seconds=seconds) as turn:
        off = find_moved(ledger, turn.before)
        late = off if turn.interrupted else _find_late(ledger, off, newest=turn.before)
        found.moved = {alias: pair for alias, pair in off.items() if alias not in late}
        found.shown = sorted(late)
        note_moved(ledger, found.moved, receipt=turn.before)
        if late:
            audit.append("promotion_reconciled", model_name=ledger.name, shown=found.shown)
        turn.fill(Receipt(number=turn.number, kind="reconciliation", aliases=turn.before.aliases))
        if late or restore:
            show_receipt(ledger, only=None if restore else late)
            found.restored = bool(found.moved) and restore


def _find_late(
    ledger: Ledger, off: dict[str, tuple[str, str]], *, newest: Receipt
) -> dict[str, tuple[str, str]]:
    """Of aliases that are off, those that show the receipt of a turn that never ended."""
    late: dict[str, tuple[str, str]] = {}
    for number in range(newest.number, 0, -1) if off else ():
        receipt = ledger.state_at(number)
        if receipt.kind == "promotion" and receipt.grant and not ledger.is_released(number):
            late |= {alias: pair for alias, pair in off.items() if pair[0] == receipt.grant.version}
    return late


def _settle_intent(intent: Intent, ledger: Ledger, found: Reconciled, *, store: str, seconds: float) -> None:
    expired = datetime.now(UTC) > intent.issued_at + timedelta(days=intent.policy.valid_days)
    overtaken = expired or _last_promotion(ledger) > intent.after
    audit.append(
        "promotion_reconciled",
        model_name=ledger.name,
        intent=intent.key,
        end="given_up" if overtaken else "finished",
    )
    if overtaken:
        give_up(intent, ledger)
        found.given_up.append(intent.key)
    else:
        carry_out(intent, ledger, store=store, seconds=seconds)
        found.finished.append(intent.key)


def _settle_approved(
    intent: Intent, ledger: Ledger, found: Reconciled, *, store: str, seconds: float
) -> None:
    """Promote what enough people have approved, unless a champion came after it or it has expired."""
    receipt, now, policy = ledger.done(intent.key), datetime.now(UTC), intent.policy
    if find_obstacle(intent.outcome, intent.reasons, policy) or not receipt or not receipt.grant:
        return
    names = count_approvals(
        receipt.grant.verdict,
        policy=policy,
        author=intent.author,
        evaluation=intent.evaluation,
        store=store,
        now=now,
    )
    settled = _approve(intent, names, verdict=receipt.grant.verdict.digest, now=now)
    expired = now > intent.issued_at + timedelta(days=policy.valid_days)
    enough = len(names) >= policy.required_approvals
    if not enough or expired or ledger.done(settled.key) or _last_champion(ledger) > intent.after:
        return
    audit.append(
        "promotion_approved",
        model_name=ledger.name,
        verdict_digest=settled.settles,
        approvers=names,
    )
    settled = declare(settled.model_copy(update={"after": ledger.latest().number}), ledger)
    carry_out(settled, ledger, store=store, seconds=seconds)
    found.settled.append(settled.key)


def _approve(intent: Intent, names: list[str], *, verdict: str, now: datetime) -> Intent:
    """The same judgement, passed by people: every reason stays as it was, but the one for approvals."""
    reasons = tuple(
        describe_approvals(names, intent.policy) if reason.check == CHECK else reason
        for reason in intent.reasons
    )
    return intent.model_copy(
        update={
            "outcome": "PASS",
            "reasons": reasons,
            "aliases": grant_aliases("PASS"),
            "issued_at": now,
            "settles": verdict,
        }
    )


def _last_champion(ledger: Ledger) -> int:
    """Number of the receipt that made the champion what it is; 0 if there is none."""
    champion = ledger.latest().aliases.get(CHAMPION)
    receipt = ledger.done(champion.intent) if champion else None
    return receipt.number if receipt else 0


def _last_promotion(ledger: Ledger) -> int:
    """Number of the newest turn that promoted something to an alias; 0 if none did."""
    number = ledger.latest().number
    while number:
        receipt = ledger.state_at(number)
        if receipt.kind == "promotion" and receipt.grant in receipt.aliases.values():
            return number
        number -= 1
    return 0
