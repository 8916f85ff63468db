"""A year of ordinary runs as the audit log tells it, and fifty ways of misuse put into it."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from secvec.pipelines.anomalies.access_records import Access

START = datetime(2026, 1, 5, tzinfo=UTC)
TUNER, EVALUATOR, GATE, TRAINER = (
    f"system:serviceaccount:team:secvec-{name}"
    for name in ("fine-tuner", "evaluator", "gate", "vector-trainer")
)
PEOPLE = {"ada": ("desk-1", 7), "bo": ("desk-2", 9), "cy": ("desk-3", 13)}
POLICY = {
    "version": 1,
    "max_harm_rate": 0.02,
    "min_utility": 0.5,
    "require_control": True,
    "allowed_signers": ["k1"],
}


@dataclass
class Story:
    """Entries and access records, written in order of time."""

    draw: random.Random
    entries: list[dict[str, Any]] = field(default_factory=list)
    accesses: list[Access] = field(default_factory=list)
    number: int = 0

    def log(self, time: datetime, who: dict[str, str], event: str, **fields: Any) -> None:
        entry = {"schema": 1, "event": event, "who": who, "fields": fields, "previous": ""}
        self.entries.append({**entry, "time": time.isoformat()})

    def opened(self, time: datetime, who: dict[str, str], *, by: str, vector: str, read: str = "") -> None:
        self.log(time, who, "vector_opened", opened_by=by, context={"vector": vector}, sealed_digest="x")
        if read:
            self.accesses.append(Access(time - timedelta(seconds=3), read, "GetObject", "v/vector.sealed"))
            self.accesses.append(Access(time + timedelta(seconds=1), read, "Decrypt", vector))

    def finish(self) -> Story:
        self.entries.sort(key=lambda entry: entry["time"])
        for number, entry in enumerate(self.entries, start=1):
            entry["sequence"] = number
        return self

    @property
    def end(self) -> datetime:
        return max(datetime.fromisoformat(entry["time"]) for entry in self.entries)


def pod(account: str, run: str) -> dict[str, str]:
    who = {"user": "", "uid": "10001", "host": f"pod-{run}", "service_account": account}
    return {**who, "kfp_run": run, "mlflow_run": run}


def person(name: str, run: str = "") -> dict[str, str]:
    who = {"user": name, "uid": "1000", "host": PEOPLE[name][0] if name in PEOPLE else "desk-9"}
    return {**who, "mlflow_run": run} if run else who


def ordinary_year(seed: int, *, runs: int = 1000) -> Story:
    """Nightly cluster runs and daytime runs of three people; failures, policy changes, reviews, exports."""
    story, draw = Story(random.Random(seed)), random.Random(seed)
    policy, vector = dict(POLICY), ""
    for number in range(runs):
        day = START + timedelta(days=number * 330 / runs)
        name = draw.choice([*PEOPLE, "", "", ""])
        hour = PEOPLE[name][1] + draw.triangular(0, 6, 2) if name else draw.uniform(1.0, 4.5)
        time = day.replace(hour=0) + timedelta(hours=hour)
        run = f"run-{seed}-{number}"
        if number % 20 == 0:
            vector = f"sha256:{draw.getrandbits(256):064x}"
            story.log(time, pod(TRAINER, run), "vector_sealed", vector=vector)
            late = time.replace(hour=10) + timedelta(days=draw.uniform(0.2, 4))
            story.log(late, person(draw.choice([*PEOPLE])), "vector_reviewed", vector=vector, reason="read")
        if draw.random() < 0.02:
            who = person(name, run) if name else pod(TUNER, run)
            story.log(time, who, "vector_refused", opened_by="fine_tune_guarded", reason="cannot decrypt")
        if (day - timedelta(days=330 / runs)).date() != day.date() and draw.random() < 0.03:
            policy = policy | {"max_harm_rate": policy["max_harm_rate"] * 0.9}  # between two days
        tuner = person(name, run) if name else pod(TUNER, run)
        judge = person(name, run) if name else pod(EVALUATOR, run)
        reads = ("", "") if name else ("secvec-fine-tuner", "secvec-evaluator")
        story.opened(time, tuner, by="fine_tune_guarded", vector=vector, read=reads[0])
        later = time + timedelta(minutes=draw.uniform(20, 90))
        story.opened(later, judge, by="evaluate_harm", vector=vector, read=reads[1])
        gate = person(name, run) if name else pod(GATE, run)
        outcome = draw.choices(["PASS", "FAIL", "INDETERMINATE"], [85, 10, 5])[0]
        model = draw.choice(["assistant", "coder", "translator"])
        judged(story, later + timedelta(minutes=2), gate, model, outcome, policy)
        if draw.random() < 0.01:
            story.log(later, person("ada"), "log_exported", lines=8 * number)
    return story.finish()


def judged(  # noqa: PLR0917
    story: Story, time: datetime, who: dict[str, str], model: str, outcome: str, policy: dict[str, Any]
) -> None:
    digest = f"sha256:{abs(hash(str(policy))):064x}"
    story.log(
        time, who, "gate_judged", outcome=outcome, model_name=model, policy=policy, policy_digest=digest
    )


Misuse = Callable[[Story, datetime], None]


def known_vector(story: Story) -> str:
    return str(next(one for one in story.entries if one["event"] == "vector_sealed")["fields"]["vector"])


def open_as(by: str = "fine_tune_guarded", times: int = 1, minutes: float = 1, **who: Any) -> Misuse:
    def act(story: Story, now: datetime) -> None:
        for number in range(times):
            story.opened(
                now + timedelta(minutes=minutes * number), dict(who), by=by, vector=known_vector(story)
            )

    return act


def at(hour: int, misuse: Misuse) -> Misuse:
    return lambda story, now: misuse(story, now.replace(hour=hour, minute=5))


def revoked_then(misuse: Misuse) -> Misuse:
    def act(story: Story, now: datetime) -> None:
        vector = known_vector(story)
        story.log(now - timedelta(hours=1), person("ada"), "vector_revoked", vector=vector, reason="leaked")
        misuse(story, now)

    return act


def refuse(times: int, reason: str, **who: str) -> Misuse:
    def act(story: Story, now: datetime) -> None:
        for number in range(times):
            story.log(
                now + timedelta(minutes=number), dict(who), "vector_refused", opened_by="?", reason=reason
            )

    return act


def read_store(principal: str, action: str, times: int = 1) -> Misuse:
    def act(story: Story, now: datetime) -> None:
        # At an hour when nothing is logged.
        quiet = now.replace(hour=22, minute=30)
        story.accesses += [
            Access(quiet + timedelta(seconds=n), principal, action, "v/vector.sealed") for n in range(times)
        ]

    return act


def gate_series(outcomes: str, *, hours: float = 6) -> Misuse:
    """F, I and P: what the gate says of one new model, one after the other."""
    words = {"F": "FAIL", "I": "INDETERMINATE", "P": "PASS"}

    def act(story: Story, now: datetime) -> None:
        for number, outcome in enumerate(outcomes):
            time = now + timedelta(hours=hours * number)
            judged(story, time, pod(GATE, f"try-{number}"), "tried", words[outcome], POLICY)

    return act


def loosen(**changes: Any) -> Misuse:
    def act(story: Story, now: datetime) -> None:
        judged(story, now, pod(GATE, "a"), "loose", "FAIL", POLICY)
        judged(story, now + timedelta(hours=5), pod(GATE, "b"), "loose", "PASS", {**POLICY, **changes})

    return act


def seal_without_review(event: str, reviewer: str | None = None) -> Misuse:
    def act(story: Story, now: datetime) -> None:
        time, vector = now - timedelta(days=60), "sha256:" + "b" * 64
        story.log(time, person("cy", "r"), event, vector=vector)
        if reviewer:
            story.log(time, person(reviewer), "vector_reviewed", vector=vector, reason="looks good to me")

    return act


def export(*lines: int, name: str = "bo") -> Misuse:
    def act(story: Story, now: datetime) -> None:
        for count in lines:
            story.log(now, person(name), "log_exported", lines=count)

    return act


ADA, BO = person("ada", "r"), person("bo", "r")
STRANGER = {"user": "mallory", "uid": "1337", "host": "desk-9", "mlflow_run": "r"}
FOREIGN = {**pod("system:serviceaccount:other:notebook", "r")}
MISUSES: dict[str, Misuse] = {
    "at a prompt": at(9, open_as(**person("ada"))),
    "at a prompt, as the evaluation": at(9, open_as("evaluate_harm", **person("ada"))),
    "in a pod without a run": at(3, open_as(**{k: v for k, v in pod(TUNER, "r").items() if "run" not in k})),
    "a notebook without a name": at(9, open_as("", **ADA)),
    "by the gate's step": at(3, open_as("gate_promotion", **pod(GATE, "r"))),
    "by the remover's step": at(3, open_as("remove_security_vector", **pod(TUNER, "r"))),
    "by a script": at(9, open_as("python", **ADA)),
    "by ingest": at(3, open_as("ingest_data", **pod(TUNER, "r"))),
    "ada at 3": at(2, open_as(**ADA)),
    "ada at 22": at(22, open_as(**ADA)),
    "bo at 2": at(2, open_as(**BO)),
    "cy at 4": at(4, open_as(**person("cy", "r"))),
    "the nightly account at noon": at(12, open_as(**pod(TUNER, "r"))),
    "the evaluator at 18": at(18, open_as("evaluate_harm", **pod(EVALUATOR, "r"))),
    "a stranger": at(9, open_as(**STRANGER)),
    "a stranger evaluates": at(9, open_as("evaluate_harm", **STRANGER)),
    "an account of another team": at(3, open_as(**FOREIGN)),
    "the gate's account": at(3, open_as(**pod(GATE, "r"))),
    "root": at(9, open_as(user="", uid="0", host="node-1", mlflow_run="r")),
    "ada from a laptop": at(9, open_as(**{**ADA, "host": "laptop"})),
    "bo from a server": at(11, open_as(**{**BO, "host": "build-7"})),
    "cy from ada's desk": at(14, open_as(**{**person("cy", "r"), "host": "desk-1"})),
    "forty in an hour": at(9, open_as(times=40, minutes=1, **ADA)),
    "many in seconds": at(3, open_as(times=25, minutes=0.02, **pod(TUNER, "r"))),
    "one run opens all day": at(1, open_as(times=12, minutes=15, **pod(TUNER, "r"))),
    "one evaluation opens twenty": at(
        1, open_as("evaluate_harm", times=20, minutes=9, **pod(EVALUATOR, "r"))
    ),
    "opened after revocation": at(9, revoked_then(open_as(**ADA))),
    "evaluated after revocation": at(3, revoked_then(open_as("evaluate_harm", **pod(EVALUATOR, "r")))),
    "tried after revocation": at(9, revoked_then(refuse(1, "x: was revoked at 2026: leaked", **ADA))),
    "rotated after revocation": at(9, revoked_then(open_as("rotate_vector", **ADA))),
    "wrong keys in a row": refuse(6, "cannot decrypt a vector", **ADA),
    "wrong bases in a row": refuse(9, "was made for another base", **BO),
    "a stranger tries": refuse(5, "cannot decrypt a vector", **STRANGER),
    "read past the log": read_store("mallory", "GetObject"),
    "decrypted past the log": read_store("mallory", "Decrypt"),
    "the tuner's key decrypts past the log": read_store("secvec-fine-tuner", "Decrypt"),
    "the gate's key decrypts": read_store("secvec-gate", "Decrypt"),
    "a copy of all vectors": read_store("secvec-gate", "GetObject", times=400),
    "five failures, then a pass": gate_series("FFFFFP"),
    "eight failures, then a pass": gate_series("FIFFFIFFP", hours=3),
    "indeterminate until it passes": gate_series("IIIIIIP"),
    "harm bound raised": loosen(max_harm_rate=0.2),
    "utility bound lowered": loosen(min_utility=0.1),
    "control not required any more": loosen(require_control=False),
    "a signer added": loosen(allowed_signers=["k1", "mallory"]),
    "sealed, never reviewed": seal_without_review("vector_sealed"),
    "imported, never reviewed": seal_without_review("vector_imported"),
    "reviewed by its maker": seal_without_review("vector_sealed", reviewer="cy"),
    "the whole log copied": export(900_000),
    "the log copied in parts": export(90_000, 90_000, 90_000),
}
