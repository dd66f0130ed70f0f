"""Random adapters, and networks with their weights merged, to compare with."""

from __future__ import annotations

import copy
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn


def add(network: nn.Module, name: str, rank: int, seed: int, targets: list[str], alpha: int = 0, **options: Any) -> dict[str, Tensor]:
    """Add a random adapter, active; return what it adds to each weight."""
    config = LoraConfig(r=rank, lora_alpha=alpha or rank, target_modules=targets, init_lora_weights=False, **options)
    inject_adapter_in_model(config, network, adapter_name=name)
    network._hf_peft_config_loaded = True
    generator, deltas = torch.Generator().manual_seed(seed), {}
    for path, layer in network.named_modules():
        if name in getattr(layer, "lora_A", {}):
            down, up = layer.lora_A[name].weight, layer.lora_B[name].weight
            for weight in (down, up):
                weight.data = 0.15 * torch.randn(weight.shape, generator=generator)
            deltas[path] = (alpha or rank) / rank * torch.einsum("or...,ri...->oi...", up, down).detach()
    return deltas


def merged(base: Any, *parts: tuple[dict[str, Tensor], float]) -> Any:
    """Return a copy of a network with scaled deltas added to its weights."""
    network = copy.deepcopy(base).requires_grad_(False)
    for deltas, scale in parts:
        for path, delta in deltas.items():
            network.get_submodule(path).weight += scale * delta
    return network
