"""Self-generated targets: the model runs a part of its own sampling under a chosen guidance, and its own estimate is the target.

Self-NPO (2505.11777), whose released code calls this truncated diffusion fine-tuning (TDFT).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from diffalign.core.errors import ConfigError
from diffalign.core.types import Generator, Noised, Predict
from diffalign.models.diffusion.path import Path, advance, landed, levels, mix, split
from diffalign.models.diffusion.random import integers, normal, uniform


def self_rollout(
    x0: Tensor,
    predict: Predict,
    path: Path,
    generator: Generator,
    *,
    start: Literal["noise", "image"] = "noise",
    steps: int = 24,
    grid: int = 25,
    guidance: float = -1.0,
) -> Noised:
    """Return points (B,1,C,H,W) noised anew after a rollout, with the network's guided estimate of x0 as what is right there.

    `start` "noise" begins at pure noise, needs no image (x0 may have K = 0) and takes 1 to `steps` of `grid` solver steps, drawn by
    record; "image" begins at candidate 0 noised at a random time of the grid and takes exactly `steps` (5 as released), fewer at
    the clean end. `guidance` w asks for output + w (output - output under the empty prompt); at -1 the conditional pass is not
    run, at 0 the other one is not.
    """
    if not 1 <= steps <= grid or not math.isfinite(guidance):
        raise ConfigError(f"self_rollout: steps {steps}, guidance {guidance}; expected 1 to `grid` ({grid}) steps, and a finite guidance")
    if start == "image" and x0.shape[1] == 0:
        raise ConfigError("self_rollout: `start` is image, and the records have none; set transforms to [orient, preferred]")
    count, shape = len(x0), (len(x0), 1, *x0.shape[2:])
    times = path.solver_times(grid).to(x0.device)
    if path.prediction == "epsilon" and path.level(times[-1:])[0].item() == 0.0:
        raise ConfigError("self_rollout: the schedule ends at zero signal, where an epsilon model says nothing about the image")
    if start == "noise":
        index = torch.full((count,), grid, device=x0.device)
        moves = 1 + integers(steps, count, generator).to(x0.device)
        x = normal(shape, generator).to(x0)
    else:
        index = 1 + integers(grid, count, generator).to(x0.device)
        moves = torch.full_like(index, steps)
        x = mix(path, x0[:, :1], normal(shape, generator).to(x0), times[index])

    x, t, clean = rollout(x, index, moves, predict, path, times, guidance)
    later = path.later(t, uniform(count, generator))
    return landed(path, clean, renoise(path, x, t, later, normal(shape, generator).to(x0)), later)


def rollout(
    x: Tensor, index: Tensor, moves: Tensor, predict: Predict, path: Path, times: Tensor, guidance: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (x, t, x0 estimate) after `moves` (B,) solver steps from times[index] (B,); a record at times[0] stays there.

    The estimate is always made anew at the time that was reached (the release reuses the one before where a whole batch has
    arrived at the clean end).
    """
    for k in range(int(torch.minimum(moves, index).max())):
        moving = (moves > k) & (index > 0)
        output = guided(x, times[index], predict, guidance)
        moved = advance(path, x, output, times[index], times[(index - 1).clamp(min=0)])
        x = torch.where(moving.view(-1, 1, 1, 1, 1), moved, x)
        index = index - moving.long()
    t = times[index]
    return x, t, split(path, x, guided(x, t, predict, guidance), t)[0]


def guided(x: Tensor, t: Tensor, predict: Predict, guidance: float) -> Tensor:
    """Return output + guidance * (output - output under the empty prompt), without the pass that cancels."""
    if guidance == 0.0:
        return predict(x, t)
    empty = predict(x, t, empty=True)
    return empty if guidance == -1.0 else (1.0 + guidance) * predict(x, t) - guidance * empty


def renoise(path: Path, x: Tensor, t: Tensor, later: Tensor, noise: Tensor) -> Tensor:
    """Return a draw of q(x_later | x_t): x itself noised further, not the estimate of x0 (any path; needs alpha(t) above zero)."""
    (alpha, sigma), (alpha_to, sigma_to) = levels(path, t, x), levels(path, later, x)
    scale = alpha_to / alpha
    return scale * x + (sigma_to.square() - (scale * sigma).square()).clamp(min=0.0).sqrt() * noise
