"""Intents: what the gate has judged and is about to do, signed and create-only, before it touches a registry.

A crash leaves an intent from which the same end can be reached without judging again.
"""

from __future__ import annotations

import json
from datetime import datetime

import rfc8785
from pydantic import BaseModel, ConfigDict, ValidationError

from secvec.components.gate_promotion.ledger import Ledger, read_statement
from secvec.components.gate_promotion.policy import Policy
from secvec.components.gate_promotion.verdict import Outcome, Reason
from secvec.components.shared.attestation import make_statement, sign_statement
from secvec.components.shared.errors import SecvecError
from secvec.components.shared.manifest import digest_bytes
from secvec.components.shared.references import Reference
from secvec.components.shared.storage import create_bytes, exists, join_uri, list_uris

INTENT_TYPE = "urn:secvec:promotion-intent:1"
_ENDING = ".intent.json"


class Intent(BaseModel):
    """A judgement whose consequences are still to come.

    Attributes:
        model_name: Registered model.
        model: The model artifact that was judged.
        evaluation: Its signed evaluation.
        policy: The policy it was judged by.
        outcome: PASS, FAIL or INDETERMINATE.
        reasons: One for each check.
        digests: What was judged, by role.
        aliases: Aliases that the version gets.
        issued_at: When it was judged, by the gate's clock.
        run_id: MLflow run that the version belongs to, or nothing.
        author: Who started the run, as far as it is known.
        after: Number of the ledger's newest receipt at that time.
        settles: Digest of the verdict that people's approvals turned into this one; mostly empty.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    model_name: str
    model: Reference
    evaluation: Reference
    policy: Policy
    outcome: Outcome
    reasons: tuple[Reason, ...]
    digests: dict[str, str]
    aliases: tuple[str, ...]
    issued_at: datetime
    run_id: str = ""
    author: str = ""
    after: int = 0
    settles: str = ""

    @property
    def key(self) -> str:
        """Key over model, policy, evidence and outcome: judging the same again is the same intent."""
        parts = {
            "model_name": self.model_name,
            "model": self.model.digest,
            "policy": self.policy.digest(),
            "evaluation": self.evaluation.digest,
            "outcome": self.outcome,
            "settles": self.settles,
        }
        return digest_bytes(rfc8785.dumps(parts)).removeprefix("sha256:")


def declare(intent: Intent, ledger: Ledger) -> Intent:
    """Write an intent unless it is there; give the one that is there, which is the one to carry out.

    Raises:
        SecvecError: The ledger cannot be written, or what lies there cannot be believed.
    """
    content = json.loads(intent.model_dump_json())
    envelope = sign_statement(make_statement({"model artifact": intent.model.digest}, INTENT_TYPE, content))
    create_bytes(_place(ledger, intent.key), json.dumps(envelope).encode())
    return _read(_place(ledger, intent.key))


def find_open(ledger: Ledger) -> list[Intent]:
    """Intents that no receipt carries out and nobody has given up, the eldest first.

    Raises:
        SecvecError: The ledger cannot be read, or one of them cannot be believed.
    """
    waiting = [
        intent
        for intent in _read_all(ledger)
        if not ledger.done(intent.key) and not exists(_given_up(ledger, intent.key))
    ]
    return sorted(waiting, key=lambda intent: (intent.after, intent.issued_at, intent.key))


def find_settled(ledger: Ledger, outcome: Outcome) -> list[Intent]:
    """Intents of an outcome that a receipt has carried out.

    Raises:
        SecvecError: The ledger cannot be read, or one of them cannot be believed.
    """
    return [intent for intent in _read_all(ledger) if intent.outcome == outcome and ledger.done(intent.key)]


def give_up(intent: Intent, ledger: Ledger) -> None:
    """Note that an intent is no longer to be finished by anyone but the gate itself."""
    create_bytes(_given_up(ledger, intent.key), b"{}")


def _read_all(ledger: Ledger) -> list[Intent]:
    places = list_uris(join_uri(ledger.uri, "intents"))
    return [_read(place) for place in places if place.endswith(_ENDING)]


def _place(ledger: Ledger, key: str) -> str:
    return join_uri(ledger.uri, "intents", f"{key}{_ENDING}")


def _given_up(ledger: Ledger, key: str) -> str:
    return join_uri(ledger.uri, "intents", f"{key}.given_up.json")


def _read(place: str) -> Intent:
    statement = read_statement(place, INTENT_TYPE)
    try:
        found = Intent.model_validate(statement["predicate"])
    except ValidationError:
        found = None
    if found is None or not place.endswith(f"/{found.key}{_ENDING}"):
        raise SecvecError("is no intent", where=place, accepted="an intent as the gate wrote it")
    return found
