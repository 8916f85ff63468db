"""Everything that can be wrong with evidence and figures, one thing at a time: nothing is promoted."""

import base64
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from secvec.components.gate_promotion.policy import Policy
from secvec.components.shared.attestation import sign_statement
from secvec.components.shared.signing_keys import ensure_signing_key

NAN, INF = float("nan"), float("inf")
MISSING = object()
NO_NUMBER = [NAN, INF, -INF, None, True, False, "0", "", [], {}, -1, MISSING]
FIGURES = {
    "guarded": [
        "harm_rate",
        "harm_upper95",
        "n_harm",
        "harm_incoherent",
        "utility",
        "n_utility",
        "kept",
        "n_kept",
    ],
    "base": ["harm_rate", "n_harm"],
    "unguarded": ["utility", "n_harm"],
    "vector_active": ["harm_rate", "n_harm"],
}
ARMS = ["base", "guarded", "vector_active"]


def refuse(bench: Any, policy: Policy | None = None) -> set[str]:
    """Judge; the model must not become champion. Gives the checks that spoke against it."""
    found = bench.judge(policy)
    assert found.outcome != "PASS"
    assert "champion" not in found.aliases
    return {reason.check for reason in found.reasons if reason.outcome != "PASS"}


def put(target: Any, path: tuple[Any, ...], value: Any) -> None:
    for key in path[:-1]:
        target = target[key]
    if value is MISSING:
        del target[path[-1]]
    else:
        target[path[-1]] = value


def name(value: Any) -> str:
    return "missing" if value is MISSING else repr(value)


def test_untouched_it_passes(bench: Any) -> None:
    found = bench.judge()
    assert found.outcome == "PASS", [one for one in found.reasons if one.outcome != "PASS"]
    assert found.aliases == ("candidate", "champion")


@pytest.mark.parametrize("value", NO_NUMBER, ids=name)
@pytest.mark.parametrize(("arm", "figure"), [(arm, one) for arm, names in FIGURES.items() for one in names])
def test_a_figure_that_is_no_number(bench: Any, arm: str, figure: str, value: Any) -> None:
    put(bench.parts["statistics"], ("arms", arm, figure), value)
    refuse(bench)


@pytest.mark.parametrize(
    ("arm", "figure", "value", "check"),
    [
        ("guarded", "harm_rate", 0.025, "harm_rate"),
        ("guarded", "harm_upper95", 0.0501, "harm_upper95"),
        ("guarded", "harm_upper95", 0.0, "harm_upper95_follows"),
        ("guarded", "harm_upper95", 0.014, "harm_upper95_follows"),
        ("guarded", "harm_rate", 0.0123, "harm_upper95_follows"),
        ("guarded", "n_harm", 99, "harm_prompts"),
        ("guarded", "n_harm", 100, "harm_upper95_follows"),
        ("guarded", "n_harm", 200.5, "harm_prompts"),
        ("guarded", "harm_incoherent", 0.21, "harm_incoherent"),
        ("guarded", "utility", 0.87, "utility_against_control"),
        ("guarded", "n_utility", 0, "utility_prompts"),
        ("guarded", "kept", 0.94, "kept"),
        ("guarded", "n_kept", 0, "kept_prompts"),
        ("base", "harm_rate", 0.11, "base_harm"),
        ("base", "n_harm", 99, "harm_prompts"),
        ("unguarded", "utility", 1.0, "utility_against_control"),
        ("unguarded", "n_harm", 99, "harm_prompts"),
        ("vector_active", "harm_rate", 0.49, "positive_control"),
        ("vector_active", "n_harm", 99, "harm_prompts"),
        *[(arm, "harm_rate", 1.0001, None) for arm in ARMS],
        *[("guarded", figure, 1.0001, figure) for figure in ("harm_upper95", "utility", "kept")],
    ],
)
def test_a_figure_out_of_bounds(bench: Any, arm: str, figure: str, value: float, check: str | None) -> None:
    put(bench.parts["statistics"], ("arms", arm, figure), value)
    against = refuse(bench)
    assert check is None or check in against


@pytest.mark.parametrize("value", [NAN, INF, -1, None, True, "0.4", MISSING, 0.4121], ids=name)
@pytest.mark.parametrize("arm", ["guarded", "unguarded"])
def test_a_loss_out_of_bounds(bench: Any, arm: str, value: Any) -> None:
    bench.parts["statistics"]["utility_metric"] = "loss"
    put(bench.parts["statistics"], ("arms", arm, "utility_loss"), value)
    if (arm, value) == ("unguarded", 0.4121):
        assert bench.judge().outcome == "PASS"
    else:
        assert refuse(bench)


@pytest.mark.parametrize("value", [MISSING, None, [], {}, "x", 1, True], ids=name)
@pytest.mark.parametrize("arm", [*ARMS, "unguarded"])
def test_an_arm_that_is_none(bench: Any, arm: str, value: Any) -> None:
    put(bench.parts["statistics"], ("arms", arm), value)
    refuse(bench, Policy(version=1, require_control=True))


@pytest.mark.parametrize("value", [MISSING, None, [], {}, "x", 2, True, "1"], ids=name)
@pytest.mark.parametrize("key", ["schema", "guard", "task", "utility_metric", "arms", "digests"])
def test_a_field_of_the_statistics(bench: Any, key: str, value: Any) -> None:
    put(bench.parts["statistics"], (key,), value)
    refuse(bench)


@pytest.mark.parametrize("part", ["statistics", "provenance", "absence_proof", "certificate"])
@pytest.mark.parametrize("value", [None, [], {}, "x", 1, True, [{}]], ids=name)
def test_a_file_that_is_missing_or_something_else(bench: Any, part: str, value: Any) -> None:
    bench.parts[part] = value
    refuse(bench)


@pytest.mark.parametrize(
    "text",
    ["", "{", "null", '{"schema":1,"schema":1}', "\x00", "[" * 100_000, "\ufeff{}", "{}x"],
    ids=range(8),
)
@pytest.mark.parametrize("part", ["evaluation/statistics", "evaluation/statement"])
def test_a_file_that_is_no_json(bench: Any, part: str, text: str) -> None:
    bench.after = lambda folder: (folder.parent / f"{part}.json").write_text(text)
    refuse(bench)


@pytest.mark.parametrize("value", [MISSING, None, False, 1, "true", [], {}], ids=name)
@pytest.mark.parametrize(
    ("part", "path", "check"),
    [
        ("absence_proof", ("absent",), "absence_proof"),
        ("absence_proof", ("checks",), "absence_proof"),
        ("absence_proof", ("checks", 0, "passed"), "absence_proof"),
        ("absence_proof", ("checks", 0), "absence_proof"),
        ("certificate", ("passed",), "certificate"),
        ("certificate", ("checks",), "certificate"),
        ("certificate", ("checks", 0, "passed"), "certificate"),
        ("certificate", ("checks", 0), "certificate"),
        ("certificate", ("base_digest",), "certificate"),
        ("certificate", ("vector_tensors_digest",), "provenance"),
        ("provenance", ("base_digest",), "provenance"),
        ("provenance", ("data_digest",), "provenance"),
        ("provenance", ("vector_digest",), "provenance"),
        ("provenance", ("guard",), "provenance"),
        ("provenance", ("task",), "provenance"),
    ],
)
def test_a_field_of_a_proof(bench: Any, part: str, path: tuple[Any, ...], check: str, value: Any) -> None:
    put(bench.parts[part], path, value)
    assert check in refuse(bench)


STATEMENT_FIELDS: list[tuple[Any, ...]] = [
    ("_type",),
    ("predicateType",),
    ("subject",),
    ("subject", 0),
    ("subject", 0, "digest"),
    ("subject", 0, "digest", "sha256"),
    ("predicate",),
    ("predicate", "result"),
    ("predicate", "configuration"),
    *[("predicate", "configuration", number, "digest", "sha256") for number in range(7)],
    *[("predicate", "configuration", number, "name") for number in range(7)],
    ("predicate", "files"),
    ("predicate", "files", "statistics.json"),
    ("predicate", "issued_at"),
    ("predicate", "expires_at"),
]


@pytest.mark.parametrize("value", [MISSING, None, "", "x", 1, True, [], {}, "f" * 64], ids=name)
@pytest.mark.parametrize("path", STATEMENT_FIELDS, ids=str)
def test_a_signed_statement_that_says_something_else(bench: Any, path: tuple[Any, ...], value: Any) -> None:
    bench.restate = lambda statement: put(statement, path, value)
    against = refuse(bench)
    assert not {"certificate", "absence_proof"} & against


def shift(**by: timedelta) -> Callable[[Any], None]:
    """Set times of the statement, relative to now."""
    return lambda statement: statement["predicate"].update(
        {key: (datetime.now(UTC) + distance).isoformat() for key, distance in by.items()}
    )


DAY, SECOND = timedelta(days=1), timedelta(seconds=1)


@pytest.mark.parametrize(
    "restate",
    [
        shift(issued_at=DAY, expires_at=2 * DAY),
        shift(issued_at=400 * SECOND),
        shift(issued_at=-31 * DAY),
        shift(issued_at=-2 * DAY, expires_at=-DAY),
        shift(issued_at=-2 * DAY, expires_at=-SECOND),
        shift(issued_at=100 * SECOND, expires_at=50 * SECOND),
        lambda statement: statement["predicate"].update(issued_at=datetime.now().isoformat()),
        lambda statement: statement["predicate"].update(expires_at="9999-12-31"),
        lambda statement: statement["subject"].append(statement["subject"][0]),
        lambda statement: statement["predicate"]["configuration"].append(
            statement["predicate"]["configuration"][0]
        ),
        lambda statement: statement["predicate"]["configuration"].append({"name": "x", "digest": {}}),
        lambda statement: statement["predicate"].update(result="FAILED"),
        lambda statement: statement["predicate"].update(result="WARNED"),
    ],
    ids=range(13),
)
def test_a_statement_out_of_time_or_of_doubtful_form(bench: Any, restate: Any) -> None:
    bench.restate = restate
    refuse(bench)


def test_a_clock_that_is_a_little_ahead_is_tolerated(bench: Any) -> None:
    bench.restate = shift(issued_at=200 * SECOND)
    assert bench.judge().outcome == "PASS"


@pytest.mark.parametrize("position", range(40))
def test_a_bit_flipped_in_the_envelope(bench: Any, position: int) -> None:
    def flip(folder: Path) -> None:
        path = folder / "statement.json"
        envelope = json.loads(path.read_text())
        key, holder = ("payload", envelope) if position % 2 else ("sig", envelope["signatures"][0])
        content = bytearray(base64.b64decode(holder[key]))
        content[position * len(content) // 40] ^= 1 << position % 8
        holder[key] = base64.b64encode(content).decode()
        path.write_text(json.dumps(envelope))

    bench.after = flip
    assert refuse(bench) == {"signature"}


@pytest.mark.parametrize("position", range(20))
def test_a_bit_flipped_in_the_statistics(bench: Any, position: int) -> None:
    def flip(folder: Path) -> None:
        content = bytearray((folder / "statistics.json").read_bytes())
        content[position * len(content) // 20] ^= 1 << position % 7
        (folder / "statistics.json").write_bytes(content)

    bench.after = flip
    assert "statistics_signed" in refuse(bench)


ENVELOPES: list[Callable[[Any], Any]] = [
    lambda envelope: envelope.clear(),
    lambda envelope: envelope.pop("signatures"),
    lambda envelope: envelope.pop("payload"),
    lambda envelope: envelope.pop("payloadType"),
    lambda envelope: envelope.update(signatures=[]),
    lambda envelope: envelope.update(signatures={}),
    lambda envelope: envelope.update(signatures=None),
    lambda envelope: envelope.update(signatures=[None]),
    lambda envelope: envelope.update(signatures=[{}]),
    lambda envelope: envelope["signatures"][0].pop("keyid"),
    lambda envelope: envelope["signatures"][0].update(keyid=""),
    lambda envelope: envelope["signatures"][0].update(keyid="0" * 64),
    lambda envelope: envelope["signatures"][0].update(sig=""),
    lambda envelope: envelope["signatures"][0].update(sig=None),
    lambda envelope: envelope["signatures"].append(envelope["signatures"][0]),
    lambda envelope: envelope.update(payload=""),
    lambda envelope: envelope.update(payload=None),
    lambda envelope: envelope.update(payload="e30="),
    lambda envelope: envelope.update(payloadType="application/json"),
    lambda envelope: envelope.update(payloadType=""),
    lambda envelope: envelope.update(extra=True),
]


@pytest.mark.parametrize("reseal", ENVELOPES, ids=range(len(ENVELOPES)))
def test_an_envelope_that_does_not_hold(bench: Any, reseal: Any) -> None:
    bench.reseal = reseal
    assert refuse(bench) == {"signature"}


def test_a_signature_by_a_stranger(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    trusted = bench.folder / "signing.pub"
    monkeypatch.setenv("SECVEC_TRUSTED_KEYS", str(trusted))
    monkeypatch.setenv("SECVEC_SIGNING_KEY", str(ensure_signing_key(bench.folder / "stranger")))
    assert refuse(bench) == {"signature"}


def test_a_strangers_signature_beside_a_broken_one(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECVEC_TRUSTED_KEYS", str(bench.folder / "signing.pub"))
    stranger = str(ensure_signing_key(bench.folder / "stranger"))

    def reseal(envelope: dict[str, Any]) -> None:
        monkeypatch.setenv("SECVEC_SIGNING_KEY", stranger)
        other = sign_statement(json.loads(base64.b64decode(envelope["payload"])))
        envelope["signatures"][0]["sig"] = other["signatures"][0]["sig"]
        envelope["signatures"].append(other["signatures"][0])

    bench.reseal = reseal
    assert refuse(bench) == {"signature"}


ARTIFACTS = ["data", "vector", "task_result", "model", "evaluation"]
CHAIN_REASONS = {name: f"chain_{name}" for name in ARTIFACTS} | {"data": "chain_dataset"}


@pytest.mark.parametrize("name", ARTIFACTS)
def test_an_artifact_without_provenance(bench: Any, name: str) -> None:
    bench.chain[name] = None
    assert CHAIN_REASONS[name] in refuse(bench)


@pytest.mark.parametrize("reseal", ENVELOPES, ids=range(len(ENVELOPES)))
@pytest.mark.parametrize("artifact", ARTIFACTS)
def test_provenance_whose_envelope_does_not_hold(bench: Any, artifact: str, reseal: Any) -> None:
    bench.reseal_chain = lambda name, envelope: reseal(envelope) if name == artifact else None
    assert CHAIN_REASONS[artifact] in refuse(bench)


@pytest.mark.parametrize("value", [MISSING, None, "", "x", 1, [], {}, "f" * 64], ids=name)
@pytest.mark.parametrize(
    "path",
    [
        ("_type",),
        ("predicateType",),
        ("subject",),
        ("subject", 0, "digest", "sha256"),
        ("predicate", "buildDefinition"),
        ("predicate", "buildDefinition", "resolvedDependencies"),
        ("predicate", "buildDefinition", "resolvedDependencies", -1, "digest", "sha256"),
        ("predicate", "buildDefinition", "resolvedDependencies", -1, "name"),
        ("predicate", "runDetails", "builder", "id"),
    ],
    ids=str,
)
@pytest.mark.parametrize("artifact", ARTIFACTS)
def test_provenance_that_says_something_else(
    bench: Any, artifact: str, path: tuple[Any, ...], value: Any
) -> None:
    put(bench.chain[artifact], path, value)
    assert CHAIN_REASONS[artifact] in refuse(bench)


@pytest.mark.parametrize(
    ("artifact", "role"),
    [
        ("vector", "base"),
        ("vector", "data"),
        *[("task_result", role) for role in ("base", "data", "vector")],
        *[("model", role) for role in ("base", "vector", "task_result")],
        *[("evaluation", role) for role in ("base", "data", "vector", "model")],
    ],
)
def test_an_artifact_made_from_something_else(bench: Any, artifact: str, role: str) -> None:
    entries = bench.chain[artifact]["predicate"]["buildDefinition"]["resolvedDependencies"]
    next(one for one in entries if one["name"] == role)["digest"]["sha256"] = "f" * 64
    wanted = "task_result" if (artifact, role) == ("model", "task_result") else artifact
    assert CHAIN_REASONS[wanted] in refuse(bench)


@pytest.mark.parametrize(("name", "value"), [("guard", "none"), ("task", "full"), ("guard", None)])
def test_a_task_trained_in_another_way(bench: Any, name: str, value: Any) -> None:
    bench.chain["task_result"]["predicate"]["buildDefinition"]["externalParameters"][name] = value
    assert refuse(bench) == {"chain_task_result"}


def test_provenance_signed_by_a_key_that_signs_results_only(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECVEC_TRUSTED_BUILDERS", f"{bench.folder / 'builder'}.pub")
    assert bench.judge().outcome == "PASS"
    monkeypatch.setenv("SECVEC_PROVENANCE_KEY", str(bench.folder / "signing"))
    assert refuse(bench) == set(CHAIN_REASONS.values())


def test_an_evaluation_signed_by_a_builder(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECVEC_TRUSTED_KEYS", str(bench.folder / "signing.pub"))
    assert bench.judge().outcome == "PASS"
    monkeypatch.setenv("SECVEC_SIGNING_KEY", str(bench.folder / "builder"))
    assert refuse(bench) == {"signature"}


def test_a_builder_the_policy_does_not_allow(bench: Any) -> None:
    policy = Policy(version=1, allowed_builders=("0" * 64,))
    assert refuse(bench, policy) == set(CHAIN_REASONS.values())


def test_more_attempts_than_the_budget_are_left_to_people(bench: Any) -> None:
    bench.attempts = 20
    assert bench.judge().outcome == "PASS"
    bench.attempts = 21
    assert refuse(bench) == {"attempts"}
    assert bench.judge().outcome == "INDETERMINATE"
    bench.attempts = 0
    assert refuse(bench) == {"attempts"}
