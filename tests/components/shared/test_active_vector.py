"""What `test_rules_on_architectures` compares on whole models, on results that cannot be written into."""

from types import SimpleNamespace

import pytest
import torch

from secvec.components.shared.active_vector import FrozenAdapter
from secvec.components.shared.errors import SecvecError

DOWN, UP, SCALING = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[1.0], [-1.0]]), 0.5


def module() -> SimpleNamespace:
    weights = {
        name: SimpleNamespace(weight=tensor) for name, tensor in {"lora_A": DOWN, "lora_B": UP}.items()
    }
    return SimpleNamespace(**{n: {"vector": w} for n, w in weights.items()}, scaling={"vector": SCALING})


@pytest.mark.parametrize("kind", ["plain", "leaf", "view", "strided"])
def test_the_part_is_added_and_only_the_input_has_its_gradient(kind: str) -> None:
    x = torch.randn(4, 3, requires_grad=True)
    given = torch.randn(4, 2, requires_grad=True)
    result = {
        "plain": lambda: given * 1,
        "leaf": lambda: given,
        "view": lambda: (given * 1).view(4, 2),
        "strided": lambda: torch.stack([given[:, 0], given[:, 1]]).T * 1,
    }[kind]()
    before = given.detach().clone()
    found = FrozenAdapter.forward(module(), "vector", x, result)
    assert torch.allclose(found, given + SCALING * x @ DOWN.T @ UP.T)
    assert torch.equal(given, before)
    weights = torch.randn(4, 2)
    (found * weights).sum().backward()
    assert given.grad is not None and x.grad is not None
    assert torch.allclose(given.grad, weights)
    assert torch.allclose(x.grad, SCALING * weights @ UP @ DOWN)


def test_without_gradients_nothing_is_kept() -> None:
    with torch.no_grad():
        found = FrozenAdapter.forward(module(), "vector", torch.ones(2, 3), torch.zeros(2, 2))
    assert found.tolist() == [[3.0, -3.0], [3.0, -3.0]]


def test_it_is_never_merged() -> None:
    for merge in (FrozenAdapter.merge_safe, FrozenAdapter.merge_unsafe, FrozenAdapter.unmerge):
        with pytest.raises(SecvecError, match="the adapter vector is frozen"):
            merge(module(), "vector", UP)
