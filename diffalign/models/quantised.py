"""Frozen linear layers whose weights stay in few bits, as they lie in a file: GGUF's blocks, or 8-bit floating point with scales.

The numbers of a weight are made for each pass, forward and backward, and are gone after it; autograd would keep those of all layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

FLOATS = {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}  # by their names in safetensors


@dataclass(frozen=True, slots=True)
class Packed:
    """A tensor in few bits: `data` (..., bytes), uint8; `kind`, one of FLOATS or a type of GGUF; `scale` (rows, 1) for one of FLOATS."""

    data: Tensor
    kind: str
    scale: Tensor | None = None

    @property
    def shape(self) -> torch.Size:
        """Return the shape of the numbers."""
        size, width = _block(self.kind)
        return torch.Size((*self.data.shape[:-1], self.data.shape[-1] // width * size))

    def numbers(self) -> Tensor:
        """Return the numbers, float32.

        >>> Packed(torch.tensor([[1.0, 3.0]]).to(torch.float8_e4m3fn).view(torch.uint8), "F8_E4M3", torch.tensor([[2.0]])).numbers()
        tensor([[2., 6.]])
        """
        if self.kind in FLOATS:
            numbers = self.data.view(FLOATS[self.kind]).float()
            return numbers if self.scale is None else numbers * self.scale
        from diffusers.quantizers.gguf.utils import dequantize_functions
        from gguf import GGMLQuantizationType

        size, width = _block(self.kind)
        numbers = dequantize_functions[GGMLQuantizationType[self.kind]](self.data.reshape(-1, width), size, width, torch.float32)
        return numbers.reshape(self.shape)


def _block(kind: str) -> tuple[int, int]:
    """Return how many numbers a block has, and how many bytes."""
    if kind in FLOATS:
        return 1, 1
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    return GGML_QUANT_SIZES[GGMLQuantizationType[kind]]


class QuantisedLinear(nn.Linear):
    """A frozen linear layer around a packed weight (out, bytes). It computes in the dtype of autocast, else in that of its input."""

    scale: Tensor | None

    def __init__(self, packed: Packed, bias: Tensor | None) -> None:
        super().__init__(packed.shape[1], packed.shape[0], bias is not None, device="meta")
        self.kind = packed.kind
        self.weight = nn.Parameter(packed.data, requires_grad=False)
        self.register_buffer("scale", packed.scale)
        if bias is not None:
            self.bias = nn.Parameter(bias, requires_grad=False)

    @property
    def packed(self) -> Packed:
        """Return the weight."""
        return Packed(self.weight, self.kind, self.scale)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # the name that nn.Linear gives it
        """Return x W^T + b."""
        device = input.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else input.dtype
        return _Multiply.apply(input.to(dtype), self)


class _Multiply(torch.autograd.Function):
    """The product with a weight that is unpacked for each pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: QuantisedLinear) -> Tensor:
        """Return x W^T + b, keeping neither x nor the numbers of W."""
        ctx.layer = layer
        bias = None if layer.bias is None else layer.bias.to(x.dtype)
        return functional.linear(x, layer.packed.numbers().to(x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Return the gradient of x."""
        (gradient,) = gradients
        return gradient @ ctx.layer.packed.numbers().to(gradient.dtype), None


def holds_quantised(network: nn.Module) -> bool:
    """Return whether a network has layers whose weights cannot be trained or changed."""
    return any(isinstance(layer, QuantisedLinear) for layer in network.modules())


def numbers_of(network: nn.Module) -> int:
    """Return how many weights a network has, however few bits they take."""
    packed = {id(layer.weight): layer.packed.shape.numel() for layer in network.modules() if isinstance(layer, QuantisedLinear)}
    return sum(packed.get(id(parameter), parameter.numel()) for parameter in network.parameters())
