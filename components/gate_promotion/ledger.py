"""The ledger of promotions: numbered, create-only, signed records that say what each alias stands for.

MLflow's aliases have no compare-and-swap and can be edited by anyone who may write to the registry. So the
decision falls here, and aliases only show it. Each number has a claim (who is at work), a receipt (what
came of it) and a release (the aliases show it). A receipt is written once: by whoever claimed the number or,
when that one has stopped, by the next in line, who so shuts the late one out (a fencing token; Kleppmann,
"How to do distributed locking", 2016).

Nothing is ever deleted or replaced, so that the ledger can lie under Object Lock. On S3 this needs a server
that honours ``If-None-Match`` under concurrency.
"""

from __future__ import annotations

import json
import secrets
from typing import Any, Literal
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, ValidationError

from secvec.components.shared.attestation import make_statement, sign_statement, verify_statement
from secvec.components.shared.errors import SecvecError
from secvec.components.shared.manifest import digest_bytes
from secvec.components.shared.references import Reference
from secvec.components.shared.storage import create_bytes, exists, join_uri, read_bytes
from secvec.components.shared.strict_json import parse_strictly

RECEIPT_TYPE = "urn:secvec:promotion-receipt:1"


class Grant(BaseModel):
    """A model version that an alias stands for, and why.

    Attributes:
        version: Version in the registry.
        model: The model artifact.
        evaluation: Its signed evaluation.
        verdict: The verdict that granted the alias.
        intent: Key of the intent behind it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: str
    model: Reference
    evaluation: Reference
    verdict: Reference
    intent: str


class Receipt(BaseModel):
    """What one turn came to.

    Attributes:
        number: Number of the turn.
        kind: A promotion (or registration), a reconciliation that changed nothing, or the turn of somebody
            who stopped in its middle.
        grant: The version that was registered, for a promotion; it may have got no alias.
        aliases: What every alias stands for from here on.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: int
    kind: Literal["promotion", "reconciliation", "forfeit"]
    grant: Grant | None = None
    aliases: dict[str, Grant] = {}


class Ledger:
    """The ledger of one registered model.

    Args:
        store: URI of the store it lies in.
        name: Name of the registered model.
        registered: When the registry says that the model was created, which tells two registries with the
            same model name apart, and a model that was deleted from its successor.
    """

    def __init__(self, store: str, *, name: str, registered: int) -> None:
        self.name = name
        self.uri = join_uri(store, "promotions", f"{quote(name, safe='')}-{registered}")

    def count(self, start: int = 0) -> int:
        """The highest number claimed; numbers have no gaps, so doubling and halving finds it.

        Args:
            start: A number known to be claimed, or 0.
        """
        step = 1
        while self._has(start + step, "claim"):
            start, step = start + step, step * 2
        while step > 1:
            step //= 2
            if self._has(start + step, "claim"):
                start += step
        return start

    def claim(self, number: int, holder: str) -> bool:
        """Claim the next number; False if somebody was quicker."""
        note = {"holder": holder, "nonce": secrets.token_hex(16)}
        return create_bytes(self._place(number, "claim"), json.dumps(note).encode())

    def fill(self, receipt: Receipt) -> bool:
        """Write a number's receipt; False if it has one already."""
        content = json.loads(receipt.model_dump_json())
        subject = {f"turn {receipt.number} of {self.name}": digest_bytes(self.uri.encode())}
        envelope = sign_statement(make_statement(subject, RECEIPT_TYPE, content))
        return create_bytes(self._place(receipt.number, "receipt"), json.dumps(envelope).encode())

    def forfeit(self, number: int) -> bool:
        """Shut out whoever claimed a number and stopped; False if they have come to their receipt."""
        aliases = self.state_at(number - 1).aliases
        return self.fill(Receipt(number=number, kind="forfeit", aliases=aliases))

    def release(self, number: int) -> None:
        """Note that the aliases show a number's receipt, so that the next need not wait."""
        create_bytes(self._place(number, "release"), b"{}")

    def is_released(self, number: int) -> bool:
        """Whether a turn has come to its end."""
        return self._has(number, "release")

    def receipt(self, number: int) -> Receipt | None:
        """A number's receipt, if there is one.

        Raises:
            SecvecError: What lies there is not signed by a trusted key, or is another number's.
        """
        place = self._place(number, "receipt")
        if not exists(place):
            return None
        statement = read_statement(place, RECEIPT_TYPE)
        try:
            found = Receipt.model_validate(statement["predicate"])
            digest = statement["subject"][0]["digest"]["sha256"]
        except (ValidationError, LookupError, TypeError):
            found, digest = None, ""
        if not found or found.number != number or f"sha256:{digest}" != digest_bytes(self.uri.encode()):
            raise SecvecError("is no receipt", where=place, accepted=f"the receipt of turn {number}")
        return found

    def state_at(self, number: int) -> Receipt:
        """A number's receipt; one that says nothing for number 0.

        Raises:
            SecvecError: There is none, or it cannot be believed.
        """
        found = self.receipt(number) if number else Receipt(number=0, kind="reconciliation")
        if found is None:
            raise SecvecError(
                "is missing", where=self._place(number, "receipt"), accepted="a ledger without gaps"
            )
        return found

    def latest(self) -> Receipt:
        """The newest receipt: every number before the last claimed has one."""
        number = self.count()
        return (self.receipt(number) if number else None) or self.state_at(max(0, number - 1))

    def mark_done(self, intent: str, number: int) -> None:
        """Note under an intent's key that a receipt carries it out."""
        create_bytes(join_uri(self.uri, "intents", f"{intent}.done.json"), str(number).encode())

    def done(self, intent: str) -> Receipt | None:
        """The receipt that carried an intent out, if any.

        Raises:
            SecvecError: The mark or the receipt it names cannot be believed.
        """
        place = join_uri(self.uri, "intents", f"{intent}.done.json")
        if not exists(place):
            return None
        text = read_bytes(place)
        found = self.receipt(int(text)) if text.isdigit() else None
        if found is None or found.grant is None or found.grant.intent != intent:
            raise SecvecError("names no receipt of this intent", where=place, accepted="a number of its turn")
        return found

    def _has(self, number: int, what: str) -> bool:
        return exists(self._place(number, what))

    def _place(self, number: int, what: str) -> str:
        return join_uri(self.uri, "turns", f"{number:012}.{what}.json")


def read_statement(place: str, predicate_type: str) -> dict[str, Any]:
    """Read a signed record of the ledger.

    Raises:
        SecvecError: It cannot be read or believed.
    """
    try:
        envelope = parse_strictly(read_bytes(place))
    except (ValueError, RecursionError):
        envelope = {}
    return verify_statement(
        envelope if isinstance(envelope, dict) else {}, predicate_type=predicate_type, where=place
    )
