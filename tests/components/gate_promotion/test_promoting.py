"""Promotion, effectively once: processes that kill themselves, a real registry, a real store."""

import importlib.util
import os
import random
import signal
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from secvec.components.gate_promotion import promoting, turns
from secvec.components.gate_promotion.intents import declare, find_open
from secvec.components.gate_promotion.ledger import Ledger, Receipt
from secvec.components.gate_promotion.promotion import ensure_registered, read_aliases
from secvec.components.gate_promotion.reconciliation import Reconciled, reconcile
from secvec.components.shared import audit
from secvec.components.shared.errors import SecvecError
from secvec.components.shared.signing_keys import ensure_signing_key
from secvec.components.shared.storage import write_bytes
from secvec.components.shared.tracking import connect

LEASE = 0.3


@pytest.fixture(scope="session")
def race() -> ModuleType:
    """The benchmark of racing promoters."""
    path = Path(__file__).parents[2] / "benchmarks" / "promotion.py"
    spec = importlib.util.spec_from_file_location("race_of_promoters", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


class Shop:
    """A registered model with candidates for it."""

    def __init__(self, race: ModuleType, folder: Path, name: str) -> None:
        self.race, self.folder, self.name, self.store = race, folder, name, str(folder / "store")
        self.ledger = Ledger(self.store, name=name, registered=ensure_registered(name))

    def intent(self, number: int) -> Any:
        model = self.race.make_candidate(self.store, self.folder, number)
        return declare(self.race.make_intent(self.name, model, self.ledger), self.ledger)

    def promote(self, number: int) -> None:
        promoting.carry_out(self.intent(number), self.ledger, store=self.store, seconds=LEASE)

    def crash(self, number: int, module: Any, step: str, *, after: bool) -> None:
        """Let another process promote a candidate, which kills itself before or after a step."""

        def work() -> None:
            self.race.kill_at(module, step, after=after)
            self.promote(number)

        assert os.WTERMSIG(os.waitpid(self.race.fork(work), 0)[1]) == signal.SIGKILL

    def reconcile(self, **options: Any) -> Reconciled:
        found = reconcile(self.name, store=self.store, seconds=LEASE, **options)
        assert found is not None
        return found

    def versions(self) -> list[str]:
        found = connect().search_model_versions(f"name = '{self.name}'")
        return sorted(str(version.version) for version in found)


@pytest.fixture
def shop(race: ModuleType, environment: Path, request: pytest.FixtureRequest) -> Shop:
    return Shop(race, environment, f"shop-{abs(hash(request.node.nodeid))}")


def test_a_promotion_leaves_one_receipt_and_shows_it(shop: Shop) -> None:
    shop.promote(1)
    assert read_aliases(shop.name) == {"candidate": "1", "champion": "1"}
    assert [receipt.kind for receipt in shop.race.receipts(shop.ledger)] == ["promotion"]
    assert shop.ledger.is_released(1)
    assert find_open(shop.ledger) == []


def test_the_same_intent_again_changes_nothing(shop: Shop) -> None:
    shop.promote(1)
    shop.promote(2)
    shop.promote(1)
    assert read_aliases(shop.name) == {"candidate": "2", "champion": "2"}
    assert len(shop.race.receipts(shop.ledger)) == 2


STEPS: list[tuple[Any, str]] = [
    (promoting, "register_version"),
    (promoting, "publish_verdict"),
    (promoting, "tag_version"),
    (promoting, "set_aliases"),
    (Ledger, "claim"),
    (Ledger, "fill"),
    (Ledger, "mark_done"),
    (Ledger, "release"),
]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(("module", "step"), STEPS, ids=[step for _, step in STEPS])
def test_a_crash_is_finished_by_the_reconciler(shop: Shop, module: Any, step: str, after: bool) -> None:
    shop.promote(1)
    shop.crash(2, module, step, after=after)
    shop.race.check_champion(shop.ledger)
    shop.reconcile()
    shop.race.check_end(shop.ledger, store=shop.store, counts=shop.race.Counter())
    assert read_aliases(shop.name) == {"candidate": "2", "champion": "2"}
    assert shop.versions() == ["1", "2"]


def test_a_crash_is_finished_by_the_gate_that_tries_again(shop: Shop) -> None:
    shop.crash(1, promoting, "set_aliases", after=False)
    shop.promote(1)
    assert read_aliases(shop.name) == {"candidate": "1", "champion": "1"}
    assert shop.versions() == ["1"]
    assert shop.reconcile() == Reconciled()


def test_what_a_later_promotion_has_overtaken_is_given_up(shop: Shop) -> None:
    shop.crash(1, promoting, "register_version", after=True)
    shop.promote(2)
    found = shop.reconcile()
    assert (found.finished, len(found.given_up)) == ([], 1)
    assert read_aliases(shop.name)["champion"] == "2"
    assert shop.reconcile() == Reconciled()


def test_what_has_expired_is_given_up(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    from datetime import timedelta

    old = shop.race.make_intent(shop.name, shop.race.make_candidate(shop.store, shop.folder, 1), shop.ledger)
    declare(old.model_copy(update={"issued_at": old.issued_at - timedelta(days=91)}), shop.ledger)
    assert len(shop.reconcile().given_up) == 1
    assert read_aliases(shop.name) == {}


def test_whoever_was_too_slow_is_shut_out(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """One promoter stops before its receipt; another takes over; the first wakes up and changes nothing."""
    shop.promote(1)
    original = Ledger.fill

    def fill(ledger: Ledger, receipt: Receipt) -> bool:
        monkeypatch.setattr(Ledger, "fill", original)
        shop.promote(2)  # waits until the turn under way has stood still for long enough
        return original(ledger, receipt)

    monkeypatch.setattr(Ledger, "fill", fill)
    intent = shop.intent(3)
    with pytest.raises(turns.ShutOut), turns.take_turn(shop.ledger, seconds=LEASE) as turn:
        promoting._use_turn(turn, intent, store=shop.store)
    assert read_aliases(shop.name)["champion"] == shop.ledger.latest().aliases["champion"].version
    assert shop.ledger.done(intent.key) is None
    assert [one.kind for one in shop.race.receipts(shop.ledger)] == ["promotion", "forfeit", "promotion"]


def test_whoever_was_late_to_show_its_receipt_corrects_itself(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    original: Callable[..., None] = promoting.set_aliases

    def set_aliases(*arguments: Any) -> None:
        monkeypatch.setattr(promoting, "set_aliases", original)
        shop.promote(2)
        original(*arguments)

    monkeypatch.setattr(promoting, "set_aliases", set_aliases)
    shop.promote(1)
    granted = shop.ledger.latest().aliases["champion"]
    assert granted.model == shop.intent(2).model
    assert read_aliases(shop.name)["champion"] == granted.version


def test_an_alias_that_somebody_else_moved_is_reported(shop: Shop) -> None:
    shop.promote(1)
    shop.promote(2)
    point(shop, champion="1")
    for _ in range(2):
        assert shop.reconcile().moved == {"champion": ("1", "2")}
        assert read_aliases(shop.name)["champion"] == "1"
    found = shop.reconcile(restore=True)
    assert (found.moved, found.restored) == ({"champion": ("1", "2")}, True)
    assert read_aliases(shop.name)["champion"] == "2"
    assert shop.reconcile() == Reconciled()
    logged = [entry for entry in audit.read_entries() if entry["event"] == "alias_moved_by_other"]
    assert logged[0]["fields"]["found"] == "1"


def point(shop: Shop, **versions: str) -> None:
    for alias, version in versions.items():
        connect().set_registered_model_alias(shop.name, alias, version)


def test_aliases_that_late_promoters_set_are_told_from_moved_ones(shop: Shop) -> None:
    shop.promote(1)
    for number in (2, 3):
        shop.crash(number, promoting, "set_aliases", after=False)
    shop.promote(4)
    # As if the two had only slept: each sets an alias of its own receipt when the turn is over.
    point(shop, candidate="2", champion="3")
    assert shop.reconcile() == Reconciled(shown=["candidate", "champion"])
    assert read_aliases(shop.name) == {"candidate": "4", "champion": "4"}
    # Version 1 was shown by a turn that ended: whoever shows it now is no late promoter.
    point(shop, candidate="3", champion="1")
    found = shop.reconcile()
    assert found == Reconciled(shown=["candidate"], moved={"champion": ("1", "4")})
    assert read_aliases(shop.name) == {"candidate": "4", "champion": "1"}
    point(shop, candidate="2")
    assert shop.reconcile(restore=True).restored
    assert read_aliases(shop.name) == {"candidate": "4", "champion": "4"}


def test_an_alias_without_any_receipt_is_reported(shop: Shop) -> None:
    connect().create_model_version(shop.name, source="s3://bucket/model")
    connect().set_registered_model_alias(shop.name, "champion", "1")
    assert shop.reconcile().moved == {"champion": ("1", "")}


def test_mlflow_down_between_intent_and_alias(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.promote(1)
    intent = shop.intent(2)

    def down(*_: Any, **__: Any) -> None:
        raise SecvecError("MLflow: is down")

    with monkeypatch.context() as patch, pytest.raises(SecvecError, match="is down"):
        patch.setattr(promoting, "set_aliases", down)
        promoting.carry_out(intent, shop.ledger, store=shop.store, seconds=LEASE)
    assert read_aliases(shop.name)["champion"] == "1"
    assert shop.reconcile().shown == ["candidate", "champion"]
    assert read_aliases(shop.name)["champion"] == "2"


def test_a_forged_record_stops_everything(shop: Shop) -> None:
    shop.promote(1)
    write_bytes(f"{shop.ledger.uri}/turns/{2:012}.claim.json", b"{}")
    write_bytes(f"{shop.ledger.uri}/turns/{2:012}.receipt.json", b'{"aliases": {}}')
    with pytest.raises(SecvecError, match="cannot be believed"):
        shop.promote(2)
    assert read_aliases(shop.name)["champion"] == "1"


def test_a_receipt_of_another_model_is_no_receipt(shop: Shop) -> None:
    shop.promote(1)
    other = Ledger(shop.store, name=shop.name, registered=1)
    for what in ("claim", "receipt", "release"):
        content = Path(f"{shop.ledger.uri}/turns/{1:012}.{what}.json").read_bytes()
        write_bytes(f"{other.uri}/turns/{1:012}.{what}.json", content)
    with pytest.raises(SecvecError, match="is no receipt"):
        other.latest()


def test_an_intent_under_another_key_is_no_intent(shop: Shop) -> None:
    intent = shop.intent(1)
    place = Path(f"{shop.ledger.uri}/intents/{intent.key}.intent.json")
    place.rename(place.with_name("0" * 64 + ".intent.json"))
    with pytest.raises(SecvecError, match="is no intent"):
        find_open(shop.ledger)


def test_without_an_audit_log_nothing_is_reconciled(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.crash(1, promoting, "set_aliases", after=False)
    monkeypatch.setenv("SECVEC_AUDIT_LOG", "/dev/full")
    with pytest.raises(SecvecError, match="audit log"):
        shop.reconcile()
    assert read_aliases(shop.name) == {}


def test_a_registry_without_the_model_has_nothing_to_reconcile(shop: Shop) -> None:
    assert reconcile("nobody", store=shop.store) is None


def test_racing_promoters_that_are_killed_come_to_one_winner(shop: Shop) -> None:
    draw = random.Random(11)  # kills its first after 0.03 s, before anyone can have won
    candidates = [shop.race.make_candidate(shop.store, shop.folder, number) for number in range(3)]
    counts = shop.race.run_round(shop.name, candidates, store=shop.store, promoters=8, draw=draw)
    assert counts["won"] == 1
    assert counts["killed"]


def test_turns_on_s3_are_taken_one_at_a_time(
    race: ModuleType, s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECVEC_SIGNING_KEY", str(ensure_signing_key(tmp_path / "signing")))
    monkeypatch.delenv("SECVEC_TRUSTED_KEYS", raising=False)
    ledger = Ledger(s3_bucket, name="on s3", registered=1)
    inside: list[int] = []

    def work(_: int) -> int:
        with turns.take_turn(ledger, seconds=30) as turn:
            inside.append(turn.number)
            alone = len(inside) == 1
            turn.fill(Receipt(number=turn.number, kind="reconciliation"))
            inside.remove(turn.number)
        return turn.number if alone else 0

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(work, range(8))) == list(range(1, 9))
    assert ledger.latest().number == ledger.count() == 8


def test_whoever_waits_for_what_another_has_done_takes_no_turn(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    intent = shop.intent(1)
    with ThreadPoolExecutor(1) as pool, turns.take_turn(shop.ledger) as turn:
        waiting = pool.submit(promoting.carry_out, intent, shop.ledger, store=shop.store)
        verdict = promoting._use_turn(turn, intent, store=shop.store)
        shop.ledger.release(turn.number)
        assert waiting.result() == verdict
    assert shop.ledger.count() == 1
