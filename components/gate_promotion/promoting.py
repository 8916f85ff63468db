"""Promotion, effectively once: intent, version, verdict, receipt, aliases, in this order.

Whatever dies in between, the same intent can be carried out again and comes to the same end: one version of
these bytes, one receipt, and aliases that show a version only after a receipt says so.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from secvec.components.gate_promotion.intents import Intent
from secvec.components.gate_promotion.ledger import Grant, Ledger, Receipt
from secvec.components.gate_promotion.promotion import (
    Registration,
    read_aliases,
    register_version,
    set_aliases,
    tag_version,
)
from secvec.components.gate_promotion.turns import LEASE_SECONDS, Needless, ShutOut, Turn, take_turn
from secvec.components.gate_promotion.verdict_artifact import publish_verdict
from secvec.components.shared import audit
from secvec.components.shared.errors import SecvecError
from secvec.components.shared.references import Reference

_ATTEMPTS = 5


def carry_out(intent: Intent, ledger: Ledger, *, store: str, seconds: float = LEASE_SECONDS) -> Reference:
    """Register the version, publish its verdict and let the aliases follow; once, however often it is called.

    Args:
        intent: What the gate has declared.
        ledger: Ledger of the registered model.
        store: URI of the store the verdict is published in.
        seconds: How long another promoter's turn may stand still before it is taken over.

    Returns:
        The verdict artifact.

    Raises:
        SecvecError: The ledger, the store or MLflow cannot be read or written; then it can be called again.
    """
    for _ in range(_ATTEMPTS):
        try:
            with take_turn(ledger, seconds=seconds, needless=lambda: _is_shown(intent, ledger)) as turn:
                return _use_turn(turn, intent, store=store)
        except Needless:
            return _verdict_of(ledger.done(intent.key))
        except ShutOut:
            continue
    raise SecvecError(
        f"lost its turn {_ATTEMPTS} times", where=ledger.uri, accepted="a store that answers in time"
    )


def show_receipt(ledger: Ledger, *, only: Collection[str] | None = None) -> None:
    """Make the aliases show the newest receipt, also when it changes meanwhile.

    Args:
        ledger: The ledger.
        only: The aliases to set; all if not given.

    Raises:
        SecvecError: MLflow does not answer, or the ledger cannot be read.
    """
    while True:
        latest = ledger.latest()
        wanted = {alias: grant.version for alias, grant in latest.aliases.items()}
        found = read_aliases(ledger.name)
        for alias, version in wanted.items():
            if found.get(alias) != version and (only is None or alias in only):
                set_aliases(ledger.name, version, [alias])
        # A promoter that was late may just have shown an older receipt: look again before leaving.
        if ledger.latest().number == latest.number:
            return


def find_moved(ledger: Ledger, receipt: Receipt) -> dict[str, tuple[str, str]]:
    """Aliases that show something else than the newest receipt says: what they show, and what they should.

    Raises:
        SecvecError: MLflow does not answer.
    """
    granted = {alias: grant.version for alias, grant in receipt.aliases.items()}
    found = read_aliases(ledger.name)
    return {
        alias: (found.get(alias, ""), granted.get(alias, ""))
        for alias in sorted(found.keys() | granted.keys())
        if found.get(alias, "") != granted.get(alias, "")
    }


def note_moved(ledger: Ledger, moved: Mapping[str, tuple[str, str]], *, receipt: Receipt) -> None:
    """Write into the audit log that somebody else moved aliases.

    Raises:
        SecvecError: The log cannot be written.
    """
    for alias, (found, granted) in moved.items():
        audit.append(
            "alias_moved_by_other",
            model_name=ledger.name,
            alias=alias,
            found=found,
            granted=granted,
            receipt=receipt.number,
        )


def _use_turn(turn: Turn, intent: Intent, *, store: str) -> Reference:
    ledger, before = turn.ledger, turn.before
    if not turn.interrupted:
        note_moved(ledger, find_moved(ledger, before), receipt=before)
    done = ledger.done(intent.key)
    if done:
        receipt = Receipt(number=turn.number, kind="reconciliation", aliases=before.aliases)
    else:
        registration = register_version(intent.model, name=ledger.name, run_id=intent.run_id)
        reference = publish_verdict(intent, registration, store=store)
        tag_version(registration, _tags(intent, reference))
        receipt = _make_receipt(turn, intent, registration, reference)
    turn.fill(receipt)
    if receipt.grant:
        ledger.mark_done(intent.key, receipt.number)
    show_receipt(ledger)
    return _verdict_of(done or receipt)


def _make_receipt(turn: Turn, intent: Intent, registration: Registration, verdict: Reference) -> Receipt:
    grant = Grant(
        version=registration.version,
        model=intent.model,
        evaluation=intent.evaluation,
        verdict=verdict,
        intent=intent.key,
    )
    aliases = turn.before.aliases | dict.fromkeys(intent.aliases, grant)
    return Receipt(number=turn.number, kind="promotion", grant=grant, aliases=aliases)


def _is_shown(intent: Intent, ledger: Ledger) -> bool:
    """Whether an intent was carried out in a turn that came to its end: before that, aliases may lag."""
    receipt = ledger.done(intent.key)
    return receipt is not None and ledger.is_released(receipt.number)


def _verdict_of(receipt: Receipt | None) -> Reference:
    if receipt is None or receipt.grant is None:
        raise SecvecError("granted nothing", where="receipt", accepted="the receipt of a promotion")
    return receipt.grant.verdict


def _tags(intent: Intent, reference: Reference) -> dict[str, str]:
    return {
        **{f"secvec.{role}_digest": digest for role, digest in intent.digests.items()},
        "secvec.verdict": intent.outcome,
        "secvec.verdict_digest": reference.digest,
        "secvec.verdict_uri": reference.uri,
        "secvec.policy_digest": intent.policy.digest(),
    }
