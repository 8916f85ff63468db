from __future__ import annotations

from typing import Any

import pytest
import torch

from secvec.components.shared.likelihood import IGNORED, EncodedRecord, collate
from secvec.components.shared.models import load_model
from secvec.components.train_security_vector.comparison import answer_distributions, compare_rows, cut_rows
from secvec.components.train_security_vector.training import _run_together


@pytest.fixture(autouse=True)
def environment(toy_environment: dict[str, str]) -> dict[str, str]:
    return toy_environment


def test_rows_are_compared_by_the_definitions(toy: Any) -> None:
    model, rows = toy.model(task="full").eval(), toy.rows("seeds_heldout")[:3]
    found = compare_rows(model, rows, size=2, pad_id=toy.pad_id)
    base = load_model(toy.base)
    for place, row in enumerate(rows):
        ids = torch.tensor([row.input_ids])
        with torch.no_grad():
            p, q = (one(ids).logits[0].double().log_softmax(-1) for one in (base, model))
        answer = [at for at, label in enumerate(row.labels[1:]) if label != IGNORED]
        kl = sum(float((p[at].exp() * (p[at] - q[at])).sum()) for at in answer)
        assert found.divergence[place] == pytest.approx(kl, rel=1e-4) and kl > 1
        assert found.lengths[place] == len(answer)
        for scores, log_probs in ((found.without, p), (found.with_vector, q)):
            expected = sum(float(log_probs[at, row.labels[at + 1]]) for at in answer)
            assert scores[place] == pytest.approx(expected, rel=1e-4)
    assert found.drift == pytest.approx(sum(found.divergence) / sum(found.lengths))
    assert found.pick([2, 0]).divergence == [found.divergence[2], found.divergence[0]]


def test_no_rows_are_compared_as_none(toy: Any) -> None:
    found = compare_rows(toy.model(), [], size=2, pad_id=toy.pad_id)
    assert (found.lengths, found.find_explained(), found.drift) == ([], [], 0.0)


@pytest.mark.parametrize(("tokens", "passes"), [(9, 1), (30, 2)], ids=["alike", "unlike"])
def test_parts_of_a_batch_run_together_unless_most_would_be_padding(
    toy: Any, tokens: int, passes: int
) -> None:
    model = toy.model(task="full").eval()
    drawn = [[5 + place % 4 for place in range(size)] for size in (8, 7, tokens)]
    rows = [EncodedRecord("", ids, [IGNORED] * 3 + ids[3:]) for ids in drawn]
    batch = collate(rows, pad_id=toy.pad_id)
    parts = [cut_rows(batch, part) for part in (slice(2), slice(2, None))]
    assert [part["input_ids"].shape for part in parts] == [(2, 8), (1, tokens)]
    calls: list[Any] = []
    hook = model.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        found = _run_together(model, batch, parts)
        assert len(calls) == passes
        hook.remove()
        for part, distributions in zip(parts, found, strict=True):
            assert torch.allclose(answer_distributions(model, part), distributions, atol=1e-4)
