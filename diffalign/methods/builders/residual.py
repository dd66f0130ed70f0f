"""The residual stream of a denoiser in float32, where its layers compute in half precision."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn

# Layers of a UNet's blocks that the stream itself passes, and not a branch that is added to it.
INNER = re.compile(r".*\b(conv_shortcut|(down|up)samplers\.\d+\.conv|proj_in)")


def widen(denoiser: nn.Module) -> None:
    """Let the residual stream of `denoiser` be float32 under autocast: what begins or replaces it is cast once, and sums then stay wide.

    Products of matrices stay in half precision. A GroupNorm or LayerNorm reads the stream with float32 weights, as on a CPU it must.
    """
    blocks = tuple(f"{name}." for name, part in denoiser.named_modules() if isinstance(part, nn.ModuleList) or name == "mid_block")
    for name, layer in denoiser.named_modules():
        plain = name.removesuffix(".base_layer")
        if isinstance(layer, nn.GroupNorm | nn.LayerNorm):
            layer.to(torch.float32)
        elif isinstance(layer, nn.Linear | nn.Conv2d) and ".lora_" not in name and (not name.startswith(blocks) or INNER.fullmatch(plain)):
            layer.register_forward_hook(_wide)


def _wide(layer: nn.Module, inputs: Any, output: Tensor) -> Tensor:  # noqa: ARG001  # torch's signature of a hook
    return output.float()
