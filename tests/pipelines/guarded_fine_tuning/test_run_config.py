from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from secvec.components.shared.errors import SecvecError
from secvec.components.train_security_vector.config import FOR_ALWAYS
from secvec.pipelines.guarded_fine_tuning.config import read_run_config

GOOD: dict[str, Any] = {
    "base_model": "base",
    "training_data": ["rows.jsonl", "s3://bucket/more.jsonl"],
    "harmful_seeds": "seeds.jsonl",
    "benign_anchors": "/data/anchors.jsonl",
    "harm_prompts": "harm.jsonl",
    "skill_prompts": "skill.jsonl",
    "policy": {"version": 1},
}


def write(folder: Path, values: object) -> Path:
    path = folder / "run.yaml"
    path.write_text(values if isinstance(values, str) else yaml.safe_dump(values))
    return path


def error_of(path: Path) -> str:
    with pytest.raises(SecvecError) as caught:
        read_run_config(path)
    return str(caught.value)


def test_paths_are_relative_to_the_file_and_uris_stay(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    config = read_run_config(write(tmp_path, GOOD))
    assert config.base_model == str(tmp_path / "base")
    assert config.training_data == [str(tmp_path / "rows.jsonl"), "s3://bucket/more.jsonl"]
    assert config.benign_anchors == "/data/anchors.jsonl"
    assert config.kept_prompts == ""
    assert (config.guard, config.task, config.seed, config.control_arm) == ("mixture", "lora", 0, True)


def test_the_home_of_nobody_is_a_name_like_any_other(tmp_path: Path) -> None:
    config = read_run_config(write(tmp_path, GOOD | {"benign_anchors": "~nobody at all/anchors.jsonl"}))
    assert config.benign_anchors == str(tmp_path / "~nobody at all" / "anchors.jsonl")


def test_rows_read_in_shares_are_a_parameter_of_another_pipeline(tmp_path: Path) -> None:
    given = {"store": "s3://bucket/store", "code_digest": "sha256:0"}
    parameters = read_run_config(write(tmp_path, GOOD | {"ingest_shares": 3})).to_parameters(**given)
    assert parameters["shares"] == [0, 1, 2]
    assert "shares" not in read_run_config(write(tmp_path, GOOD)).to_parameters(**given)
    assert "ingest_shares" in error_of(write(tmp_path, GOOD | {"ingest_shares": 0}))


def test_the_vector_of_always_is_fit_to_the_end_unless_told_otherwise(tmp_path: Path) -> None:
    def settings(**values: Any) -> dict[str, Any]:
        config = read_run_config(write(tmp_path, GOOD | values))
        found = config.to_parameters(store="s3://bucket/store", code_digest="sha256:0")["overrides"]
        return dict(found.get("train_security_vector", {}))

    assert settings() == {}
    assert settings(guard="always") == FOR_ALWAYS
    told = {"fit_share": 0.2, "rank": 4}
    assert settings(guard="always", overrides={"train_security_vector": told}) == FOR_ALWAYS | told
    assert settings(overrides={"train_security_vector": told}) == told


def test_a_hub_id_is_no_path(tmp_path: Path) -> None:
    config = read_run_config(write(tmp_path, GOOD | {"base_model": "org/model"}))
    assert config.base_model == "org/model"


def test_a_policy_may_lie_in_its_own_file(tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text("version: 1\nmin_kept: 0.5\n")
    config = read_run_config(write(tmp_path, GOOD | {"policy": "policy.yaml"}))
    assert isinstance(config.policy, dict)
    assert config.policy["min_kept"] == 0.5


def test_an_unknown_key_is_named_with_file_and_accepted_keys(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD | {"training_dta": []})
    error = error_of(path)
    assert "'training_dta'" in error
    assert str(path) in error
    assert "training_data" in error
    assert "\n" not in error


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"guard": "sometimes"}, "guard"),
        ({"seed": -1}, "seed"),
        ({"training_data": []}, "training_data"),
        ({"harmful_seeds": ""}, "harmful_seeds"),
        ({"policy": {}}, "version"),
        ({"policy": {"version": 1, "max_harm": 0.1}}, "'max_harm'"),
        ({"policy": "absent.yaml"}, "absent.yaml"),
        ({"overrides": {"ingest": {}}}, "unknown step 'ingest'"),
        ({"overrides": {"fine_tune_guarded": {"learning_rat": 1}}}, "'learning_rat'"),
        ({"overrides": {"fine_tune_guarded": {"epochs": -1}}}, "epochs"),
    ],
)
def test_a_value_that_is_not_accepted_is_named(change: dict[str, Any], expected: str, tmp_path: Path) -> None:
    error = error_of(write(tmp_path, GOOD | change))
    assert expected in error
    assert "accepted: " in error


@pytest.mark.parametrize("missing", ["base_model", "training_data", "harm_prompts", "policy"])
def test_a_required_key_is_asked_for(missing: str, tmp_path: Path) -> None:
    assert missing in error_of(write(tmp_path, {key: GOOD[key] for key in GOOD if key != missing}))


def test_what_is_no_yaml_mapping_is_refused_with_its_line(tmp_path: Path) -> None:
    assert "line 2" in error_of(write(tmp_path, "guard: mixture\n  task: [lora\n"))
    assert "no mapping" in error_of(write(tmp_path, "- guard\n"))
    assert "No such file" in error_of(tmp_path / "absent.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x81")
    assert "binary.yaml" in error_of(tmp_path / "binary.yaml")
