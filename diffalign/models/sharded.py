"""A network that the processes of a launch hold in shares, block by block: FSDP2, PyTorch's `fully_shard`.

A block is gathered while it computes and given up again behind it. Each process keeps its rows of every parameter, as DTensors; what
gathers reads them from storage of its own, so a parameter's content may be changed in place, but not exchanged for another tensor.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


def block_names(network: Any) -> set[str]:
    """Return the classes of a network's blocks: those that diffusers lists as not to be split over devices, or as repeated.

    >>> from diffusers import FluxTransformer2DModel
    >>> sorted(block_names(FluxTransformer2DModel))
    ['FluxSingleTransformerBlock', 'FluxTransformerBlock']
    """
    return {*(getattr(network, "_no_split_modules", None) or ()), *(getattr(network, "_repeated_blocks", None) or ())}


def blocks(network: nn.Module) -> list[nn.Module]:
    """Return the blocks of a network, inner ones before those that hold them."""
    names = block_names(network)
    return [module for module in network.modules() if type(module).__name__ in names and module is not network][::-1]


def shard(network: nn.Module) -> nn.Module:
    """Spread a network over all processes, in place, and return it; from the CPU each process moves its own share to its device.

    Parameters keep their precision, on the way as well: a step then computes what it computes on one device. The root is given up like
    the blocks, so that no process goes on with a copy that is stale when weights change between two forward passes.
    """
    for block in blocks(network):
        fully_shard(block, reshard_after_forward=True)
    fully_shard(network, reshard_after_forward=True)
    return network


def is_sharded(network: nn.Module) -> bool:
    """Return whether a network is spread over the processes of a launch."""
    return isinstance(network, FSDPModule)


def local(tensor: Tensor) -> Tensor:
    """Return this process's share of a tensor, without gradient: all of it where it is not spread."""
    with torch.no_grad():
        return tensor.to_local() if isinstance(tensor, DTensor) else tensor.detach()


def whole(tensor: Tensor) -> Tensor:
    """Return all of a tensor, without gradient; where it is spread, every process must ask."""
    with torch.no_grad():
        return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.detach()


def spread_like(value: Tensor, other: Tensor) -> Tensor:
    """Return the share of `value`, which every process has whole, that this process holds of `other`, if that is spread."""
    if not isinstance(other, DTensor) or isinstance(value, DTensor):
        return value
    return distribute_tensor(value.to(other.device), other.device_mesh, other.placements, src_data_rank=None)


@contextlib.contextmanager
def gathered(network: nn.Module, *, here: bool) -> Iterator[None]:
    """Let a network's trained parameters be whole, on the CPU, for the block, as savers expect them, in the processes where `here` is set.

    Every process must enter: each gives its share. One parameter at a time is whole on a device. Without effect on other networks.
    """
    if not is_sharded(network):
        yield
        return
    spread: list[tuple[nn.Module, str, nn.Parameter]] = [
        (module, name, parameter)
        for module in network.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.requires_grad and isinstance(parameter, DTensor)
    ]
    kind: Any = type(network)
    try:
        for module, name, parameter in spread:
            full = whole(parameter)
            if here:
                module._parameters[name] = nn.Parameter(full.cpu())
        if here:
            network.__class__ = kind.__bases__[1]  # fully_shard has made a class of its own, whose name diffusers would write down
        yield
    finally:
        network.__class__ = kind
        for module, name, parameter in spread:
            module._parameters[name] = parameter
