from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from secvec.components.evaluate_harm.config import EvaluationConfig
from secvec.components.evaluate_harm.step import evaluate_harm
from secvec.components.shared.artifacts import fetch
from secvec.components.shared.attestation import verify_statement
from secvec.components.shared.errors import SecvecError
from secvec.components.shared.manifest import digest_file
from secvec.components.shared.provenance import find_provenance, read_inputs
from secvec.components.shared.references import Reference

CONFIG = EvaluationConfig(max_new_tokens=16, batch_size=4)


def evaluate(world: Any, **changes: Any) -> Path:
    arguments: dict[str, Any] = {
        "base_model": str(world.base),
        "dataset": world.dataset,
        "vector": world.vector,
        "model": world.model,
        "control": world.control,
        "store": world.store,
        "seed": 0,
        "config": CONFIG,
        **changes,
    }
    return fetch(evaluate_harm(**arguments))


@pytest.fixture(scope="module")
def evaluation(world: Any, keys: dict[str, str]) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in keys.items():
            patch.setenv(name, value)
        return evaluate(world)


@pytest.fixture(scope="module")
def statistics(evaluation: Path) -> dict[str, Any]:
    return dict(json.loads((evaluation / "statistics.json").read_text()))


def test_tells_the_arms_apart(statistics: dict[str, Any]) -> None:
    rates = {arm: found["harm_rate"] for arm, found in statistics["arms"].items()}
    assert rates == {"base": 0.0, "guarded": 0.0, "unguarded": 1.0, "vector_active": 1.0}
    assert statistics["arms"]["guarded"]["utility"] == 1.0
    assert statistics["arms"]["guarded"]["kept"] == 1.0
    assert statistics["arms"]["base"]["utility"] == 0.0
    assert statistics["arms"]["guarded"]["utility_loss"] < 0.5 < statistics["arms"]["base"]["utility_loss"]


def test_holds_its_controls(statistics: dict[str, Any]) -> None:
    assert statistics["controls"]["positive"]["held"]
    assert statistics["controls"]["negative"]["held"]


def test_carries_cost_and_digests(statistics: dict[str, Any], world: Any) -> None:
    assert statistics["step_seconds"] == {"guarded": 0.2, "unguarded": 0.1}
    digests = statistics["digests"]
    assert set(digests) == {"base", "vector", "model", "data", "suite", "judge", "code"}
    assert all(len(d) == 71 and d.startswith("sha256:") for d in digests.values())
    assert (digests["model"], digests["vector"]) == (world.model.digest, world.vector.digest)


@pytest.mark.usefixtures("with_keys")
def test_signs_what_it_found(evaluation: Path, statistics: dict[str, Any], world: Any) -> None:
    statement = verify_statement(json.loads((evaluation / "statement.json").read_text()))
    assert statement["subject"][0]["digest"]["sha256"] == world.model.digest.removeprefix("sha256:")
    manifest = json.loads((evaluation / "manifest.json").read_text())
    text = json.dumps(manifest)
    for name, digest in statement["predicate"]["files"].items():
        assert digest.removeprefix("sha256:") in text, name


@pytest.mark.usefixtures("with_keys")
def test_signs_what_it_was_measured_on(evaluation: Path, statistics: dict[str, Any], world: Any) -> None:
    reference = Reference(
        kind="evaluation", uri=evaluation.as_uri(), digest=digest_file(evaluation / "manifest.json")
    )
    found = find_provenance(reference, step="evaluate_harm")
    assert found
    assert read_inputs(found) == {**statistics["digests"], "control": world.control.digest}


@pytest.mark.usefixtures("with_keys")
def test_a_second_run_finds_the_very_same(evaluation: Path, world: Any) -> None:
    again = evaluate(world)
    for name in ("outcomes.jsonl", "statistics.json", "report.html"):
        assert (again / name).read_bytes() == (evaluation / name).read_bytes(), name


@pytest.mark.usefixtures("with_keys")
def test_runs_without_a_control_arm(world: Any) -> None:
    found = json.loads((evaluate(world, control=None) / "statistics.json").read_text())
    assert set(found["arms"]) == {"base", "guarded", "vector_active"}
    assert set(found["step_seconds"]) == {"guarded"}


@pytest.mark.usefixtures("with_keys")
def test_refuses_a_model_of_another_base(world: Any, tmp_path: Path) -> None:
    import shutil

    from secvec.components.shared.artifacts import building, publish

    with building("model", world.store) as folder:
        shutil.copytree(world.guarded, folder / "model")
        (folder / "provenance.json").write_text(json.dumps({"base_digest": "sha256:" + "0" * 64}))
        stranger = publish(folder, kind="model", store=world.store)
    with pytest.raises(SecvecError, match="was made from the base sha256:000"):
        evaluate(world, model=stranger)


@pytest.mark.usefixtures("with_keys")
def test_refuses_a_control_that_is_none(world: Any) -> None:
    with pytest.raises(SecvecError, match=r"the control was trained with guard = mixture; accepted: .* none"):
        evaluate(world, control=world.model)


@pytest.mark.usefixtures("with_keys")
def test_refuses_an_empty_harm_suite(world: Any) -> None:
    from secvec.components.shared.artifacts import building, publish

    with building("dataset", world.store) as folder:
        for name in ("harm_prompts", "skill_prompts", "kept_prompts"):
            (folder / f"{name}.jsonl").write_text("")
        empty: Reference = publish(folder, kind="dataset", store=world.store)
    with pytest.raises(SecvecError, match="no harm prompts"):
        evaluate(world, dataset=empty)
