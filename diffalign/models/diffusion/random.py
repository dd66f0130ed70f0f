"""Random draws from one generator, or from one generator a record, so that a draw does not depend on how records are batched.

Drawn in float32 (uniform: float64), and left, on the generator's device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from diffalign.core.types import Generator


def normal(shape: tuple[int, ...], generator: Generator) -> Tensor:
    """Return standard normal (B, ...)."""
    if isinstance(generator, torch.Generator):
        return torch.randn(shape, generator=generator, device=generator.device)
    _check(shape[0], generator)
    return torch.stack([torch.randn(shape[1:], generator=g, device=g.device) for g in generator])


def uniform(count: int, generator: Generator) -> Tensor:
    """Return uniform (B,) in [0, 1), float64."""
    if isinstance(generator, torch.Generator):
        return torch.rand(count, generator=generator, dtype=torch.float64, device=generator.device)
    _check(count, generator)
    return torch.cat([torch.rand(1, generator=g, dtype=torch.float64, device=g.device) for g in generator])


def integers(high: int, count: int, generator: Generator) -> Tensor:
    """Return uniform integers (B,) in [0, high)."""
    if isinstance(generator, torch.Generator):
        return torch.randint(high, (count,), generator=generator, device=generator.device)
    _check(count, generator)
    return torch.cat([torch.randint(high, (1,), generator=g, device=g.device) for g in generator])


def _check(count: int, generator: Generator) -> None:
    if not isinstance(generator, torch.Generator) and len(generator) != count:
        raise ValueError(f"{len(generator)} generators for {count} records; expected one a record")
