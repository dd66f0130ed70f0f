"""Steps of samplers with noise, and how likely a step was.

All released samplers have the form x' = alpha' x0 + c noise + std eps, where (x0, noise) is what the network's output implies, and differ
in c and std alone. t and `to` are (B,), `to` nearer to the image; latents are (B, K, C, H, W).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from diffalign.core.errors import ConfigError
from diffalign.models.diffusion.path import Path, posterior_deviation, split

Kind = Literal["ddim", "cps", "flow_sde", "dance", "ode"]
KINDS: tuple[Kind, ...] = ("ddim", "cps", "flow_sde", "dance", "ode")
OF_FLOWS = ("flow_sde", "dance")
Density = Literal["density", "bare"]


def kernel(path: Path, t: Tensor, to: Tensor, kind: Kind, level: float, *, second: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return (c, std) of a step, (B,) each, float64.

    Args:
        path: the schedule. Raises ConfigError for a kind of flows on another one.
        t: where the step begins.
        to: where it ends; of a discrete schedule, a time below zero has the level of zero.
        kind: ddim (2010.02502 eq. 16, on any path; DDPO, D3PO, SPO), cps (2509.05952), flow_sde (Flow-GRPO, 2505.05470), dance
            (DanceGRPO, 2505.07818; BranchGRPO) or ode, which has no noise. ddim and cps keep the path's noise level; flow_sde and dance
            have more of it after large steps, and still add noise to the finished image.
        level: eta of ddim (1) and dance (0.3), a of cps (0.8) and flow_sde (0.7).
        second: of flow_sde, the time that stands for t in its denominator where t is 1: the schedule's second one.
    """
    if kind in OF_FLOWS and path.prediction != "velocity":
        raise ConfigError(f"sampler `{kind}` is for flow models; this one predicts {path.prediction}: choose ddim or cps")
    (alpha, sigma), (alpha_to, sigma_to) = path.level(t), path.level(to)
    if kind == "ode":
        return sigma_to, torch.zeros_like(sigma_to)
    if kind == "cps":
        return sigma_to * math.cos(level * math.pi / 2.0), sigma_to * math.sin(level * math.pi / 2.0)
    if kind == "ddim":
        std = level * posterior_deviation(alpha_to, sigma_to, alpha, sigma)
        return (sigma_to.square() - std.square()).clamp(min=0.0).sqrt(), std
    std = diffusion(t, kind, level, second=second) * (t - to).double().sqrt()
    return sigma_to - std.square() / (2.0 * sigma), std


def diffusion(t: Tensor, kind: Kind, level: float, *, second: Tensor | None = None) -> Tensor:
    """Return the diffusion coefficient s (B,) of flow_sde, level * sqrt(t / (1 - t)), or of dance, `level`: std is s times sqrt(t - to)."""
    t = t.double()
    if kind == "dance":
        return torch.full_like(t, level)
    below = t if second is None else torch.where(t == 1.0, second.double(), t)
    return level * (t / (1.0 - below)).sqrt()


def step(
    path: Path, x: Tensor, output: Tensor, t: Tensor, to: Tensor, kind: Kind, level: float, *, second: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the mean of x' (B, K, C, H, W), with the output's gradient, and its std (B,); see `kernel`."""
    c, std = kernel(path, t, to, kind, level, second=second)
    x0, noise = split(path, x, output, t)
    shape = (-1,) + (1,) * (x.dim() - 1)
    return path.level(to)[0].to(x).view(shape) * x0 + c.to(x).view(shape) * noise, std.to(x)


def log_density(x_to: Tensor, mean: Tensor, std: Tensor, form: Density = "density") -> Tensor:
    """Return the mean over C, H, W of log N(x'; mean, std^2), (B, K), with the mean's gradient; x' has none.

    A mean, as in all releases: clip ranges are made for it. "bare" is -(x' - mean)^2, as CPS has it, without variance: a step's weight in
    the ratio is then 2 std^2 times the true one. Raises ConfigError for a step without noise, which has no density.
    """
    square = (x_to.detach() - mean).square().flatten(2).mean(dim=2)
    if form == "bare":
        return -square
    if not (std > 0.0).all():
        raise ConfigError("a sampler step has no noise, so it has no density and cannot be trained: leave it out (often the last one)")
    std = std[:, None]
    return -square / (2.0 * std.square()) - std.log() - math.log(2.0 * math.pi) / 2.0


def divergence(mean: Tensor, other: Tensor, std: Tensor) -> Tensor:
    """Return the mean over C, H, W of KL(N(mean, std^2) || N(other, std^2)), (B, K), with the gradient of `mean`.

    Flow-GRPO's release multiplies it by the step's duration t - to.
    """
    return (mean - other.detach()).square().flatten(2).mean(dim=2) / (2.0 * std[:, None].square())
