from pathlib import Path
from typing import Any

import pytest

from secvec.components.gate_promotion.policy import Policy, load_policy
from secvec.components.shared.errors import SecvecError

SWITCHES = [name for name in Policy.model_fields if name.startswith("require_")]
LISTS = ("allowed_signers", "allowed_builders", "allowed_code")
NUMBERS = [name for name in Policy.model_fields if name not in (*SWITCHES, *LISTS, "approvers")]
NO_NUMBER = [True, False, "1", "", None, [], {}, float("nan"), float("inf"), float("-inf"), -1]


@pytest.mark.parametrize("value", NO_NUMBER, ids=repr)
@pytest.mark.parametrize("key", NUMBERS)
def test_a_bound_that_is_none_is_refused(key: str, value: Any) -> None:
    with pytest.raises(SecvecError, match="policy: "):
        Policy.read({"version": 1, key: value}, where="policy")


@pytest.mark.parametrize("value", [0, 1, 1.0, "true", "", None, []], ids=repr)
@pytest.mark.parametrize("key", SWITCHES)
def test_a_switch_that_is_none_is_refused(key: str, value: Any) -> None:
    with pytest.raises(SecvecError, match="neither true nor false"):
        Policy.read({"version": 1, key: value}, where="policy")


@pytest.mark.parametrize("value", ["abc", None, 1, [], [1], {"alice": 1}, {"alice": "no key"}], ids=repr)
def test_approvers_that_are_none_are_refused(value: Any) -> None:
    with pytest.raises(SecvecError, match="policy: "):
        Policy.read({"version": 1, "approvers": value}, where="policy")


@pytest.mark.parametrize("value", ["abc", None, 1, {}, [1], [None]], ids=repr)
@pytest.mark.parametrize("key", LISTS)
def test_a_list_that_is_none_is_refused(key: str, value: Any) -> None:
    with pytest.raises(SecvecError, match="policy: "):
        Policy.read({"version": 1, key: value}, where="policy")


SHARES = [
    name for name in NUMBERS if name.startswith(("max_harm", "min_kept", "min_utility", "min_positive"))
]


@pytest.mark.parametrize("key", [name for name in SHARES if not name.endswith("_prompts")])
def test_a_share_above_one_is_refused(key: str) -> None:
    with pytest.raises(SecvecError, match="policy: "):
        Policy.read({"version": 1, key: 1.5}, where="policy")


def test_an_empty_policy_is_refused() -> None:
    with pytest.raises(SecvecError, match=r"policy: version.*accepted: the policy format, 1"):
        Policy.read({}, where="policy")


@pytest.mark.parametrize("version", [0, 2, 1.5])
def test_another_format_is_refused(version: Any) -> None:
    with pytest.raises(SecvecError, match="policy: version"):
        Policy.read({"version": version}, where="policy")


def test_an_unknown_key_is_named() -> None:
    with pytest.raises(SecvecError, match=r"unknown key 'max_harm'; accepted: version, max_harm_rate"):
        Policy.read({"version": 1, "max_harm": 0.1}, where="policy")


def test_contradictory_bounds_are_refused() -> None:
    with pytest.raises(SecvecError, match="max_base_harm must lie below min_positive_control"):
        Policy.read({"version": 1, "max_base_harm": 0.6}, where="policy")


def test_the_digest_follows_the_content_and_not_the_spelling() -> None:
    assert Policy(version=1).digest() == Policy.read({"version": 1.0, "min_kept": 0.95}, where="p").digest()
    assert Policy(version=1).digest() != Policy(version=1, min_kept=0.96).digest()
    # What a run passes through KFP: every default filled in, whole numbers as floats.
    passed = {
        key: float(value) if isinstance(value, int) and not isinstance(value, bool) else value
        for key, value in Policy(version=1).model_dump(mode="json").items()
    }
    assert Policy.read(passed, where="policy").digest() == Policy(version=1).digest()


def test_a_policy_file(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text("version: 1\nmax_harm_rate: 0.01\nallowed_signers: [abc]\n")
    policy = load_policy(path)
    assert (policy.max_harm_rate, policy.allowed_signers) == (0.01, ("abc",))


@pytest.mark.parametrize(
    "text",
    ["", "- 1\n", "a: [", "1: 2\n", "\x00", "version: 1\nunknown: 2\n", "version: 2026-13-45\n", "[" * 5000],
    ids=range(8),
)
def test_a_file_that_is_no_policy(tmp_path: Path, text: str) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(text)
    with pytest.raises(SecvecError, match=r"policy\.yaml: .*accepted") as caught:
        load_policy(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(SecvecError, match=r"none\.yaml: cannot be read"):
        load_policy(tmp_path / "none.yaml")
