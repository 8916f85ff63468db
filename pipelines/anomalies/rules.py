"""The rules: each looks at the log for one kind of misuse and says why it matters.

A rule takes the evidence and the thresholds and yields alerts. Entries are those of the audit log, in order.
"""

from __future__ import annotations

import bisect
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from secvec.pipelines.anomalies.access_records import Access
from secvec.pipelines.anomalies.thresholds import Thresholds

Entry = Mapping[str, Any]


@dataclass(frozen=True)
class Alert:
    """One thing that looks wrong.

    Attributes:
        rule: Name of the rule.
        line: Line of the log that it is about; 0 for an access that the log lacks.
        what: What was seen, in one line.
    """

    rule: str
    line: int
    what: str


@dataclass(frozen=True)
class Evidence:
    """What the rules look at.

    Attributes:
        entries: The audit log.
        accesses: Access records of the store, if there are any.
        now: The clock.
    """

    entries: Sequence[Entry]
    now: datetime
    accesses: Sequence[Access] = field(default_factory=tuple)

    def events(self, *names: str) -> Iterator[Entry]:
        """Entries of some kinds."""
        return (entry for entry in self.entries if entry["event"] in names)


def find_openings_without_a_run(seen: Evidence, limits: Thresholds) -> Iterator[Alert]:
    """Steps open vectors inside runs; a person at a prompt has none."""
    for entry in seen.events("vector_opened"):
        by = opener(entry)
        if by in ("import_vector", "rotate_vector"):
            continue
        if not entry["who"].get("mlflow_run") and not entry["who"].get("kfp_run"):
            yield _alert(entry, f"{principal(entry)} opened a vector outside any run (as {by!r})")


def find_unknown_openers(seen: Evidence, limits: Thresholds) -> Iterator[Alert]:
    """Only training, the evaluation's control, import and rotation open vectors."""
    for entry in seen.events("vector_opened"):
        if opener(entry) not in limits.known_openers:
            yield _alert(entry, f"{principal(entry)} opened a vector as {opener(entry)!r}, which is no step")


def find_unusual_hours(seen: Evidence, limits: Thresholds) -> Iterator[Alert]:
    """Stolen credentials are often used when their owner sleeps."""
    hours: dict[str, set[int]] = defaultdict(set)
    count: Counter[str] = Counter()
    for entry in seen.events("vector_opened"):
        name, hour = principal(entry), moment(entry).hour
        if count[name] >= limits.history:
            nearest = min(_hours_apart(hour, one) for one in hours[name])
            if nearest >= limits.hour_gap:
                yield _alert(entry, f"{name} opened a vector at {hour:02}h UTC, never near that before")
        hours[name].add(hour)
        count[name] += 1


def find_unknown_principals(seen: Evidence, limits: Thresholds) -> Iterator[Alert]:
    """Whoever opens a vector should be on a list, or at least have done so before."""
    known, listed = set(limits.known_principals), bool(limits.known_principals)
    for count, entry in enumerate(seen.events("vector_opened")):
        name = principal(entry)
        if name not in known and (listed or count >= limits.settling):
            yield _alert(entry, f"{name} opened a vector for the first time")
        if not listed:
            known.add(name)


def find_unusual_hosts(seen: Evidence, limits: Thresholds) -> Iterator[Alert]:
    """Outside a cluster a principal works from few machines; pods have a new name each time."""
    hosts: dict[str, set[str]] = defaultdict(set)
    count: Counter[str] = Counter()
    for entry in seen.events("vector_opened"):
        name, host = principal(entry), entry["who"].get("host", "")
        if entry["who"].get("service_account"):
            continue
        if count[name] >= limits.history and host not in hosts[name]:
            yield _alert(entry, f"{name} opened a vector on {host} for the first time")
        hosts[name].add(host)
        count[name] += 1


def find_high_rates(seen: Evidence, limits: Thresholds) -> Iterator[Alert]:
    """A run opens its vector a few times; whoever collects vectors opens many."""
    recent: dict[str, list[datetime]] = defaultdict(list)
    runs: Counter[str] = Counter()
    for entry in seen.events("vector_opened"):
        name, time = principal(entry), moment(entry)
        recent[name] = [one for one in recent[name] if time - one < timedelta(hours=1)] + [time]
        if len(recent[name]) == limits.max_openings_per_hour + 1:
            yield _alert(entry, f"{name} opened more than {limits.max_openings_per_hour} vectors in an hour")
        run = entry["who"].get("mlflow_run") or entry["who"].get("kfp_run") or ""
        runs[run] += 1
        if run and runs[run] == limits.max_openings_per_run + 1:
            yield _alert(entry, f"run {run} opened more than {limits.max_openings_per_run} vectors")


def find_use_after_revocation(seen: Evidence, limits: Thresholds) -> Iterator[Alert]:
    """A revoked vector that opens means that a record is gone, or that someone goes around the code."""
    revoked: dict[str, datetime] = {}
    for entry in seen.events("vector_revoked", "vector_opened", "vector_refused"):
        fields = entry["fields"]
        if entry["event"] == "vector_revoked":
            revoked.setdefault(fields.get("vector", ""), moment(entry))
        elif entry["event"] == "vector_opened" and vector_of(entry) in revoked:
            yield _alert(entry, f"{principal(entry)} opened a vector after it was revoked")
        elif entry["event"] == "vector_refused" and "was revoked at" in str(fields.get("reason")):
            yield _alert(entry, f"{principal(entry)} tried to open a revoked vector")


def find_many_refusals(seen: Evidence, limits: Thresholds) -> Iterator[Alert]:
    """Wrong keys and wrong bases happen once; a series is somebody trying."""
    days: Counter[tuple[str, object]] = Counter()
    for entry in seen.events("vector_refused"):
        key = (principal(entry), moment(entry).date())
        days[key] += 1
        if days[key] == limits.max_refusals_per_day + 1:
            yield _alert(
                entry, f"{key[0]} was refused more than {limits.max_refusals_per_day} times in a day"
            )


def find_openings_that_the_log_lacks(seen: Evidence, limits: Thresholds) -> Iterator[Alert]:
    """Whoever goes around secvec leaves no line in its log, but the store and KMS keep their own."""
    margin = timedelta(minutes=limits.match_minutes)
    logged = sorted(moment(one) for one in seen.entries if str(one["event"]).startswith("vector_"))
    for access in seen.accesses:
        if access.action == "GetObject" and access.principal in limits.sealed_readers:
            continue
        after = bisect.bisect_left(logged, access.time - margin)
        if after == len(logged) or logged[after] > access.time + margin:
            what = f"{access.principal}: {access.action} of {access.key} at {access.time:%Y-%m-%d %H:%M}"
            yield Alert("openings that the log lacks", 0, what)


def find_passes_after_failures(seen: Evidence, limits: Thresholds) -> Iterator[Alert]:
    """Trying until the gate lets one through is how a bad model passes by chance."""
    failed: dict[str, list[datetime]] = defaultdict(list)
    for entry in seen.events("gate_judged"):
        name, time = str(entry["fields"].get("model_name")), moment(entry)
        failed[name] = [one for one in failed[name] if time - one < timedelta(days=limits.gate_days)]
        if entry["fields"].get("outcome") != "PASS":
            failed[name].append(time)
            continue
        if len(failed[name]) >= limits.failed_gates:
            yield _alert(entry, f"{name} passed the gate after {len(failed[name])} failures")
        failed[name].clear()


def find_loosened_policies(seen: Evidence, limits: Thresholds) -> Iterator[Alert]:
    """A model that failed and then passes under a looser policy passed because of the policy."""
    failed: dict[str, Entry] = {}
    for entry in seen.events("gate_judged"):
        name = str(entry["fields"].get("model_name"))
        if entry["fields"].get("outcome") != "PASS":
            failed[name] = entry
            continue
        before = failed.pop(name, None)
        if before is None or moment(entry) - moment(before) > timedelta(days=limits.gate_days):
            continue
        if changed := _loosened(before["fields"], entry["fields"]):
            yield _alert(entry, f"{name} passed under another policy than it failed under: {changed}")


def find_unreviewed_vectors(seen: Evidence, limits: Thresholds) -> Iterator[Alert]:
    """A vector is only as good as its seeds: somebody other than its maker has to look at them."""
    sealed: dict[str, Entry] = {}
    reviewed: set[str] = set()
    for entry in seen.events("vector_sealed", "vector_imported", "vector_reviewed", "vector_revoked"):
        vector = str(entry["fields"].get("vector"))
        if entry["event"] in ("vector_sealed", "vector_imported"):
            sealed.setdefault(vector, entry)
        elif vector not in sealed or principal(entry) != principal(sealed[vector]):
            reviewed.add(vector)
    for vector, entry in sealed.items():
        if vector not in reviewed and seen.now - moment(entry) > timedelta(days=limits.review_days):
            yield _alert(entry, f"vector {vector[:19]} was never reviewed by another than {principal(entry)}")


def find_large_exports(seen: Evidence, limits: Thresholds) -> Iterator[Alert]:
    """Copies of the log or of many sealed vectors prepare something."""
    lines: Counter[tuple[str, object]] = Counter()
    for entry in seen.events("log_exported"):
        key = (principal(entry), moment(entry).date())
        before = lines[key]
        lines[key] += int(entry["fields"].get("lines", 0))
        if before <= limits.max_export_lines < lines[key]:
            yield _alert(entry, f"{key[0]} exported {lines[key]} lines of the log in a day")
    reads = Counter((one.principal, one.time.date()) for one in seen.accesses if one.action == "GetObject")
    for (name, day), count in reads.items():
        if count > limits.max_sealed_reads:
            yield Alert("large exports", 0, f"{name} read {count} sealed vectors on {day}")


def find_wrong_clocks(seen: Evidence, limits: Thresholds) -> Iterator[Alert]:
    """With a wrong clock nothing in the log can be held against other records, and expiry means nothing."""
    margin, latest = timedelta(minutes=limits.clock_minutes), None
    for entry in seen.entries:
        time = moment(entry)
        if latest and latest - time > margin:
            yield _alert(entry, f"the log's time went back from {latest:%Y-%m-%d %H:%M} to {time:%H:%M}")
        elif time - seen.now > margin:
            yield _alert(entry, f"line of the future: {time:%Y-%m-%d %H:%M}")
        latest = time


RULES: dict[str, Callable[[Evidence, Thresholds], Iterator[Alert]]] = {
    "openings without a run": find_openings_without_a_run,
    "unknown openers": find_unknown_openers,
    "unusual hours": find_unusual_hours,
    "unknown principals": find_unknown_principals,
    "unusual hosts": find_unusual_hosts,
    "high rates": find_high_rates,
    "use after revocation": find_use_after_revocation,
    "many refusals": find_many_refusals,
    "openings that the log lacks": find_openings_that_the_log_lacks,
    "passes after failures": find_passes_after_failures,
    "loosened policies": find_loosened_policies,
    "unreviewed vectors": find_unreviewed_vectors,
    "large exports": find_large_exports,
    "wrong clocks": find_wrong_clocks,
}


def find_anomalies(seen: Evidence, limits: Thresholds) -> list[Alert]:
    """Hold all rules against the evidence, and sort what they find by the log's lines."""
    found = [
        Alert(name, alert.line, alert.what) for name, rule in RULES.items() for alert in rule(seen, limits)
    ]
    return sorted(found, key=lambda alert: (alert.line, alert.rule, alert.what))


def principal(entry: Entry) -> str:
    """Who: the service account's name, the user, or the user's number."""
    who = entry["who"]
    account = str(who.get("service_account", "")).rpartition(":")[2]
    return account or str(who.get("user") or f"uid {who.get('uid', '?')}")


def moment(entry: Entry) -> datetime:
    """When."""
    return datetime.fromisoformat(entry["time"])


def opener(entry: Entry) -> str:
    """The step that opened a vector."""
    return str(entry["fields"].get("opened_by", ""))


def vector_of(entry: Entry) -> str:
    """Digest of the vector that an opening is about."""
    context = entry["fields"].get("context")
    return str(context.get("vector", "")) if isinstance(context, dict) else ""


def _alert(entry: Entry, what: str) -> Alert:
    return Alert("", int(entry["sequence"]), what)


def _hours_apart(one: int, other: int) -> int:
    return min((one - other) % 24, (other - one) % 24)


def _loosened(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """Name the first bound that lets more through; without bounds in the log, any change counts."""
    if before.get("policy_digest") == after.get("policy_digest"):
        return ""
    old, new = before.get("policy"), after.get("policy")
    if not isinstance(old, dict) or not isinstance(new, dict):
        return "its digest changed"
    for name in sorted(old.keys() | new.keys()):
        was, now = old.get(name), new.get(name)
        if was == now or name == "version" or _tightens(name, was, now):
            continue
        return f"{name} {was} -> {now}"
    return ""


def _tightens(name: str, was: Any, now: Any) -> bool:
    if isinstance(was, bool) or isinstance(now, bool):
        return now is True
    if isinstance(was, int | float) and isinstance(now, int | float):
        return now > was if name.startswith("min_") else now < was
    if isinstance(was, list) and isinstance(now, list):
        return bool(now) and (not was or set(map(str, now)) < set(map(str, was)))
    return was is None
