"""Trajectories: from clean latents to the point (x_t, t) where the network is asked, and the output that would be right there."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from diffalign.core.types import Generator, Noised, Predict
from diffalign.models.diffusion.inversion import ddim_inversion
from diffalign.models.diffusion.path import Path, mix, target
from diffalign.models.diffusion.random import normal
from diffalign.models.diffusion.self_rollout import self_rollout

Trajectory = Callable[..., Noised]


def forward(
    x0: Tensor,
    predict: Predict,  # noqa: ARG001  # asks no network
    path: Path,
    generator: Generator,
    *,
    share_noise: bool = True,
    noisiest: float = 1.0,
) -> Noised:
    """Return x0 (B,K,C,H,W) noised at one random t a record; no network call.

    With `share_noise` all candidates of a record get the same noise, as every released Diffusion-DPO does (less variance in the
    margin); without it each gets its own, as the paper's equation 14 is written. Times are of the `noisiest` share (0, 1] of the path's:
    there it is decided what is in a picture, and later only how it is painted. DGPO's release trains on the first 4 to 6 of 10 steps.
    """
    t = path.sample_t(len(x0), generator, noisiest).to(x0.device)
    drawn = 1 if share_noise else x0.shape[1]
    noise = normal((len(x0), drawn, *x0.shape[2:]), generator).to(x0).expand_as(x0)
    return Noised(mix(path, x0, noise, t), t, target(path, x0, noise, t), path.weight(t).to(x0))


TRAJECTORIES: dict[str, Trajectory] = {
    "forward": forward,
    "ddim_inversion": ddim_inversion,
    "self_rollout": self_rollout,
}
