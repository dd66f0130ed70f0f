"""Paths from data to noise, x_t = alpha x0 + sigma noise, and the three network outputs. `split` and `mix` are inverses.

t is (B,); latents are (B, ...). Levels are float64, and cast to the latent's dtype only when they multiply it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from diffalign.core.errors import ConfigError
from diffalign.core.types import Generator, Noised
from diffalign.models.diffusion.random import integers, uniform
from diffalign.models.diffusion.shift import DynamicShift, Shift

Prediction = Literal["epsilon", "v_prediction", "sample", "velocity"]


class Path(Protocol):
    """The schedule of a model: noise levels by time, and what its network predicts."""

    @property
    def prediction(self) -> Prediction:
        """Return what the network's output means."""
        ...

    def at(self, height: int, width: int) -> Path:
        """Return the path of latents of so many rows and columns."""
        ...

    def level(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return (alpha, sigma), (B,) each, float64."""
        ...

    def sample_t(self, count: int, generator: Generator, noisiest: float = 1.0) -> Tensor:
        """Return training times (B,), of the `noisiest` share of them. Raises ConfigError for a share outside (0, 1]."""
        ...

    def later(self, t: Tensor, share: Tensor) -> Tensor:
        """Return times (B,) behind `t`, at `share` in [0, 1) of what is left until pure noise."""
        ...

    def weight(self, t: Tensor) -> Tensor:
        """Return the weight (B,) of the squared error at training times, float64."""
        ...

    def solver_times(self, steps: int) -> Tensor:
        """Return the times (steps + 1,) at which a solver of so many steps stops, from clean to pure noise."""
        ...

    def inversion_times(self, steps: int, t: Tensor) -> Tensor:
        """Return the times (B, steps + 1) between which an inversion towards `t` moves, ascending from clean."""
        ...


@dataclass(frozen=True, slots=True)
class VPPath:
    """Variance-preserving path with discrete times 0..T-1: alpha^2 = alphas_cumprod, sigma^2 = 1 - alphas_cumprod."""

    alphas_cumprod: Tensor  # (T,) float64
    prediction: Prediction = "epsilon"
    times: tuple[int, ...] = ()  # the only training times, for distilled models (SDXL-Turbo: 249, 499, 749, 999); empty = all

    def at(self, height: int, width: int) -> VPPath:  # noqa: ARG002  # the protocol's
        """Return the path itself: its noise does not depend on the size."""
        return self

    @classmethod
    def from_config(cls, config: Mapping[str, Any], times: tuple[int, ...] = ()) -> VPPath:
        """Return the path of a diffusers scheduler config; `rescale_betas_zero_snr` is respected.

        Raises ConfigError for a schedule or a prediction type that this path does not know.
        """
        kind = str(config.get("_class_name", ""))
        if "sigma_data" in config or "EDM" in kind or kind.startswith("FlowMatch"):
            raise ConfigError(f"scheduler config: a {kind or 'scheduler of EDM'}; expected one of a variance-preserving path, such as DDIM")
        prediction = config.get("prediction_type", "epsilon")
        if prediction not in ("epsilon", "v_prediction", "sample"):
            raise ConfigError(f"scheduler config: prediction_type is `{prediction}`; expected epsilon, v_prediction or sample")
        alphas_cumprod = torch.cumprod(1.0 - _betas(config), dim=0)
        if config.get("rescale_betas_zero_snr"):
            alphas_cumprod = zero_terminal_snr(alphas_cumprod)
        return cls(alphas_cumprod, prediction, times)

    def level(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return (alpha, sigma), (B,) each, float64; t are integers below T, and those below zero have the level of zero.

        So has a diffusers scheduler with set_alpha_to_one false, as all Stable Diffusions are configured.
        """
        acp = self.alphas_cumprod.to(t.device)[t.clamp(min=0)]
        return acp.sqrt(), (1.0 - acp).sqrt()

    def sample_t(self, count: int, generator: Generator, noisiest: float = 1.0) -> Tensor:
        """Return uniform integer times (B,), of the `noisiest` share of them, one at least."""
        every = len(self.times or self.alphas_cumprod)
        few = max(1, round(check_share(noisiest) * every))
        index = every - few + integers(few, count, generator)
        return torch.tensor(self.times, device=index.device)[index] if self.times else index

    def later(self, t: Tensor, share: Tensor) -> Tensor:
        """Return integer times in t+1..T-1."""
        left = len(self.alphas_cumprod) - 1 - t
        return t + 1 + (share.to(t.device) * left).long()

    def weight(self, t: Tensor) -> Tensor:
        """Return ones."""
        return torch.ones_like(t, dtype=torch.float64)

    def solver_times(self, steps: int) -> Tensor:
        """Return 0 and the last time of each of `steps` equal parts: 0, 39, 79, ..., 999 for 25 (DDIM, "trailing")."""
        count = self._check_steps(steps)
        ends = (count * torch.arange(1, steps + 1, dtype=torch.float64) / steps).round().long() - 1
        return torch.cat([torch.zeros(1, dtype=torch.long), ends])

    def inversion_times(self, steps: int, t: Tensor) -> Tensor:
        """Return 1-D, 1, 1+D, ... with D = T // steps: DDIM's "leading" grid with steps_offset 1, the same for every t."""
        spacing = self._check_steps(steps) // steps
        return (1 + spacing * torch.arange(-1, steps, device=t.device)).expand(len(t), -1)

    def _check_steps(self, steps: int) -> int:
        count = len(self.alphas_cumprod)
        if not 1 <= steps <= count:
            raise ConfigError(f"`steps` is {steps}; expected 1 to {count}, the schedule's number of times")
        return count


@dataclass(frozen=True, slots=True)
class FlowPath:
    """Straight path of flow matching, t in [0, 1], 1 = noise: alpha = 1 - t, sigma = t, velocity = noise - x0 (2210.02747).

    Training times have the density of SD3 (2403.03206, section 3.1) and are then moved towards noise by `shift`, as solver times are
    (eq. 23): larger pictures need more noise to be hidden as well.
    """

    density: Literal["logit_normal", "uniform", "mode"] = "uniform"
    logit_mean: float = 0.0  # above zero: more noise
    logit_std: float = 1.0
    mode_scale: float = 1.29
    shift: float = 1.0
    transport: bool = False
    prediction: Prediction = "velocity"
    dynamic: Shift | None = None  # what `shift` is at other sizes
    size: tuple[int, int] | None = field(default=None, compare=False)  # rows and columns that `shift` is for, where it is dynamic
    terminal: float | None = None  # the last noisy time of a solver, to which the others are stretched
    cleanest: float | None = None  # where a solver's last step begins, before the shift; one of `steps` even parts if None
    count: int | None = None  # of times before the shift, to which a solver rounds its own down

    @classmethod
    def from_config(
        cls,
        config: Mapping[str, Any],
        height: int,
        width: int,
        patch: int = 2,
        rule: Callable[[Mapping[str, Any], int], Shift] = DynamicShift.from_config,
        **constants: Any,
    ) -> FlowPath:
        """Return the path of a diffusers flow scheduler's config, for latents of so many rows and columns; `constants` go on top.

        `rule` makes the shift that depends on the size of the config and of how many latent rows a token has.
        """
        kind = str(config.get("_class_name", "FlowMatch"))
        if config.get("use_flow_sigmas") and config.get("prediction_type") == "flow_prediction":
            return cls(**{"shift": float(config.get("flow_shift", 1.0)), **constants})
        if not kind.startswith("FlowMatch"):
            raise ConfigError(f"scheduler config: a {kind}; expected one of flow matching, such as FlowMatchEulerDiscreteScheduler")
        constants = {"terminal": config.get("shift_terminal"), **constants}
        if "shift" in constants or not config.get("use_dynamic_shifting"):
            return cls(**{"shift": float(config.get("shift", 1.0)), **constants})
        return cls(dynamic=rule(config, patch), **constants).at(height, width)

    def at(self, height: int, width: int) -> FlowPath:
        """Return the path of latents of another size: larger pictures are shifted further where the shift is dynamic."""
        return self if self.dynamic is None else replace(self, shift=self.dynamic.of(height, width), size=(height, width))

    def level(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return (1 - t, t), float64."""
        return 1.0 - t.double(), t.double()

    def sample_t(self, count: int, generator: Generator, noisiest: float = 1.0) -> Tensor:
        """Return times (B,) in [0.001, 1], float64; below, dividing by the noise level would magnify rounding errors."""
        u = check_share(noisiest) * uniform(count, generator)
        if self.density == "logit_normal":
            t = torch.sigmoid(self.logit_mean + self.logit_std * torch.special.ndtri(1.0 - noisiest + u))
        elif self.density == "mode":
            t = 1.0 - u - self.mode_scale * (torch.cos(math.pi / 2 * u) ** 2 - 1.0 + u)
        else:
            t = 1.0 - u
        return shifted(t, self.shift).clamp(min=1e-3)

    def later(self, t: Tensor, share: Tensor) -> Tensor:
        """Return times in (t, 1]."""
        return 1.0 - (1.0 - t) * share.to(t.device)

    def weight(self, t: Tensor) -> Tensor:
        """Return ones; with `transport` (1 - t)^2, which turns a velocity's squared error into that of the noise.

        That is the exact counterpart of Diffusion-DPO; its authors found that it invites artefacts, and advise against (2501.13918).
        """
        return (1.0 - t.double()) ** 2 if self.transport else torch.ones_like(t, dtype=torch.float64)

    def solver_times(self, steps: int) -> Tensor:
        """Return 0, and `steps` even times from `cleanest` (1/steps) to 1, shifted, and stretched so that the second is `terminal`.

        They are those of the stock pipeline: most choose their times, with `cleanest` None. SD3 leaves them to its scheduler, which ends at
        its smallest time, of 1000 and already shifted where the shift does not depend on the size; CogView4 ends at the first of 1000.
        """
        shift = self.shift if self.dynamic is None or self.size is None else self.dynamic.of(*self.size, steps)
        scale = 1.0 if self.count is None else float(self.count)
        noisy = torch.linspace(scale, scale / steps if self.cleanest is None else scale * self.cleanest, steps, dtype=torch.float64)
        noisy = noisy if self.count is None else noisy.floor() / self.count
        times = shifted(torch.cat([noisy, torch.zeros(1, dtype=torch.float64)]).flip(0), shift)
        if self.terminal and steps > 1:
            times[1:] = 1.0 - (1.0 - times[1:]) * (1.0 - self.terminal) / (1.0 - times[1])
        return times

    def inversion_times(self, steps: int, t: Tensor) -> Tensor:
        """Return `steps` parts of [0, t], even before the shift: every record ends exactly at its own t."""
        even = torch.linspace(0.0, 1.0, steps + 1, dtype=torch.float64, device=t.device)
        return torch.cat([shifted(shifted(t, 1.0 / self.shift)[:, None] * even[:-1], self.shift), t[:, None]], dim=1)


def check_share(noisiest: float) -> float:
    """Return the share of the training times that are drawn from. Raises ConfigError outside (0, 1]."""
    if not 0.0 < noisiest <= 1.0:
        raise ConfigError(f"`noisiest` is {noisiest:g}; expected a share of the training times, above 0 and at most 1")
    return noisiest


def shifted(t: Tensor, shift: float) -> Tensor:
    """Return s t / (1 + (s - 1) t): 0 and 1 stay where they are; the shift 1/s undoes s."""
    return shift * t / (1.0 + (shift - 1.0) * t)


def _betas(config: Mapping[str, Any]) -> Tensor:
    """Return diffusers' beta tables (T,) recomputed in float64."""
    trained = config.get("trained_betas")
    if trained is not None:
        return torch.tensor(trained, dtype=torch.float64)
    count = int(config.get("num_train_timesteps", 1000))
    first, last = float(config.get("beta_start", 0.0001)), float(config.get("beta_end", 0.02))
    kind = config.get("beta_schedule", "linear")
    if kind == "linear":
        return torch.linspace(first, last, count, dtype=torch.float64)
    if kind == "scaled_linear":
        return torch.linspace(first**0.5, last**0.5, count, dtype=torch.float64) ** 2
    if kind == "squaredcos_cap_v2":
        edges = torch.arange(count + 1, dtype=torch.float64) / count
        bar = torch.cos((edges + 0.008) / 1.008 * math.pi / 2) ** 2
        return (1.0 - bar[1:] / bar[:-1]).clamp(max=0.999)
    raise ConfigError(f"scheduler config: beta_schedule is `{kind}`; expected linear, scaled_linear or squaredcos_cap_v2")


def zero_terminal_snr(alphas_cumprod: Tensor) -> Tensor:
    """Return the table shifted and scaled so that it ends at exactly zero (Lin et al., 2305.08891, algorithm 1)."""
    root = alphas_cumprod.sqrt()
    return ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2


def levels(path: Path, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return (alpha, sigma) at t (B,), in the dtype of `like` (B, ...) and shaped to multiply it."""
    shape = (-1,) + (1,) * (like.dim() - 1)
    alpha, sigma = path.level(t)
    return alpha.to(like).view(shape), sigma.to(like).view(shape)


def mix(path: Path, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """Return x_t = alpha x0 + sigma noise, like x0."""
    alpha, sigma = levels(path, t, x0)
    return alpha * x0 + sigma * noise


def target(path: Path, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """Return the output that a perfect network gives at mix(x0, noise, t): noise, v = alpha noise - sigma x0, x0 or velocity."""
    if path.prediction == "epsilon":
        return noise
    if path.prediction == "sample":
        return x0
    if path.prediction == "velocity":
        return noise - x0
    alpha, sigma = levels(path, t, x0)
    return alpha * noise - sigma * x0


def split(path: Path, x: Tensor, output: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Return (x0, noise) that the network's `output` at (x, t) implies: mix(x0, noise, t) = x and target(x0, noise, t) = output.

    An epsilon output tells nothing about x0 where alpha is zero, nor a sample output about noise where sigma is: those are not
    finite there.
    """
    alpha, sigma = levels(path, t, x)
    if path.prediction == "epsilon":
        return (x - sigma * output) / alpha, output
    if path.prediction == "sample":
        return output, (x - alpha * output) / sigma
    if path.prediction == "velocity":
        return x - sigma * output, x + alpha * output
    return alpha * x - sigma * output, sigma * x + alpha * output


def advance(path: Path, x: Tensor, output: Tensor, t: Tensor, to: Tensor) -> Tensor:
    """Return x moved from time `t` to time `to` along the network's own (x0, noise): DDIM for VP paths, Euler for flows.

    The identity up to rounding where `to` equals `t` (2010.02502 eq. 12 with eta 0).
    """
    x0, noise = split(path, x, output, t)
    return mix(path, x0, noise, to)


def posterior_deviation(alpha: Tensor, sigma: Tensor, alpha_noisy: Tensor, sigma_noisy: Tensor) -> Tensor:
    """Return the standard deviation of q(x | x_noisy, x0), x at a noise level between x0 and the noisier point (2010.02502 eq. 16)."""
    share = torch.where((sigma_noisy > 0.0) & (alpha > 0.0), alpha_noisy * sigma / (alpha * sigma_noisy), 1.0)
    return sigma * (1.0 - share.square()).clamp(min=0.0).sqrt()


def landed(path: Path, x0: Tensor, x: Tensor, t: Tensor) -> Noised:
    """Return the point x as one of the path at time t: its target is that of the noise which x0 and x imply, whatever made x."""
    alpha, sigma = levels(path, t, x)
    return Noised(x, t, target(path, x0, (x - alpha * x0) / sigma, t), path.weight(t).to(x))
