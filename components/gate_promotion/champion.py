"""The champion as the ledger's newest receipt says, with the statistics that were signed for it."""

from __future__ import annotations

from secvec.components.gate_promotion.ledger import Ledger
from secvec.components.gate_promotion.noninferiority import Champion
from secvec.components.gate_promotion.promotion import CHAMPION
from secvec.components.shared.artifacts import fetch
from secvec.components.shared.errors import SecvecError
from secvec.components.shared.strict_json import read_object


def read_champion(ledger: Ledger) -> Champion | None:
    """Read what is champion, by the digests of its signed receipt; None if nothing is.

    Raises:
        SecvecError: The ledger cannot be read. That an evaluation cannot be is told in the result instead.
    """
    latest = ledger.latest()
    grant = latest.aliases.get(CHAMPION)
    if grant is None:
        return None
    try:
        folder = fetch(grant.evaluation)
    except SecvecError as error:
        problem = f"its evaluation cannot be read: {error}"
        return Champion(latest.number, grant.model.digest, {}, problem=problem)
    return Champion(latest.number, grant.model.digest, read_object(folder / "statistics.json"))
