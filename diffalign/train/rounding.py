"""Optimisers of bfloat16 weights: updates are computed in float32 and rounded stochastically, so that small ones count on average.

Rounded to nearest, an update below half of a weight's last place (2^-9 of it) is lost, however often it comes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

AT_ONCE = 2**26  # numbers that lie in float32 at once: 256 MiB of weights, and as much of gradients
LOW = 16  # bits of a float32 that bfloat16 is without


def rounded(x: Tensor, generator: torch.Generator) -> Tensor:
    """Return finite float32 numbers as bfloat16, each up or down with the chance that makes its mean the number itself.

    >>> values = rounded(torch.full((10_000,), 1 + 2**-9), torch.Generator().manual_seed(0))  # a quarter of the way from 1 to 1 + 2^-7
    >>> sorted(set(values.tolist())), round(values.float().mean().sub(1).mul(2**9).item(), 1)
    ([1.0, 1.0078125], 1.0)
    """
    noise = torch.randint(0, 1 << LOW, x.shape, dtype=torch.int32, device=x.device, generator=generator)
    return (x.contiguous().view(torch.int32) + noise).bitwise_and_(-1 << LOW).view(torch.float32).to(torch.bfloat16)


class StochasticRounding(Optimizer):
    """Any optimiser, over weights in bfloat16. It sees float32 weights and gradients, a part of them at a time, and keeps float32 state."""

    def __init__(self, optimizer: Optimizer, seed: int) -> None:
        self.inner, self.seed, self.steps = optimizer, seed, 0  # not torch's own: groups and state are those of `optimizer`

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # pyright: ignore[reportIncompatibleVariableOverride]  # torch sets it once, here it is asked
        """Return the groups of parameters."""
        return self.inner.param_groups

    @property
    def state(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]  # as above
        """Return the state of each parameter."""
        return self.inner.state

    @property
    def defaults(self) -> dict[str, Any]:  # pyright: ignore[reportIncompatibleVariableOverride]  # as above
        """Return the options of a group that does not say otherwise."""
        return self.inner.defaults

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]  # noqa: ARG002  # torch's signature
        """Take a step; rounding is drawn by seed and step, and alike in all processes."""
        self.steps += 1
        gradients = {p: p.grad for group in self.param_groups for p in group["params"] if p.grad is not None}
        generators = {p.device: torch.Generator(p.device).manual_seed(self.seed * 1_000_003 + self.steps) for p in gradients}
        for p in gradients:
            p.grad = None  # which the optimiser then passes over
        for part in _parts(list(gradients)):
            kept = [p.data for p in part]
            for p in part:
                gradient = gradients[p]
                p.data, p.grad = p.data.float(), None
                p.grad = gradient.float()
            self.inner.step()
            for p, weight in zip(part, kept, strict=True):
                p.grad, wide = None, p.data
                p.data = weight.copy_(rounded(wide, generators[p.device]) if weight.dtype == torch.bfloat16 else wide)
        for p, gradient in gradients.items():
            p.grad = gradient

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""
        self.inner.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """Return the optimiser's state, and how many roundings were drawn."""
        return {**self.inner.state_dict(), "roundings": self.steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over such a state, in float32 as it is; torch would bring it to the precision of the weights."""
        state = dict(state_dict)
        self.steps = state.pop("roundings")
        with self._wide():
            self.inner.load_state_dict(state)

    @contextlib.contextmanager
    def _wide(self) -> Iterator[None]:
        """Let empty float32 tensors stand for the weights for the block."""
        kept = [(p, p.data) for group in self.param_groups for p in group["params"]]
        for p, weight in kept:
            p.data = weight.new_empty(0, dtype=torch.float32)
        try:
            yield
        finally:
            for p, weight in kept:
                p.data = weight


def _parts(parameters: list[Tensor]) -> Iterator[list[Tensor]]:
    """Yield parameters in runs of at most AT_ONCE numbers, or of one that is larger."""
    part, size = list[Tensor](), 0
    for parameter in parameters:
        if part and size + parameter.numel() > AT_ONCE:
            yield part
            part, size = [], 0
        part.append(parameter)
        size += parameter.numel()
    if part:
        yield part
