"""Recall over fifty scripted misuses, and false alerts over ordinary years."""

from __future__ import annotations

import copy
import importlib.util
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from secvec.pipelines.anomalies.rules import RULES, Alert, Evidence, find_anomalies
from secvec.pipelines.anomalies.thresholds import read_thresholds

# Tests are no package: the script is loaded by its path.
_spec = importlib.util.spec_from_file_location("misuse", Path(__file__).with_name("misuse.py"))
assert _spec and _spec.loader
misuse = importlib.util.module_from_spec(_spec)
sys.modules["misuse"] = misuse
_spec.loader.exec_module(misuse)
LIMITS = read_thresholds()


def look(story: Any) -> list[Alert]:
    accesses = sorted(story.accesses, key=lambda one: one.time)
    return find_anomalies(Evidence(entries=story.entries, accesses=accesses, now=story.end), LIMITS)


@pytest.fixture(scope="module")
def quarter() -> Any:
    """An ordinary quarter without any alert, to put misuse into."""
    story = misuse.ordinary_year(1, runs=250)
    assert look(story) == []
    return story


def test_there_are_fifty_misuses() -> None:
    assert len(misuse.MISUSES) == 50


def test_recall_over_fifty_misuses(quarter: Any) -> None:
    missed = []
    for name, act in misuse.MISUSES.items():
        story = copy.deepcopy(quarter)
        act(story, quarter.end - timedelta(days=20))
        if not look(story.finish()):
            missed.append(name)
    recall = 1 - len(missed) / len(misuse.MISUSES)
    assert recall >= 0.95, missed


@pytest.mark.parametrize("seed", [11, 12, 13, 14, 15])
def test_at_most_one_false_alert_in_a_thousand_ordinary_runs(seed: int) -> None:
    alerts = look(misuse.ordinary_year(seed))
    assert len(alerts) <= 1, alerts


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_finds_something_that_no_ordinary_run_does(rule: str, quarter: Any) -> None:
    if rule == "wrong clocks":
        pytest.skip("tested below")
    found = set()
    for act in misuse.MISUSES.values():
        story = copy.deepcopy(quarter)
        act(story, quarter.end - timedelta(days=20))
        found |= {alert.rule for alert in look(story.finish())}
        if rule in found:
            return
    pytest.fail(f"{rule} found nothing")


@pytest.mark.parametrize("days", [-1, 1])
def test_a_clock_that_is_off_by_a_day_is_found(quarter: Any, days: int) -> None:
    story = copy.deepcopy(quarter)
    times = [misuse.datetime.fromisoformat(entry["time"]) for entry in story.entries]
    position = next(n for n in range(100, 200) if times[n] - times[n - 1] < timedelta(hours=2))
    story.entries[position]["time"] = (times[position] + timedelta(days=days)).isoformat()
    assert any(alert.rule == "wrong clocks" for alert in look(story))


def test_a_line_of_the_future_is_found(quarter: Any) -> None:
    story = copy.deepcopy(quarter)
    now = story.end - timedelta(hours=3)
    seen = Evidence(entries=story.entries, now=now)
    assert any("future" in alert.what for alert in find_anomalies(seen, LIMITS))
