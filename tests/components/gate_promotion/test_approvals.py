"""People's approvals: they settle what is open, never what failed, and the author's own does not count."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from secvec.components.gate_promotion import approvals, reconciliation
from secvec.components.gate_promotion.approvals import approve, find_obstacle
from secvec.components.gate_promotion.policy import Policy
from secvec.components.gate_promotion.promotion import read_aliases
from secvec.components.gate_promotion.reconciliation import Reconciled, reconcile
from secvec.components.gate_promotion.step import gate_promotion
from secvec.components.gate_promotion.verdict import Reason, decide
from secvec.components.shared import audit
from secvec.components.shared.artifacts import fetch
from secvec.components.shared.errors import SecvecError
from secvec.components.shared.references import Reference
from secvec.components.shared.signing_keys import ensure_signing_key
from secvec.components.shared.verification import verify_model
from secvec.pipelines.command import app


class Board:
    """Three people, two of whom must approve, and an open verdict before them."""

    def __init__(self, gate: Any, folder: Path, case: Any) -> None:
        self.gate, self.folder = gate, folder
        self.case = replace(case, policy=self.policy())
        self.verdict: Reference = gate_promotion(**vars(self.case))

    def key(self, name: str) -> Path:
        return ensure_signing_key(self.folder / "people" / name)

    def policy(self, **more: Any) -> Policy:
        keys = {name: Path(f"{self.key(name)}.pub").read_text() for name in ("alice", "bob", "carol")}
        return Policy(version=1, required_approvals=2, approvers=keys, **more)

    def approve(self, *names: str) -> None:
        for name in names:
            approve(self.verdict, key=self.key(name), store=self.case.store)

    def settle(self) -> Reconciled:
        found = reconcile(self.case.model_name, store=self.case.store, seconds=0.3)
        assert found is not None
        return found

    def champion(self) -> str | None:
        return read_aliases(self.case.model_name).get("champion")

    def approvals(self) -> list[Path]:
        return sorted((Path(self.case.store) / "approvals" / self.verdict.digest[7:]).glob("*.json"))


@pytest.fixture
def board(gate: Any, environment: Path, case: Any, monkeypatch: pytest.MonkeyPatch) -> Board:
    monkeypatch.setenv("SECVEC_AUTHOR", "alice")
    return Board(gate, environment, case)


def test_a_pass_waits_for_people(board: Board) -> None:
    verdict = json.loads((fetch(board.verdict) / "verdict.json").read_text())
    open_reasons = [one for one in verdict["reasons"] if one["outcome"] != "PASS"]
    assert [(one["check"], one["figure"], one["bound"]) for one in open_reasons] == [("approvals", 0, 2)]
    assert (verdict["outcome"], board.champion()) == ("INDETERMINATE", None)
    assert board.settle() == Reconciled()


def test_enough_people_settle_it(board: Board) -> None:
    board.approve("bob")
    assert (board.settle(), board.champion()) == (Reconciled(), None)
    board.approve("carol")
    assert len(board.settle().settled) == 1
    assert board.champion() == "1"
    receipt = audit_receipt(board)
    settled = json.loads((fetch(receipt) / "verdict.json").read_text())
    assert (settled["outcome"], settled["settles"]) == ("PASS", board.verdict.digest)
    (reason,) = (one for one in settled["reasons"] if one["check"] == "approvals")
    assert (reason["outcome"], reason["source"]) == ("PASS", "approved by bob, carol")
    assert verify_model(fetch(board.case.model), verdict=fetch(receipt)).model_version == "1"
    logged = [(entry["event"], entry["fields"]) for entry in audit.read_entries()]
    approved = [fields for event, fields in logged if event == "verdict_approved"]
    assert [(one["approver"], one["verdict"]) for one in approved] == [
        (name, board.verdict.digest) for name in ("bob", "carol")
    ]
    (promoted,) = (fields for event, fields in logged if event == "promotion_approved")
    assert (promoted["verdict_digest"], promoted["approvers"]) == (board.verdict.digest, ["bob", "carol"])
    assert board.settle() == Reconciled()


def test_what_is_approved_after_its_verdict_has_expired_is_not_promoted(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    board.approve("bob", "carol")
    later = datetime.now(UTC) + timedelta(days=board.case.policy.valid_days + 1)
    monkeypatch.setattr(reconciliation, "datetime", SimpleNamespace(now=lambda zone: later))
    assert (board.settle(), board.champion()) == (Reconciled(), None)


def audit_receipt(board: Board) -> Reference:
    from secvec.components.gate_promotion.ledger import Ledger
    from secvec.components.gate_promotion.promotion import ensure_registered

    name = board.case.model_name
    ledger = Ledger(board.case.store, name=name, registered=ensure_registered(name))
    return ledger.latest().aliases["champion"].verdict


def test_the_same_person_twice_is_one_person(board: Board) -> None:
    board.approve("bob", "bob")
    copied = board.approvals()[0]
    copied.with_name("0" * 64 + ".json").write_bytes(copied.read_bytes())
    assert (board.settle(), board.champion()) == (Reconciled(), None)


def test_the_author_may_not_approve(board: Board) -> None:
    with pytest.raises(SecvecError, match="is the author's own"):
        board.approve("alice")
    assert board.approvals() == []


def test_the_authors_approval_does_not_count_however_it_came_there(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    board.approve("bob")
    envelope = approvals._sign_as(
        approvals.make_statement(
            {"verdict": board.verdict.digest},
            approvals.APPROVAL_TYPE,
            {"issued_at": datetime.now(UTC).isoformat()},
        ),
        board.key("alice"),
    )
    (board.approvals()[0].parent / "alice.json").write_text(json.dumps(envelope))
    assert (board.settle(), board.champion()) == (Reconciled(), None)


def test_the_gates_own_key_is_an_authors(gate: Any, environment: Path, case: Any) -> None:
    own = Path(f"{environment / 'signing'}.pub").read_text()
    other = Path(f"{ensure_signing_key(environment / 'people' / 'bob')}.pub").read_text()
    policy = Policy(version=1, required_approvals=1, approvers={"gate": own, "bob": other})
    verdict = gate_promotion(**vars(replace(case, policy=policy)))
    with pytest.raises(SecvecError, match="is the author's own"):
        approve(verdict, key=environment / "signing", store=case.store)


def test_a_stranger_may_not_approve(board: Board) -> None:
    with pytest.raises(SecvecError, match=r"is no approver's; accepted: the key of one of alice, bob, carol"):
        board.approve("mallory")


@pytest.mark.parametrize("damage", ["other verdict", "future", "unsigned", "junk", "bit"])
def test_an_approval_that_does_not_hold_does_not_count(board: Board, damage: str) -> None:
    board.approve("bob", "carol")
    path = board.approvals()[0]
    key = board.key(next(n for n in ("bob", "carol") if path.stem == board_key_id(board, n)))
    ahead = timedelta(days=1 if damage == "future" else 0)
    digest = "sha256:" + "e" * 64 if damage == "other verdict" else board.verdict.digest
    statement = approvals.make_statement(
        {"verdict": digest}, approvals.APPROVAL_TYPE, {"issued_at": (datetime.now(UTC) + ahead).isoformat()}
    )
    envelope = approvals._sign_as(statement, key)
    if damage == "unsigned":
        envelope["signatures"] = []
    if damage == "bit":
        envelope["payload"] = "A" + envelope["payload"][1:]
    path.write_text("junk" if damage == "junk" else json.dumps(envelope))
    assert (board.settle(), board.champion()) == (Reconciled(), None)


def board_key_id(board: Board, name: str) -> str:
    from secvec.components.gate_promotion.policy import key_id

    return key_id(Path(f"{board.key(name)}.pub").read_text())


def test_a_failed_verdict_cannot_be_approved(board: Board) -> None:
    worse = board.gate.evaluation(
        board.case, edit=lambda s: s["arms"]["guarded"].update({"harm_rate": 0.99, "harm_upper95": 0.999})
    )
    board.verdict = gate_promotion(**vars(replace(board.case, evaluation=worse)))
    with pytest.raises(SecvecError, match="it failed harm_rate, harm_upper95"):
        board.approve("bob")


def test_an_open_figure_is_settled_by_people(board: Board) -> None:
    unsure = board.gate.evaluation(
        board.case, edit=lambda s: s["arms"]["vector_active"].update(harm_rate=0.2)
    )
    board.verdict = gate_promotion(**vars(replace(board.case, evaluation=unsure)))
    board.approve("bob", "carol")
    board.settle()
    assert board.champion() == "1"


def test_what_a_later_champion_has_overtaken_is_not_promoted(board: Board) -> None:
    board.approve("bob", "carol")
    newer = replace(board.case, model=board.gate.model(seed=5), policy=Policy(version=1))
    gate_promotion(**vars(replace(newer, evaluation=board.gate.evaluation(newer))))
    assert (board.settle(), board.champion()) == (Reconciled(), "2")


def reasons(**changes: Reason | None) -> tuple[Reason, ...]:
    found: dict[str, Reason | None] = {
        "signature": Reason(check="signature", outcome="PASS", figure="verified", bound="", source=""),
        "absence_proof": Reason(check="absence_proof", outcome="PASS", figure="passed", bound="", source=""),
        "approvals": Reason(check="approvals", outcome="INDETERMINATE", figure=0, bound=1, source=""),
    }
    return tuple(one for one in (found | changes).values() if one)


WAIVED = Reason(check="absence_proof", outcome="PASS", figure="not required", bound="", source="")
REFUTED = Reason(check="signature", outcome="FAIL", figure="no", bound="", source="")


@pytest.mark.parametrize(
    ("changes", "obstacle"),
    [
        ({}, ""),
        ({"absence_proof": WAIVED}, "has no absence proof that holds"),
        ({"absence_proof": None}, "has no absence proof that holds"),
        ({"signature": None}, "has no signature that holds"),
        ({"signature": REFUTED}, "failed signature"),
    ],
)
def test_what_approval_never_gets_past(board: Board, changes: dict[str, Any], obstacle: str) -> None:
    given = reasons(**changes)
    assert find_obstacle(decide(given), given, board.policy()) == obstacle


def test_a_policy_that_asks_for_no_approvals_cannot_be_settled() -> None:
    assert find_obstacle("INDETERMINATE", reasons(), Policy(version=1)) == "its policy asks for no approvals"


@pytest.mark.parametrize("name", ["policy.json", "verdict.json"])
def test_an_edited_verdict_cannot_be_approved(board: Board, name: str) -> None:
    path = fetch(board.verdict) / name
    path.write_text(path.read_text() + " ")
    with pytest.raises(SecvecError, match="bytes"):
        board.approve("bob")


def test_without_an_audit_log_nobody_approves(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECVEC_AUDIT_LOG", "/dev/full")
    with pytest.raises(SecvecError, match="audit log"):
        board.approve("bob")
    assert board.approvals() == []


def test_the_commands(board: Board) -> None:
    for name in ("bob", "carol"):
        words = ["approve", board.verdict.uri, "--key", str(board.key(name)), "--yes"]
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, done.output
        assert f"signed  as {name}" in done.output
    done = CliRunner().invoke(
        app, ["reconcile", board.case.model_name, "--store", board.case.store, "--patience", "1"]
    )
    assert "enough people signed" in done.output
    assert board.champion() == "1"
    done = CliRunner().invoke(app, ["reconcile", board.case.model_name, "--store", board.case.store])
    assert "nothing to do" in done.output


def test_policies_that_contradict_themselves(board: Board) -> None:
    keys = board.policy().approvers
    for bad in (
        {"required_approvals": 1},
        {"required_approvals": 2, "approvers": {"alice": keys["alice"], "bob": keys["alice"]}},
        {"approvers": {"alice": "no key"}},
        {"required_approvals": -1},
        {"required_approvals": True, "approvers": keys},
    ):
        with pytest.raises(SecvecError):
            Policy.read({"version": 1, **bad}, where="policy")
