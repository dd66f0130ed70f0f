"""LoRA layers as they are called: peft's, without its dispatch where one plain adapter is at work; off for a block; fused for a block.

Adapters stay peft's, for everything that adds, saves, loads or merges them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners import lora
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


class LoraLinear(lora.Linear):
    """A `peft.tuners.lora.Linear` that adds its adapter in one `addmm`, so that the product is never a tensor of its own.

    In float32, at a scale that is a power of two, it gives peft's numbers to the bit. In half precision it rounds the sum once, where peft
    rounds the product, the scaled product and the sum.
    """

    off = False  # the base alone; peft's own switch also looks at each weight's `requires_grad`

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return x (..., in) through the base layer, plus scale * B A x, (..., out)."""
        if self.off:
            return self.base_layer(x, *args, **kwargs)
        if torch.compiler.is_compiling():  # which fuses peft's own, and follows no look-up past torch's
            return super().forward(x, *args, **kwargs)
        parts = vars(self)["_modules"]  # torch's own look-up of a layer takes as long as a small kernel
        base = parts["base_layer"]
        names, downs = self.active_adapters, vars(parts["lora_A"])["_modules"]
        if len(names) != 1 or names[0] not in downs or args or kwargs or self.disable_adapters or self.merged or self.lora_variant:
            return super().forward(x, *args, **kwargs)
        down, up, dropout = downs[names[0]], parts["lora_B"][names[0]], parts["lora_dropout"][names[0]]
        autocast = torch.is_autocast_enabled(x.device.type)
        alike = autocast or x.dtype == base.weight.dtype == down.weight.dtype
        dropped = self.training and isinstance(dropout, nn.Dropout)
        if not alike or dropped or up.bias is not None or _watched(base) or _watched(down) or _watched(up):
            return super().forward(x)
        flat = x.reshape(-1, x.shape[-1])
        if autocast:
            flat = flat.to(torch.get_autocast_dtype(x.device.type))  # once for both products
        result, below = F.linear(flat, base.weight, base.bias), F.linear(flat, down.weight)
        return result.addmm_(below, up.weight.t().to(result.dtype), alpha=self.scaling[names[0]]).view(*x.shape[:-1], -1)


def counter() -> FlopCounterMode:
    """Return torch's counter of operations, which by itself leaves out the product that a `LoraLinear` adds in place."""

    def product(_: Any, left: torch.Size, right: torch.Size, **_others: Any) -> int:
        return 2 * left.numel() * right[1]

    return FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: product})


def _watched(layer: nn.Module) -> bool:
    """Return whether a call of a layer does more than its product, as where a tool brings its weights to the device first."""
    own = vars(layer)
    return "forward" in own or bool(
        own["_forward_hooks"] or own["_forward_pre_hooks"] or own["_backward_hooks"] or own["_backward_pre_hooks"]
    )


def without_dispatch(model: nn.Module) -> None:
    """Make the LoRA layers of a network that are peft's plain ones on plain linear layers a `LoraLinear`; others stay as they are."""
    for layer in model.modules():
        if type(layer) is lora.Linear and type(layer.base_layer) is nn.Linear:
            layer.__class__ = LoraLinear


class Switch:
    """Runs blocks with a network's base weights alone. Its layers are listed once: a walk over a large network takes milliseconds."""

    def __init__(self, model: nn.Module) -> None:
        self.layers = [layer for layer in model.modules() if isinstance(layer, BaseTunerLayer)]

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        """Switch the adapters off for the block; they are on again afterwards, also on an error."""
        plain = [layer for layer in self.layers if isinstance(layer, LoraLinear) and not layer.merged]
        others = [layer for layer in self.layers if not isinstance(layer, LoraLinear) or layer.merged]
        self._turn(plain, others, on=False)
        try:
            yield
        finally:
            self._turn(plain, others, on=True)

    def _turn(self, plain: Sequence[LoraLinear], others: Sequence[BaseTunerLayer], *, on: bool) -> None:
        for layer in plain:
            vars(layer)["off"] = not on
        for layer in others:
            layer.enable_adapters(on)


@contextlib.contextmanager
def fused(model: nn.Module) -> Iterator[None]:
    """Run the block, which only draws, with the adapters added to the weights; afterwards the weights are the same ones, to the bit.

    Layers stay as they are whose adapter is off, is no plain LoRA or is called by something else (negative guidance), whose weights are
    not float32 (the sum would be rounded to fewer digits than the adapter was trained in), or that are sharded, offloaded or compiled.
    """
    weights = list[tuple[Any, Any]]()  # a layer and its weight
    layers: list[Any] = [] if any(layer._compiled_call_impl is not None for layer in model.modules()) else list(model.modules())
    try:
        for layer in layers:
            if isinstance(layer, lora.LoraLayer) and _fuses(layer):
                weights.append((layer, layer.base_layer.weight.data))
                with contextlib.suppress(ValueError):  # for numbers that are not finite; they are drawn as they are
                    layer.merge(safe_merge=True)  # which puts a new tensor in the weight's place
        yield
    finally:
        for layer, weight in weights:
            layer.base_layer.weight.data = weight
            layer.merged_adapters.clear()


def _fuses(layer: Any) -> bool:
    base, off = layer.base_layer, layer.disable_adapters or getattr(layer, "off", False)
    if (
        off
        or layer.merged
        or layer.lora_variant
        or any(layer.lora_bias.values())
        or _watched(layer)
        or type(base) not in (nn.Linear, nn.Conv2d)
    ):
        return False
    return (
        type(base.weight.data) is Tensor and base.weight.dtype == torch.float32 and base.weight.device.type != "meta" and not _watched(base)
    )
