from __future__ import annotations

import pytest

from tests.fuzz.feeding import feed_target
from tests.fuzz.targets import TARGETS, Target


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_malformed_input_ends_in_a_result_or_a_typed_error(target: Target) -> None:
    outcome = feed_target(target, 40)
    assert outcome.fed >= 40
    assert outcome.defects == []
