"""A frozen LoRA adapter's part of a layer as one function: what keeping a vector active costs.

PEFT adds an adapter in four operations and as many for its gradient, some over the whole output. A frozen one
needs no gradient of its own weights: two products are enough, the second of which adds in place.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora.layer import LoraVariant

from secvec.components.shared.errors import SecvecError


class FrozenAdapter(LoraVariant):
    """How PEFT's layers apply a frozen adapter: result + scaling · B A x, written into the result."""

    @staticmethod
    def forward(
        module: Any, active_adapter: str, x: torch.Tensor, result: torch.Tensor, **_: Any
    ) -> torch.Tensor:
        """The layer's result with the adapter's part; x of shape [..., in], result of shape [..., out]."""
        down, up = module.lora_A[active_adapter].weight, module.lora_B[active_adapter].weight
        # A view cannot be written into without a copy of its gradient, and a leaf not at all.
        if result._is_view() or (result.is_leaf and result.requires_grad) or not result.is_contiguous():
            result = result.clone(memory_format=torch.contiguous_format)
        found: torch.Tensor = _AddFrozen.apply(result, x, down, up, module.scaling[active_adapter])
        return found

    @staticmethod
    def merge_safe(module: Any, active_adapter: str, orig_weight: torch.Tensor) -> torch.Tensor:
        """Never: a merged vector cannot be taken out again (rule 1)."""
        raise SecvecError(f"the adapter {active_adapter} is frozen", accepted="an adapter that may be merged")

    @staticmethod
    def merge_unsafe(module: Any, active_adapter: str, orig_weight: torch.Tensor) -> None:
        """Never."""
        FrozenAdapter.merge_safe(module, active_adapter, orig_weight)

    unmerge = merge_safe


class _AddFrozen(torch.autograd.Function):
    """y + s · x Aᵀ Bᵀ in place, and its gradient for x alone: s · g B A."""

    @staticmethod
    def forward(ctx: Any, result: torch.Tensor, x: torch.Tensor, *adapter: Any) -> torch.Tensor:
        down, up, scaling = adapter
        ctx.save_for_backward(down, up)
        ctx.scaling, ctx.dtype = scaling, x.dtype
        hidden = torch.nn.functional.linear(x, down).to(result.dtype)
        ctx.mark_dirty(result)
        flat = result.view(-1, result.shape[-1])
        flat.addmm_(hidden.reshape(-1, hidden.shape[-1]), up.to(result.dtype).T, alpha=scaling)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = gradients
        if not ctx.needs_input_grad[1]:
            return gradient, None, None, None, None
        down, up = ctx.saved_tensors
        hidden = (gradient @ up.to(gradient.dtype)).to(ctx.dtype) * ctx.scaling
        return gradient, hidden @ down, None, None, None
