"""DDIM inversion: clean latents carried towards noise by the network itself, so that x_t belongs to the image (InPO, SmPO)."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from diffalign.core.errors import ConfigError
from diffalign.core.types import Generator, Noised, Predict
from diffalign.models.diffusion.path import Path, advance, landed, levels, posterior_deviation
from diffalign.models.diffusion.random import normal

End = Literal["grid", "exact"]
Label = Literal["source", "destination", "own"]


def ddim_inversion(
    x0: Tensor,
    predict: Predict,
    path: Path,
    generator: Generator,
    *,
    steps: int = 10,
    renoise: int = 0,
    eta: float = 0.0,
    end: End = "grid",
    label: Label = "source",
) -> Noised:
    """Return x0 (B,K,C,H,W) inverted towards one random t a record, and the noise that x0 and x_t then imply.

    `steps` and the rest are those of `invert`. Source: InPO (2503.18454) and SmPO (2506.02698) as released.
    """
    t = path.sample_t(len(x0), generator).to(x0.device)

    def draw() -> Tensor:
        return normal(tuple(x0.shape), generator).to(x0)

    x = invert(x0, predict, path, t, draw, steps=steps, renoise=renoise, eta=eta, end=end, label=label)
    return landed(path, x0, x, t)


def invert(
    x0: Tensor,
    predict: Predict,
    path: Path,
    t: Tensor,
    draw: Callable[[], Tensor],
    *,
    steps: int,
    renoise: int = 0,
    eta: float = 0.0,
    end: End = "grid",
    label: Label = "source",
) -> Tensor:
    """Return x (B,K,C,H,W) after the moves that lead from x0 towards t (B,); no network call once every record has arrived.

    Records move between the times of `path.inversion_times`, all from the first, and the network is called for those that still move.
    `end`: "exact" shortens or lengthens the last move to end at t; "grid" ends at a time of the grid, behind t where moves are labelled
    by their source (diffusers up to 0.21, which the releases pin) and before it where by their destination (diffusers from 0.22).
    `label` is the time that the network is told: the source's, the destination's, or each point's `own`. `renoise` is the number of
    further outputs, each at the point reached so far, that are averaged with the first; one of them with label "own" is Heun's method.
    `eta` adds eta * sqrt(DDIM variance) * draw() after every move.
    """
    if steps < 1 or renoise < 0 or not 0.0 <= eta < math.inf:
        constants = f"steps {steps}, renoise {renoise}, eta {eta}"
        raise ConfigError(f"ddim_inversion: {constants}; expected at least one step, and the others not below zero")
    begin, to, moving = _moves(path, t, steps, end, label)
    x, moves = x0, moving.sum(dim=1).cpu()  # all of a record's moves come first
    for k in range(int(moves.max())):
        rows = (moves > k).nonzero()[:, 0].to(x.device)
        of_rows = predict if len(rows) == len(x) else partial(predict, rows=rows)
        here, there = begin[rows, k], to[rows, k]
        moved = _move(path, x[rows], of_rows, here, there, renoise, label)
        if eta > 0.0:
            moved = moved + eta * _spread(path, moved, here, there, label) * draw()[rows]
        x = x.index_copy(0, rows, moved)
    return x


def _moves(path: Path, t: Tensor, steps: int, end: End, label: Label) -> tuple[Tensor, Tensor, Tensor]:
    """Return where every move begins and ends, and whether it is made, (B, steps) each."""
    times = path.inversion_times(steps, t)
    begin, to = times[:, :-1], times[:, 1:]
    if t.is_floating_point():  # continuous times are divided anew for every t, and end there
        return begin, to, begin < t[:, None]
    if end == "grid":
        return begin, to, (to if label == "destination" else begin) < t[:, None]
    moving = begin < t[:, None]
    last = moving & (moving.sum(dim=1, keepdim=True) == torch.arange(1, steps + 1, device=t.device))
    return begin, torch.where(last, t[:, None], to), moving


def _move(path: Path, x: Tensor, predict: Predict, begin: Tensor, to: Tensor, renoise: int, label: Label) -> Tensor:
    """Return x moved from `begin` to `to` along the mean of its outputs."""
    output = predict(x, to if label == "destination" else begin)
    for n in range(1, renoise + 1):
        there = advance(path, x, output, begin, to)
        output = (n * output + predict(there, begin if label == "source" else to)) / (n + 1)
    return advance(path, x, output, begin, to)


def _spread(path: Path, x: Tensor, begin: Tensor, to: Tensor, label: Label) -> Tensor:
    """Return the standard deviation of q(x_begin | x_to, x0), broadcast to x (DDIM, 2010.02502 eq. 16, for any path)."""
    if label == "destination":  # the release, run on diffusers from 0.22, takes the variance of the move that would come next
        begin, to = to, (2 * to - begin).clamp(max=path.solver_times(1)[-1].item())
    return posterior_deviation(*levels(path, begin, x), *levels(path, to, x))
