"""Run: ``python -m tests.benchmarks.promotion OUT [--promoters 32] [--rounds 200] [--workers N] [--seed 0]``.

Promoters that race and are killed: does each round end with one winner, whatever was cut off? Rounds are kept
in OUT/rounds.jsonl; a run that was ended goes on where it was. Exit status 1 if a round failed.

Real processes, a real MLflow registry (sqlite) and a real store (a folder) for each worker. In each round
some promoters are killed from outside at a random time, and some kill themselves at a random step. Then:

- whatever the alias `champion` showed at any time had a receipt by then;
- after one reconciliation no intent is open, the aliases show the newest receipt, and a second one finds
  nothing to do;
- every model has one version, and every intent one receipt at most.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from secvec.components.gate_promotion import intents, promoting, promotion, reconciliation, turns
from secvec.components.gate_promotion.ledger import Ledger, Receipt
from secvec.components.gate_promotion.policy import Policy
from secvec.components.shared import tracking
from secvec.components.shared.artifacts import publish
from secvec.components.shared.references import Reference
from secvec.components.shared.signing_keys import ensure_signing_key

LEASE = 2.0  # seconds; a turn takes far less unless the machine is overloaded
CANDIDATES = 4
DIGEST = "sha256:" + "d" * 64
COUNTED = ("won", "killed", "exit 0", "exit 1", "finished", "given_up", "shown", "receipts", "turns")
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


def fork(work: Callable[[], Any], *, leave: Sequence[Any] = ()) -> int:
    """Start a process that does some work and leaves nothing behind; gives its id.

    Args:
        work: What it does.
        leave: The parent's database connections, which it leaves to the parent; those that it has by default.
    """
    leave = leave or find_connections()
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        for engine in leave:
            engine.dispose(close=False)
        work()
        status = 0
    except Exception as error:
        print(f"promoter: {error}", file=sys.stderr, flush=True)
    finally:
        os._exit(status)


def find_connections() -> list[Any]:
    """This process's database connections; MLflow keeps them out of reach."""
    from sqlalchemy.engine import Engine

    return [one for one in gc.get_objects() if isinstance(one, Engine)]


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
    running, leave = {}, find_connections()
    for number in range(promoters):
        model, seed = candidates[number % len(candidates)], draw.randrange(2**32)
        work = partial(promote, name, model, store=store, seed=seed)
        running[fork(work, leave=leave)] = number
    doomed = {pid: time.monotonic() + draw.uniform(0, 2) for pid in running if draw.random() < 0.3}
    counts, known = Counter[str](), dict[int, Receipt]()
    while running:
        for pid in [pid for pid, due in doomed.items() if pid in running and time.monotonic() > due]:
            os.kill(pid, signal.SIGKILL)
            doomed.pop(pid)
        check_champion(ledger, known)
        while running:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                break
            running.pop(pid, None)
            counts["killed" if os.WIFSIGNALED(status) else f"exit {os.WEXITSTATUS(status)}"] += 1
        time.sleep(0.05)
    check_champion(ledger, known)
    found = reconciliation.reconcile(name, store=store, seconds=LEASE)
    assert found is not None
    counts += Counter(finished=len(found.finished), given_up=len(found.given_up), shown=len(found.shown))
    check_end(ledger, store=store, counts=counts)
    return counts


def check_champion(ledger: Ledger, known: dict[int, Receipt] | None = None) -> None:
    """What the alias shows now must have a receipt by now.

    Args:
        ledger: The ledger.
        known: Receipts that were read before; they never change. New ones are added.
    """
    known = {} if known is None else known
    shown = promotion.read_aliases(ledger.name).get("champion")
    for number in range(1, ledger.count(max(known, default=0)) + 1):
        if number not in known and (found := ledger.receipt(number)):
            known[number] = found
    granted = [receipt.aliases["champion"].version for receipt in known.values() if receipt.aliases]
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


def work(out: Path, share: Sequence[int], promoters: int, seed: int) -> None:
    """Run some rounds, each of its own seed, and note what came of each."""
    # a worker's own descendants are the only ones it waits for
    with tempfile.TemporaryDirectory() as scratch:
        store = prepare(Path(scratch))
        candidates = [make_candidate(store, Path(scratch), number) for number in range(CANDIDATES)]
        for number in share:
            start, cpu, draw = time.monotonic(), cpu_seconds(), random.Random(seed * 1_000_000 + number)
            note: dict[str, Any] = {"seed": seed, "round": number, "promoters": promoters}
            try:
                note |= run_round(f"model-{number}", candidates, store=store, promoters=promoters, draw=draw)
            except Exception as error:
                note["failed"] = f"{type(error).__name__}: {error}"
            note["seconds"] = round(time.monotonic() - start, 1)
            note["cpu_seconds"] = round(cpu_seconds() - cpu, 1)
            with (out / "rounds.jsonl").open("a") as stream:
                stream.write(json.dumps(note) + "\n")
            print(note, flush=True)


def cpu_seconds() -> float:
    """CPU time of this process and of those that it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def read_rounds(out: Path, *, promoters: int, seed: int) -> dict[int, dict[str, Any]]:
    """Rounds of this kind that were run before, by number."""
    path = out / "rounds.jsonl"
    notes = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return {one["round"]: one for one in notes if (one["seed"], one["promoters"]) == (seed, promoters)}


def main() -> int:
    """Run the rounds that are missing and print what happened in all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--promoters", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    kind = {"promoters": chosen.promoters, "seed": chosen.seed}
    missing = sorted(set(range(chosen.rounds)) - read_rounds(chosen.out, **kind).keys())
    shares = [missing[worker :: chosen.workers] for worker in range(chosen.workers)]
    workers = [
        fork(partial(work, chosen.out, share, chosen.promoters, chosen.seed)) for share in shares if share
    ]
    for pid in workers:
        os.waitpid(pid, 0)
    found = read_rounds(chosen.out, **kind)
    total = Counter[str]()
    for one in found.values():
        total.update({name: one.get(name, 0) for name in COUNTED})
    failed = {number: one["failed"] for number, one in found.items() if "failed" in one}
    won = total.pop("won")
    print(json.dumps({"rounds": len(found), "one_winner": won, **total, "failed": failed}, indent=2))
    return int(bool(failed) or not len(found) == won == chosen.rounds)


if __name__ == "__main__":
    sys.exit(main())
