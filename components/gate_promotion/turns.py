"""Turns at the ledger: one promoter at work at a time, and a late one does no harm.

No clock is compared with another machine's: whoever waits measures, on its own monotonic clock, how long the
turn before it has not moved.
"""

from __future__ import annotations

import os
import random
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from secvec.components.gate_promotion.ledger import Ledger, Receipt
from secvec.components.shared.errors import SecvecError

LEASE_SECONDS = 60.0
PATIENCE_SECONDS = 1800.0


class ShutOut(SecvecError):
    """Another promoter took over because this one had not moved for too long; nothing was changed."""


class Needless(Exception):
    """While this promoter waited, another has done what it wanted the turn for."""


@dataclass(frozen=True)
class Turn:
    """The right to write one number of a ledger.

    Attributes:
        ledger: The ledger.
        number: The number.
        before: The receipt before it: what the aliases stand for.
        interrupted: Whether the turn before never came to its end, so that aliases may not show its receipt.
    """

    ledger: Ledger
    number: int
    before: Receipt
    interrupted: bool

    def fill(self, receipt: Receipt) -> None:
        """Write the receipt: from here on it holds, whatever happens to this process.

        Raises:
            ShutOut: Another promoter has taken over.
        """
        if not self.ledger.fill(receipt):
            raise ShutOut("has lost its turn to another promoter", where=f"turn {self.number}")


@contextmanager
def take_turn(
    ledger: Ledger,
    *,
    seconds: float = LEASE_SECONDS,
    patience: float = PATIENCE_SECONDS,
    needless: Callable[[], bool] = lambda: False,
) -> Iterator[Turn]:
    """Wait for the next turn; leaving ends it, and an exception before its receipt gives it up.

    Args:
        ledger: The ledger.
        seconds: How long a turn may stand still before the next in line takes over.
        patience: How long to wait in all.
        needless: Whether the turn is not wanted any more; asked before it is taken.

    Raises:
        Needless: It was not wanted any more.
        SecvecError: The wait was too long, or the ledger cannot be read or written.
    """
    number = _wait(ledger, seconds=seconds, patience=patience, needless=needless)
    try:
        before, interrupted = _repair(ledger, number)
        yield Turn(ledger=ledger, number=number, before=before, interrupted=interrupted)
    except BaseException:
        # A turn that has its receipt stays open: what it left half done is the next one's to settle.
        with suppress(SecvecError):
            ledger.forfeit(number)
        raise
    ledger.release(number)


def _wait(ledger: Ledger, *, seconds: float, patience: float, needless: Callable[[], bool]) -> int:
    holder = f"{socket.gethostname()}/{os.getpid()}"
    start = since = time.monotonic()
    number = seen = 0
    while True:
        if needless():
            raise Needless
        number = ledger.count(number)
        if number != seen:
            seen, since = number, time.monotonic()
        over = not number or _is_over(ledger, number)
        if not over and time.monotonic() - since >= seconds:
            ledger.forfeit(number)
            over = True
        if over:
            if ledger.claim(number + 1, holder):
                return number + 1
            continue
        if time.monotonic() - start > patience:
            raise SecvecError(
                f"the turn of {number} has not ended within {patience:.0f} s",
                where=ledger.uri,
                accepted="a ledger that others leave alone",
            )
        time.sleep(random.uniform(0.2, 1) * min(1.0, seconds / 4))


def _is_over(ledger: Ledger, number: int) -> bool:
    """Whether nobody is at work any more: whoever was shut out touches no alias."""
    if ledger.is_released(number):
        return True
    receipt = ledger.receipt(number)
    return receipt is not None and receipt.kind == "forfeit"


def _repair(ledger: Ledger, number: int) -> tuple[Receipt, bool]:
    """Mark what interrupted turns carried out; give the receipt before, and whether aliases may lag behind.

    Turns that ended by themselves marked their own, and all before them was repaired when they began.
    """
    before = receipt = ledger.state_at(number - 1)
    interrupted = False
    while receipt.number and not ledger.is_released(receipt.number):
        if receipt.grant:
            ledger.mark_done(receipt.grant.intent, receipt.number)
        interrupted = interrupted or receipt.kind != "forfeit"
        receipt = ledger.state_at(receipt.number - 1)
    return before, interrupted
