"""How much each reward's gradient helps all rewards: what the combiner `gradient` follows (2509.11452, released code)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate.utils import reduce
from torch import Tensor


def gradient(loss: Tensor, parameters: Sequence[Tensor], most: float) -> Tensor:
    """Return the gradient (P,) of a loss with respect to parameters, float32, shortened to the norm `most`.

    It is the mean over all processes, which must all call, each with the loss of its share. Nothing else is changed.
    """
    parts = torch.autograd.grad(loss, parameters, allow_unused=True)
    filled = [torch.zeros_like(p) if part is None else part for p, part in zip(parameters, parts, strict=True)]
    whole: Any = reduce(torch.cat([part.float().flatten() for part in filled]), "mean")
    return whole * min(1.0, most / max(float(whole.norm()), 1e-12))


def influences(gradients: Mapping[str, Tensor | None]) -> dict[str, float]:
    """Return <g_i, sum_j g_j> of gradients (P,) by reward; None is that of a reward by which nothing can be learned, and has none.

    >>> influences({"a": torch.tensor([1.0, 0.0]), "b": torch.tensor([-0.5, 2.0]), "c": None})
    {'a': 0.5, 'b': 3.75, 'c': 0.0}
    """
    there = [own for own in gradients.values() if own is not None]
    total = torch.stack(there).sum(dim=0) if there else None
    return {name: 0.0 if own is None or total is None else float(own @ total) for name, own in gradients.items()}
