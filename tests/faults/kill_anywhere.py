"""Kills a run of the whole pipeline at its write points, and looks at what the next run makes of it.

``python -m tests.faults.kill_anywhere --points 200 --workers 2 --seed 0 --out FOLDER``

One run that nobody disturbs gives the write points of every process and the digest of the clean model. Then
chains of runs in fresh folders: each run of a chain is killed at one point (SIGKILL or SIGTERM, to the
process alone or to the whole run, at the point or some milliseconds after it), and the next one goes on from
what it left, until the last is let through. After every kill:

- everything that a reader could find, artifacts, checkpoints and records, verifies;
- the next run trains on from the newest checkpoint, and not at all what has been published.

At the end the clean model has the digest of the undisturbed run and the gate has promoted it. A chain is made
from the seed and its number alone: ``--chain N`` plays one again. What is in FOLDER is not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from tests.faults.killed_run import Run, look_at_leftovers
from tests.faults.small_run import prepare_small_run

WAYS = (
    ("SIGKILL", "run"),
    ("SIGKILL", "process"),
    ("SIGTERM", "run"),
    ("SIGTERM", "process"),
)


def main() -> int:
    """Run the chains that are not done yet and show the sum of all."""
    options = _read_options()
    out: Path = options.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    reference = _find_reference(out)
    chains = _plan(reference["points"], seed=options.seed, points=options.points)
    wanted = range(len(chains)) if options.chain is None else [options.chain]
    started = time.monotonic()
    running: set[int] = set()
    for number in wanted:
        done = out / f"chain-{options.seed}-{number}.json"
        if done.exists() and options.chain is None:
            continue
        if len(running) >= options.workers:
            running.discard(os.wait()[0])
        if _count_kills(out, seed=options.seed) >= options.points and options.chain is None:
            break
        if options.seconds and time.monotonic() - started > options.seconds:
            break
        running.add(_start_chain(out, number, chains[number], reference, result=done))
    for _ in running:
        os.wait()
    cut_short = options.chain is not None or options.seconds
    return _sum_up(out, seed=options.seed, chains=len(chains), least=0 if cut_short else options.points)


def _start_chain(
    out: Path, number: int, kills: list[dict[str, Any]], reference: dict[str, Any], *, result: Path
) -> int:
    """Run a chain in a process of its own, without threads, of which its runs are forks."""
    pid = os.fork()
    if pid == 0:
        try:
            found = run_chain(out, number, kills, reference)
            result.write_text(json.dumps(found, indent=1) + "\n")
            shown = found["problems"] or "as it should be"
            print(f"chain {number}: {len(found['kills'])} kills, {shown}", flush=True)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    return pid


def run_chain(
    out: Path, number: int, kills: list[dict[str, Any]], reference: dict[str, Any]
) -> dict[str, Any]:
    """Run, kill and go on until the last run is let through; give what was killed and what was wrong."""
    folder = out / f"work-{number}-{os.getpid()}"
    shutil.rmtree(folder, ignore_errors=True)
    met: list[dict[str, Any]] = []
    problems: list[str] = []
    run = Run(folder, config=out / "inputs" / "config.yaml")
    told: dict[str, Any] = {}
    before = look_at_leftovers(folder)
    left: list[dict[str, Any]] | None = kills
    while left is not None:
        told = run.run(left)
        problems += [f"kill {len(met) + 1}: {text}" for text in told["problems"]]
        problems += [
            f"run after kill {len(met)}: {text}" for text in compare_training(told["events"], before)
        ]
        found = told["met"]
        # A run that came to none of them came to its end: the work that they lie in was done before.
        left = [kill for kill in left if kill["process"] != found["process"]] if found else None
        if found and told["status"] == 0:  # the signal came when all was done
            print(
                f"chain {number}: the signal at {found['process']} {found['number']} came too late",
                flush=True,
            )
        elif found:
            met.append(found)
            shown = "{signal} to the {target} at {process} {number}, {event} {path}".format_map(found)
            print(f"chain {number}: {shown}", flush=True)
        before = look_at_leftovers(folder)
        problems += [f"after kill {len(met)}: {text}" for text in before["problems"]]
    problems += check_end(folder, told, reference)
    if not problems:
        shutil.rmtree(folder, ignore_errors=True)
    return {"number": number, "planned": len(kills), "kills": met, "problems": problems}


def compare_training(events: list[dict[str, Any]], before: dict[str, Any]) -> list[str]:
    """What was trained although a checkpoint or a result of it lay there before the run."""
    problems = []
    for event in events:
        if event["event"] != "training_started":
            continue
        key, step = event["checkpoints"], event["after_step"]
        if key in before["finished"]:
            problems.append(f"training {key[:8]} was begun although its result is published")
        elif step != before["checkpoints"].get(key, 0):
            kept = before["checkpoints"].get(key, 0)
            problems.append(f"training {key[:8]} went on after step {step}, but step {kept} was kept")
    return problems


def check_end(folder: Path, told: dict[str, Any], reference: dict[str, Any]) -> list[str]:
    """What the last run should have given and did not."""
    summary = folder / "output" / "summary.json"
    if told["status"] != 0 or not summary.exists():
        return [f"the last run ended with status {told['status']}: {told['said'][-300:]}"]
    found = json.loads(summary.read_text())
    problems = []
    if found["digests"]["model"] != reference["model"]:
        problems.append(f"the model is {found['digests']['model']}, not {reference['model']}")
    if found["verdict"] != "PASS":
        problems.append(f"the verdict is {found['verdict']}")
    return problems


def _find_reference(out: Path) -> dict[str, Any]:
    """The undisturbed run: its write points and its model; done twice, to know that it is repeatable."""
    path = out / "reference.json"
    if not path.exists():
        (out / "inputs").mkdir(exist_ok=True)
        prepared = _fork(lambda: str(prepare_small_run(out / "inputs")))
        runs = [_fork(lambda: _run_undisturbed(out, prepared)) for _ in range(2)]
        if runs[0]["model"] != runs[1]["model"]:
            raise SystemExit(f"two undisturbed runs gave {runs[0]['model']} and {runs[1]['model']}")
        path.write_text(json.dumps(runs[0]) + "\n")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def _run_undisturbed(out: Path, config: str) -> dict[str, Any]:
    folder = out / "undisturbed"
    shutil.rmtree(folder, ignore_errors=True)
    told = Run(folder, config=Path(config), log=True).run([])
    if told["status"] != 0:
        raise SystemExit(f"the undisturbed run ended with status {told['status']}: {told['said'][-500:]}")
    left = look_at_leftovers(folder)
    if left["problems"]:
        raise SystemExit(f"after an undisturbed run: {left['problems']}")
    summary = json.loads((folder / "output" / "summary.json").read_text())
    points = [json.loads(line) for line in (folder / "points.jsonl").read_text().splitlines()]
    return {"model": summary["digests"]["model"], "points": points}


def _plan(found: list[dict[str, Any]], *, seed: int, points: int) -> list[list[dict[str, Any]]]:
    """Spread a number of kills over all processes and along each, and deal them out to chains."""
    draw = random.Random(seed)
    processes = list(dict.fromkeys(point["process"] for point in found))
    count = -(-points * 3 // (2 * len(processes)))  # not all of them are met
    chains: list[list[dict[str, Any]]] = [[] for _ in range(count)]
    for name in processes:
        own = [(order, point) for order, point in enumerate(found) if point["process"] == name]
        for number, chain in enumerate(draw.sample(range(count), count)):
            # Evenly along the process's points, and anywhere within its share of them.
            order, point = own[int((number + draw.random()) / count * len(own))]
            way = dict(zip(("signal", "target"), draw.choice(WAYS), strict=True))
            at = {"process": name, "number": point["number"], "order": order}
            chains[chain].append({**at, **way, "delay": draw.choice((0, 0, 2, 10, 50))})
    return [sorted(chain, key=lambda kill: kill["order"]) for chain in chains]


def _fork(work: Any) -> Any:
    """Run in a process of its own, which may kill and be killed, and give what it gives."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(reading)
            with os.fdopen(writing, "w") as stream:
                json.dump(work(), stream)
            status = 0
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading) as stream:
        text = stream.read()
    if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
        raise SystemExit("a part of the harness failed; see above")
    return json.loads(text)


def _count_kills(out: Path, *, seed: int) -> int:
    found = (json.loads(path.read_text()) for path in out.glob(f"chain-{seed}-*.json"))
    return sum(len(chain["kills"]) for chain in found)


def _sum_up(out: Path, *, seed: int, chains: int, least: int) -> int:
    results = [json.loads(path.read_text()) for path in sorted(out.glob(f"chain-{seed}-*.json"))]
    kills = [kill for result in results for kill in result["kills"]]
    by: dict[str, dict[str, int]] = {"process": {}, "signal": {}, "target": {}, "event": {}}
    for kill in kills:
        for key, counted in by.items():
            counted[kill[key]] = counted.get(kill[key], 0) + 1
    problems = [f"chain {r['number']}: {text}" for r in results for text in r["problems"]]
    if len(kills) < least:
        problems.append(f"{len(kills)} kills were met of {least} that were asked for")
    summary = {"chains": len(results), "of": chains, "kills": len(kills), "by": by, "problems": problems}
    (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    print(json.dumps(summary, indent=1))
    return 1 if problems else 0


def _read_options() -> Any:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.kill_anywhere")
    parser.add_argument("--points", type=int, default=200, help="kills to make, at least")
    parser.add_argument("--workers", type=int, default=2, help="chains that run at the same time")
    parser.add_argument("--seed", type=int, default=0, help="seed of where and how")
    parser.add_argument("--out", type=Path, required=True, help="folder for results; goes on where it was")
    parser.add_argument("--chain", type=int, help="run this chain alone, again")
    parser.add_argument("--seconds", type=float, default=0, help="begin no chain after so many seconds")
    return parser.parse_args()


if __name__ == "__main__":
    # Set before anything reads them: the library that reads them is imported once for all.
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "MPLBACKEND": "agg"}
    from tests.faults.forked_run import preload

    preload()
    sys.exit(main())
