"""The path of EDM (2206.00364), which Playground v2.5 and CosXL were trained on, as a variance-preserving one with v-prediction.

EDM noises data x of deviation d as x + sigma n, and asks its network F(c_in (x + sigma n), ln(sigma) / 4) for c_out F = x - c_skip (x +
sigma n) (table 1). With x0 = x / d, alpha = d / r, s = sigma / r and r^2 = sigma^2 + d^2, c_in (x + sigma n) is alpha x0 + s n, and F is
s x0 - alpha n: v with the other sign, and v itself where diffusers' EDM schedulers call it `v_prediction`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffalign.core.errors import ConfigError
from diffalign.core.types import Generator
from diffalign.models.diffusion.path import Prediction, check_share
from diffalign.models.diffusion.random import uniform


@dataclass(frozen=True, slots=True)
class EDMPath:
    """Path whose times are EDM's sigma, in [low, high] and 0 for clean; latents are those of the stock pipeline over `data`.

    Training times are even in the spacing of the solver's, as in diffusers' scripts of EDM; the weight 1 of v is EDM's own, 1 / c_out^2 on
    the denoised latent.
    """

    low: float = 0.002
    high: float = 80.0
    data: float = 0.5  # deviation of the stock pipeline's latents
    rho: float | None = 7.0  # of Karras' spacing (eq. 5); None for the exponential one
    negated: bool = True  # the network gives v with the other sign
    prediction: Prediction = "v_prediction"

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> EDMPath:
        """Return the path of the config of a diffusers EDM scheduler. Raises ConfigError for a prediction type that they lack."""
        prediction = config.get("prediction_type", "epsilon")
        if prediction not in ("epsilon", "v_prediction"):
            raise ConfigError(f"scheduler config: prediction_type is `{prediction}`; expected epsilon or v_prediction of EDM")
        return cls(
            low=float(config.get("sigma_min", 0.002)),
            high=float(config.get("sigma_max", 80.0)),
            data=float(config.get("sigma_data", 0.5)),
            rho=float(config.get("rho", 7.0)) if config.get("sigma_schedule", "karras") == "karras" else None,
            negated=prediction == "epsilon",
        )

    def at(self, height: int, width: int) -> EDMPath:  # noqa: ARG002  # the protocol's
        """Return the path itself: its noise does not depend on the size."""
        return self

    def level(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return (d / r, t / r) with r^2 = t^2 + d^2, float64."""
        sigma = t.double()
        whole = (sigma.square() + self.data**2).sqrt()
        return self.data / whole, sigma / whole

    def label(self, t: Tensor) -> Tensor:
        """Return what the network is told of the times (B,), ln(t) / 4, float32; of a time below `low` that of `low`."""
        return (0.25 * t.double().clamp(min=self.low).log()).float()

    def sample_t(self, count: int, generator: Generator, noisiest: float = 1.0) -> Tensor:
        """Return times (B,) in [low, high], float64."""
        return self._sigma(1.0 - check_share(noisiest) * uniform(count, generator))

    def later(self, t: Tensor, share: Tensor) -> Tensor:
        """Return times in [t, high), in the spacing of the solver's."""
        place = self._place(t)
        return self._sigma(place + (1.0 - place) * share.to(t.device))

    def weight(self, t: Tensor) -> Tensor:
        """Return ones."""
        return torch.ones_like(t, dtype=torch.float64)

    def solver_times(self, steps: int) -> Tensor:
        """Return 0 and `steps` times from `low` to `high`, as diffusers' EDM schedulers; of one step, `high` alone."""
        places = 1.0 - torch.linspace(0.0, 1.0, steps, dtype=torch.float64).flip(0)
        return torch.cat([torch.zeros(1, dtype=torch.float64), self._sigma(places)])

    def inversion_times(self, steps: int, t: Tensor) -> Tensor:
        """Return `steps` parts of [low, t] in the spacing of the solver's: every record ends exactly at its own t."""
        even = torch.linspace(0.0, 1.0, steps + 1, dtype=torch.float64, device=t.device)
        return torch.cat([self._sigma(self._place(t)[:, None] * even[:-1]), t[:, None]], dim=1)

    def _sigma(self, place: Tensor) -> Tensor:
        """Return the times at places in [0, 1] of the spacing, 0 for `low`."""
        if self.rho is None:
            return self.low * (self.high / self.low) ** place
        first, last = self.low ** (1.0 / self.rho), self.high ** (1.0 / self.rho)
        return (first + place * (last - first)) ** self.rho

    def _place(self, t: Tensor) -> Tensor:
        """Undo `_sigma`; times below `low` have its place."""
        sigma = t.double().clamp(min=self.low)
        if self.rho is None:
            return (sigma / self.low).log() / torch.tensor(self.high / self.low, dtype=torch.float64).log()
        first, last = self.low ** (1.0 / self.rho), self.high ** (1.0 / self.rho)
        return (sigma ** (1.0 / self.rho) - first) / (last - first)


def is_edm(config: Mapping[str, Any]) -> bool:
    """Return whether a scheduler's config is one of EDM.

    >>> is_edm({"_class_name": "EDMEulerScheduler"}), is_edm({"_class_name": "EulerDiscreteScheduler"})
    (True, False)
    """
    return "sigma_data" in config or "EDM" in str(config.get("_class_name", ""))
