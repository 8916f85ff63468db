"""Promoters that race and are killed: does each round end with one winner, whatever was cut off?

    python tests/benchmarks/promotion.py [--promoters 32] [--rounds 200] [--seed 0]

Real processes, a real MLflow registry (sqlite), a real store (a folder). In each round some promoters are
killed from outside at a random time, and some kill themselves at a random step. Then:

- whatever the alias `champion` showed at any time had a receipt by then;
- after one reconciliation no intent is open, the aliases show the newest receipt, and a second one finds
  nothing to do;
- every model has one version, and every intent one receipt at most.
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from secvec.components.gate_promotion import intents, promoting, promotion, reconciliation, turns
from secvec.components.gate_promotion.ledger import Ledger, Receipt
from secvec.components.gate_promotion.policy import Policy
from secvec.components.shared import tracking
from secvec.components.shared.artifacts import publish
from secvec.components.shared.references import Reference
from secvec.components.shared.signing_keys import ensure_signing_key

LEASE = 2.0
CANDIDATES = 4
DIGEST = "sha256:" + "d" * 64
STEPS = [
    (turns, "_repair"),
    (promoting, "register_version"),
    (promoting, "publish_verdict"),
    (promoting, "tag_version"),
    (promoting, "set_aliases"),
    (Ledger, "claim"),
    (Ledger, "fill"),
    (Ledger, "mark_done"),
    (Ledger, "release"),
]


def prepare(folder: Path, *, tracking_uri: str = "") -> str:
    """Set up keys, log and registry in a folder; gives the store's URI."""
    os.environ["SECVEC_SIGNING_KEY"] = str(ensure_signing_key(folder / "signing"))
    os.environ["SECVEC_AUDIT_LOG"] = str(folder / "audit.jsonl")
    os.environ["MLFLOW_TRACKING_URI"] = tracking_uri or f"sqlite:///{folder}/mlflow.db"
    for name in ("SECVEC_TRUSTED_KEYS", "MLFLOW_RUN_ID", "KFP_RUN_ID"):
        os.environ.pop(name, None)
    tracking.initialise(os.environ["MLFLOW_TRACKING_URI"], f"file://{folder}/artifacts")
    return str(folder / "store")


def make_candidate(store: str, folder: Path, number: int) -> Reference:
    """Publish a folder that stands for a model."""
    model = folder / f"model-{number}"
    (model / "model").mkdir(parents=True, exist_ok=True)
    (model / "model" / "config.json").write_text(f'{{"number": {number}}}')
    return publish(model, kind="model", store=store)


def make_intent(name: str, model: Reference, ledger: Ledger) -> intents.Intent:
    """What a gate would declare after a PASS."""
    return intents.Intent(
        model_name=name,
        model=model,
        evaluation=Reference(kind="evaluation", uri="file:///none", digest=DIGEST),
        policy=Policy(version=1),
        outcome="PASS",
        reasons=(),
        digests={"model": model.digest, "evaluation": DIGEST},
        aliases=("candidate", "champion"),
        issued_at=datetime.now(UTC),
        after=ledger.latest().number,
    )


def fork(work: Callable[[], Any]) -> int:
    """Start a process that does some work and leaves nothing behind; gives its id."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        forget_connections()
        work()
        status = 0
    except Exception as error:
        print(f"promoter: {error}", file=sys.stderr, flush=True)
    finally:
        os._exit(status)


def forget_connections() -> None:
    """Leave the parent's database connections to the parent."""
    from sqlalchemy.engine import Engine

    for one in gc.get_objects():
        if isinstance(one, Engine):
            one.dispose(close=False)


def kill_at(module: Any, step: str, *, after: bool) -> None:
    """Make this process kill itself before or after a step."""
    original = getattr(module, step)

    def fatal(*args: Any, **kwargs: Any) -> Any:
        if after:
            original(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(module, step, fatal)


def promote(name: str, model: Reference, *, store: str, seed: int) -> None:
    """One promoter: now and then it kills itself on the way."""
    draw = random.Random(seed)
    time.sleep(draw.uniform(0, 0.05))
    if draw.random() < 0.4:
        kill_at(*draw.choice(STEPS), after=draw.random() < 0.5)
    ledger = Ledger(store, name=name, registered=promotion.ensure_registered(name))
    intent = intents.declare(make_intent(name, model, ledger), ledger)
    promoting.carry_out(intent, ledger, store=store, seconds=LEASE)


def run_round(
    name: str, candidates: list[Reference], *, store: str, promoters: int, draw: random.Random
) -> Counter[str]:
    """Let promoters race; then reconcile and check everything."""
    ledger = Ledger(store, name=name, registered=promotion.ensure_registered(name))
    running = {}
    for number in range(promoters):
        model, seed = candidates[number % len(candidates)], draw.randrange(2**32)
        running[fork(lambda model=model, seed=seed: promote(name, model, store=store, seed=seed))] = number
    doomed = {pid: time.monotonic() + draw.uniform(0, 2) for pid in running if draw.random() < 0.3}
    counts: Counter[str] = Counter()
    while running:
        for pid in [pid for pid, due in doomed.items() if pid in running and time.monotonic() > due]:
            os.kill(pid, signal.SIGKILL)
            doomed.pop(pid)
        check_champion(ledger)
        while running:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                break
            running.pop(pid, None)
            counts["killed" if os.WIFSIGNALED(status) else f"exit {os.WEXITSTATUS(status)}"] += 1
        time.sleep(0.05)
    check_champion(ledger)
    found = reconciliation.reconcile(name, store=store, seconds=LEASE)
    assert found is not None
    counts += Counter(finished=len(found.finished), given_up=len(found.given_up), shown=len(found.shown))
    check_end(ledger, store=store, counts=counts)
    return counts


def check_champion(ledger: Ledger) -> None:
    """What the alias shows now must have a receipt by now."""
    shown = promotion.read_aliases(ledger.name).get("champion")
    granted = [receipt.aliases["champion"].version for receipt in receipts(ledger) if receipt.aliases]
    assert shown is None or shown in granted, f"champion {shown} without a receipt"


def check_end(ledger: Ledger, *, store: str, counts: Counter[str]) -> None:
    """After one reconciliation: one winner, one version per model, one receipt per intent, nothing open."""
    assert not intents.find_open(ledger)
    again = reconciliation.reconcile(ledger.name, store=store, seconds=LEASE)
    assert again == reconciliation.Reconciled(), again
    found = receipts(ledger)
    keys = Counter(receipt.grant.intent for receipt in found if receipt.grant)
    assert all(times == 1 for times in keys.values()), keys
    versions = tracking.connect().search_model_versions(f"name = '{ledger.name}'")
    models = Counter(version.tags[promotion.MODEL_DIGEST_TAG] for version in versions)
    assert all(times == 1 for times in models.values()), models
    winner = next((one.grant.version for one in reversed(found) if one.grant), None)
    assert promotion.read_aliases(ledger.name).get("champion") == winner
    counts["won"] += winner is not None
    counts["receipts"] += sum(keys.values())
    counts["turns"] += len(found)


def receipts(ledger: Ledger) -> list[Receipt]:
    """All receipts, in order."""
    found = (ledger.receipt(number) for number in range(1, ledger.count() + 1))
    return [receipt for receipt in found if receipt]


def main() -> None:
    """Run the rounds and print what happened."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--promoters", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    draw, total, start = random.Random(chosen.seed), Counter[str](), time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        store = prepare(Path(scratch))
        candidates = [make_candidate(store, Path(scratch), number) for number in range(CANDIDATES)]
        for number in range(chosen.rounds):
            total += run_round(
                f"model-{number}", candidates, store=store, promoters=chosen.promoters, draw=draw
            )
            print(f"{number + 1} rounds, {time.monotonic() - start:.0f} s: {dict(total)}", flush=True)


if __name__ == "__main__":
    main()
