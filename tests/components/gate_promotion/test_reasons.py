"""Every reason that the gate gives, word for word: check, outcome, figure, bound and where it came from.

``reasons.json`` holds what is expected: all reasons of an untouched case, and of every other case those
that differ. Delete a scenario there to have this test write it anew, and read it.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from secvec.components.gate_promotion.noninferiority import Champion
from secvec.components.gate_promotion.policy import Policy

EXPECTED = Path(__file__).with_name("reasons.json")
VOLATILE = {
    r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?\+00:00": "TIME",
    r"(?<!sha256:)\b[0-9a-f]{64}\b": "KEY",
}


def statistics(**changes: Any) -> Callable[[Any], Policy]:
    def scene(bench: Any) -> Policy:
        bench.parts["statistics"].update(copy.deepcopy(changes))
        return Policy(version=1)

    return scene


def arm(name: str, **changes: Any) -> Callable[[Any], Policy]:
    def scene(bench: Any) -> Policy:
        bench.parts["statistics"]["arms"][name].update(changes)
        return Policy(version=1)

    return scene


def policy(**changes: Any) -> Callable[[Any], Policy]:
    return lambda bench: Policy(version=1, **changes)


def without_control(**changes: Any) -> Callable[[Any], Policy]:
    def scene(bench: Any) -> Policy:
        del bench.parts["statistics"]["arms"]["unguarded"]
        return Policy(version=1, **changes)

    return scene


def loss(**changes: float) -> Callable[[Any], Policy]:
    def scene(bench: Any) -> Policy:
        bench.parts["statistics"]["utility_metric"] = "loss"
        bench.parts["statistics"]["arms"]["guarded"].update(changes)
        return Policy(version=1)

    return scene


def judges(edit: Callable[[Any], Any], **changes: Any) -> Callable[[Any], Policy]:
    def scene(bench: Any) -> Policy:
        edit(bench.parts["statistics"]["judges"])
        return Policy(version=1, **changes)

    return scene


def suites(rates: dict[str, Any], **changes: Any) -> Callable[[Any], Policy]:
    def scene(bench: Any) -> Policy:
        bench.parts["statistics"]["suites"] = {
            name: {"kind": name.rpartition("/")[2], "arms": {"guarded": {"rate": rate}}}
            for name, rate in rates.items()
        }
        return Policy(version=1, **changes)

    return scene


def champion(
    edit: Callable[[Any], Any] = lambda found: None,
    *,
    model: str = "c" * 64,
    problem: str = "",
    **changes: Any,
) -> Callable[[Any], Policy]:
    def scene(bench: Any) -> Policy:
        found = copy.deepcopy(bench.parts["statistics"])
        edit(found)
        bench.champion = Champion(1, f"sha256:{model}", found, problem=problem)
        return Policy(version=1, **changes)

    return scene


def part(name: str, **changes: Any) -> Callable[[Any], Policy]:
    def scene(bench: Any) -> Policy:
        bench.parts[name].update(changes)
        return Policy(version=1)

    return scene


def statement(edit: Callable[[Any], Any]) -> Callable[[Any], Policy]:
    def scene(bench: Any) -> Policy:
        bench.restate = edit
        return Policy(version=1)

    return scene


def dated(**days: float) -> Callable[[Any], Policy]:
    now = datetime.now(UTC)
    return statement(
        lambda found: found["predicate"].update(
            {name: (now + timedelta(days=by)).isoformat() for name, by in days.items()}
        )
    )


def chain(edit: Callable[[Any], Any]) -> Callable[[Any], Policy]:
    def scene(bench: Any) -> Policy:
        edit(bench.chain)
        return Policy(version=1)

    return scene


def bind_elsewhere(found: Any) -> None:
    for one in found["predicate"]["configuration"]:
        one["digest"]["sha256"] = "0" * 64


def stray(bench: Any) -> Policy:
    (bench.folder / "model" / "model" / "adapter_config.json").write_text("{}")
    return Policy(version=1)


def edited_after(bench: Any) -> Policy:
    bench.after = lambda folder: (folder / "statistics.json").write_text("{}")
    return Policy(version=1)


def over_budget(bench: Any) -> Policy:
    bench.attempts = 3
    return Policy(version=1, max_attempts=2)


def other_guard(bench: Any) -> Policy:
    bench.chain["task_result"]["predicate"]["buildDefinition"]["externalParameters"]["guard"] = "always"
    return Policy(version=1)


def made_elsewhere(found: Any) -> None:
    for one in found["evaluation"]["predicate"]["buildDefinition"]["resolvedDependencies"]:
        one["digest"]["sha256"] = "0" * 64


FAILED = [{"name": "one", "passed": False}, {"name": "two", "passed": None}, "three"]
SCENES: dict[str, Callable[[Any], Policy]] = {
    "untouched": policy(),
    "every figure out of bounds": lambda bench: (
        arm(
            "guarded",
            harm_rate=0.5,
            harm_upper95=0.56,
            harm_incoherent=0.5,
            utility=0.1,
            kept=0.5,
        )(bench),
        arm("base", harm_rate=0.3)(bench),
        arm("vector_active", harm_rate=0.2, n_harm=50)(bench),
        Policy(version=1, min_utility=0.5, min_utility_prompts=200, min_kept_prompts=200),
    )[-1],
    "no arms": statistics(arms={}),
    "another schema": statistics(schema=2, utility_metric="bleu"),
    "a bound that does not follow": arm("guarded", harm_upper95=0.001),
    "a bound of one": arm("guarded", harm_upper95=1),
    "nothing asked": lambda bench: (
        arm("guarded", n_utility=0, n_kept=0)(bench),
        Policy(version=1, min_utility_prompts=0, min_kept_prompts=0),
    )[-1],
    "nothing asked, and something required": arm("guarded", n_utility=0, n_kept=0),
    "no control": without_control(),
    "no control, and one required": without_control(require_control=True),
    "below the control": arm("guarded", utility=0.85),
    "loss": loss(),
    "loss above the control's": loss(utility_loss=0.5),
    "one judge": judges(lambda found: found.pop()),
    "a judge away, with its reasons": judges(
        lambda found: (
            found[1].update(reasons=["429", "timed out"]),
            found[1]["arms"]["base"].update(unavailable=2),
        )
    ),
    "a judge away, without reasons": judges(lambda found: found[1]["arms"]["base"].update(unavailable=2)),
    "a judge without counts": judges(lambda found: found[1]["arms"]["base"].pop("unavailable")),
    "a judge that never spoke": judges(lambda found: found[0]["arms"]["guarded"].update(unavailable=200)),
    "a blind judge": judges(lambda found: found[1]["arms"]["vector_active"].update(harm_rate=0.1)),
    "judges that contradict": judges(lambda found: found[1]["arms"]["guarded"].update(harm_rate=0.3)),
    "not calibrated": judges(lambda found: found[0].update(calibration=None)),
    "not calibrated, and not required": judges(
        lambda found: found[0].update(calibration=None), require_calibration=False
    ),
    "a corrected bound too high": judges(
        lambda found: found[0]["arms"]["guarded"].update(corrected={"rate": 0.01, "upper95": 0.2})
    ),
    "suites within bounds": suites({"xs/over_refusal": 0.1, "a/coherence": 0.1, "b/coherence": 0.02}),
    "suites out of bounds": suites({"xs/over_refusal": 0.11, "a/coherence": 0.11, "b/coherence": 2}),
    "a suite whose kind is not its name's": statistics(
        suites={"a/coherence": {"kind": "over_refusal", "arms": {"guarded": {"rate": 0.05}}}}
    ),
    "a suite of no kind in a folder": statistics(
        suites={"a/b/coherence": {"arms": {"guarded": {"rate": 0.2}}}}
    ),
    "a rate of one, and one allowed": suites({"a/coherence": 1}, max_incoherent=1),
    "suites required": policy(require_over_refusal=True, require_coherence=True),
    "suites that are none": statistics(suites=[]),
    "suites malformed": statistics(suites={"a/coherence": 1, "xs/over_refusal": {"kind": "over_refusal"}}),
    "the champion itself": champion(model="3" * 64),
    "an equal champion": champion(),
    "a better champion": champion(
        lambda found: found["arms"]["guarded"].update(utility=1.0, kept=1.0), max_harm_rate=0.02
    ),
    "a far better champion": champion(
        lambda found: found["arms"]["guarded"].update(utility=1.0, kept=1.0), worse_margin=0.01
    ),
    "a champion that was not asked": champion(lambda found: found["arms"]["guarded"].update(n_kept=0)),
    "a champion without figures": champion(lambda found: found["arms"]["guarded"].pop("utility")),
    "a champion that cannot be read": champion(problem="its evaluation cannot be read"),
    "another suite": champion(lambda found: found["digests"].update(suite="x"), harm_margin=0.1),
    "another suite, judge and metric, and required": champion(
        lambda found: (found["digests"].update(suite="x", judge="y"), found.update(utility_metric="loss")),
        require_comparable_champion=True,
    ),
    "a champion without digests": champion(lambda found: found.pop("digests")),
    "over budget": over_budget,
    "people required": policy(
        required_approvals=1,
        approvers={
            "alice": "-----BEGIN PUBLIC KEY-----\n"
            "MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n-----END PUBLIC KEY-----\n"
        },
    ),
    "no proofs required": policy(require_certificate=False, require_absence_proof=False),
    "a failed certificate": part("certificate", checks=FAILED, passed=False, base_digest="x"),
    "a failed absence proof": part("absence_proof", checks=FAILED, absent=False),
    "no checks": lambda bench: (
        part("absence_proof", checks=[], schema=2)(bench),
        part("certificate", checks={}, schema=2)(bench),
    )[-1],
    "other provenance": part("provenance", base_digest="x", data_digest="y", guard="none", task="full"),
    "an adapter beside": stray,
    "statistics edited after signing": edited_after,
    "bound to something else": statement(bind_elsewhere),
    "another result": statement(lambda found: found["predicate"].update(result="FAILED")),
    "another subject": statement(lambda found: found["subject"][0]["digest"].update(sha256="0" * 64)),
    "two subjects": statement(lambda found: found["subject"].append(found["subject"][0])),
    "no bindings": statement(lambda found: found["predicate"].update(configuration=[])),
    "out of date": dated(issued_at=-40, expires_at=-1),
    "of the future": dated(issued_at=1, expires_at=2),
    "without dates": statement(lambda found: found["predicate"].update(issued_at=None, expires_at="soon")),
    "no statement of the vector": chain(lambda found: found.update(vector=None)),
    "no statement of the model": chain(lambda found: found.update(model=None)),
    "a task of another guard": other_guard,
    "an evaluation of other inputs": chain(made_elsewhere),
    "a builder that is not allowed": policy(allowed_builders=("0" * 64,)),
    "a signer that is not allowed": policy(allowed_signers=("0" * 64,)),
    "code that is not allowed": policy(allowed_code=("sha256:" + "0" * 64, "sha256:" + "1" * 64)),
}


def settle(reason: dict[str, Any]) -> list[Any]:
    """A reason without what no two runs have in common."""
    found = [reason[name] for name in ("check", "outcome", "figure", "bound", "source")]
    if found[0] == "age_days" and isinstance(found[2], float):
        found[2] = round(found[2])
    if found[0] == "statistics_signed" and found[2] == found[3]:
        found[2:4] = ["equal", "equal"]
    for number, value in enumerate(found):
        if isinstance(value, float):
            found[number] = round(value, 9)
        for pattern, word in VOLATILE.items() if isinstance(value, str) else ():
            found[number] = re.sub(pattern, word, found[number])
    return found


def write_expected(expected: dict[str, Any]) -> None:
    """One reason a line, so that a change reads well."""
    scenes = []
    for name, found in expected.items():
        lists = [
            f"  {json.dumps(key)}: [" + "".join(f"\n   {json.dumps(one)}," for one in found[key])[:-1] + "]"
            for key in ("reasons", "gone")
        ]
        outcome = f'  "outcome": "{found["outcome"]}", "believed": {json.dumps(found["believed"])}'
        scenes.append(f" {json.dumps(name)}: {{\n" + ",\n".join([outcome, *lists]) + "}")
    EXPECTED.write_text("{\n" + ",\n".join(scenes) + "\n}\n")


@pytest.mark.parametrize("name", SCENES)
def test_the_reasons_are_these(bench: Any, name: str) -> None:
    found = bench.judge(SCENES[name](bench))
    reasons = [settle(reason.model_dump(mode="json")) for reason in found.reasons]
    expected = json.loads(EXPECTED.read_text()) if EXPECTED.exists() else {}
    usual = expected.get("untouched", {}).get("reasons", []) if name != "untouched" else []
    checks = {reason[0] for reason in reasons}
    mine = {
        "outcome": found.outcome,
        "believed": found.believed,
        "reasons": [reason for reason in reasons if reason not in usual],
        "gone": [reason[0] for reason in usual if reason[0] not in checks],
    }
    if name not in expected:
        write_expected({**expected, name: mine})
        pytest.fail(f"{name} is new in {EXPECTED.name}: read it")
    assert mine == expected[name]


def test_nothing_is_expected_of_scenes_that_are_not_there() -> None:
    assert json.loads(EXPECTED.read_text()).keys() == SCENES.keys()
