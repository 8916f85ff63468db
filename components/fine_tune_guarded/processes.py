"""What the processes of one training do together; in a training by one process, nothing.

Every process runs the same passes in the same order: a pass of a sharded model, and the averaging of
gradients, wait until all of them have come to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import distributed

if TYPE_CHECKING:
    from torch import nn

_T = TypeVar("_T")


def join_processes() -> None:
    """Join the others that the launcher has started, on this process's own device."""
    from accelerate import PartialState

    PartialState(cpu=not torch.cuda.is_available())


def is_joined() -> bool:
    """Whether this process is one of several."""
    return distributed.is_available() and distributed.is_initialized()


def count_processes() -> int:
    """How many processes train together."""
    return distributed.get_world_size() if is_joined() else 1


def process_index() -> int:
    """Which of them this is, from 0."""
    return distributed.get_rank() if is_joined() else 0


def is_first() -> bool:
    """Whether this is the process that writes: artifacts, audit log, tracking, progress."""
    return process_index() == 0


def from_first(make: Callable[[], _T]) -> _T:
    """Let the first process make something, and give it to all of them; it goes from memory to memory."""
    from accelerate.utils import broadcast_object_list

    if not is_joined():
        return make()
    return broadcast_object_list([make() if is_first() else None])[0]


def gather(values: Sequence[_T]) -> list[_T]:
    """Put the lists of all processes one behind the other, for all of them."""
    from accelerate.utils import gather_object

    return list(gather_object(list(values))) if is_joined() else list(values)


def add_up(values: Sequence[float], *, device: torch.device) -> list[float]:
    """Sum figures over the processes."""
    total = torch.tensor(values, dtype=torch.float64, device=device)
    if is_joined():
        distributed.all_reduce(total)
    return list(total.tolist())


def anywhere(found: bool, *, device: torch.device) -> bool:
    """Whether any process has found something."""
    return add_up([float(found)], device=device)[0] > 0


def wait_for_all() -> None:
    """Wait until every process has come here."""
    if is_joined():
        distributed.barrier()


def deal(rows: Sequence[_T]) -> list[_T]:
    """Give this process its share of rows: every n-th. A share may be one row shorter than another's."""
    return list(rows[process_index() :: count_processes()])


def shard(model: nn.Module, *, whole: set[nn.Parameter]) -> None:
    """Spread a model's weights over the processes, layer by layer (FSDP2, `torch.distributed.fsdp`).

    Args:
        model: A model on the CPU or on this process's device.
        whole: Parameters that every process keeps in whole.
    """
    from torch.distributed.fsdp import fully_shard

    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else "cpu"
    for parameter in whole:
        parameter.data = parameter.data.to(device)
    layers = set(getattr(model, "_no_split_modules", None) or ())
    for module in list(model.modules()):
        if type(module).__name__ in layers:
            fully_shard(module, ignored_params=whole)
    fully_shard(model, ignored_params=whole)


def is_sharded(model: nn.Module) -> bool:
    """Whether `shard` has spread it."""
    from torch.distributed.fsdp import FSDPModule

    return isinstance(model, FSDPModule)


def spread_again(model: nn.Module) -> None:
    """Spread what a pass without a backward one has put together: only the latter ends by doing so."""
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def own_part(tensor: torch.Tensor) -> torch.Tensor:
    """The part of a tensor that this process holds."""
    return getattr(tensor, "to_local", lambda: tensor)()


def put_together(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copy tensors, sharded or not, to the first process's memory in whole; the others get none."""
    found = {}
    for name, tensor in tensors.items():
        whole: Any = getattr(tensor.detach(), "full_tensor", tensor.detach)()
        if is_first():
            found[name] = whole.contiguous().cpu()
    return found


def fill(parameter: torch.Tensor, tensor: torch.Tensor) -> None:
    """Copy a whole tensor that every process has into a parameter, sharded or not."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if isinstance(parameter, DTensor):
        tensor = distribute_tensor(
            tensor.to(parameter.to_local().device), parameter.device_mesh, parameter.placements
        )
    parameter.copy_(tensor)
