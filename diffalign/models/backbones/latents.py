"""What an autoencoder's latents are to a denoiser: drawn from a posterior or not, scaled by one number or channel by channel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional


class Latents(Protocol):
    """How an autoencoder is asked for the latents (N, C, H, W) that a denoiser sees, and for pictures of them."""

    @property
    def patch(self) -> int:
        """Return how many of the autoencoder's rows are one row of the latent."""
        ...

    def channels(self, vae: Any) -> int:
        """Return C."""
        ...

    def facts(self, vae: Any) -> tuple[Any, ...]:
        """Return what the scaling depends on besides the weights: caches are keyed by it."""
        ...

    def encode(self, vae: Any, pixels: Tensor, noise: Tensor) -> Tensor:
        """Return float32 latents of pixels (N, 3, h, w) in [-1, 1]; `noise`, like the latents, draws from the posterior."""
        ...

    def decode(self, vae: Any, latents: Tensor) -> Tensor:
        """Return pixels (N, 3, h, w) of latents."""
        ...


@dataclass(frozen=True, slots=True)
class Scaled:
    """Latents of an AutoencoderKL, moved and scaled by one number each."""

    patch: int = 1

    def channels(self, vae: Any) -> int:
        """Return the autoencoder's."""
        return int(vae.config.latent_channels)

    def facts(self, vae: Any) -> tuple[Any, ...]:
        """Return scale and shift."""
        return vae.config.scaling_factor, vae.config.get("shift_factor")

    def encode(self, vae: Any, pixels: Tensor, noise: Tensor) -> Tensor:
        """Return (z - shift) * scale."""
        return (drawn(vae.encode(pixels).latent_dist, noise) - (vae.config.get("shift_factor") or 0.0)) * vae.config.scaling_factor

    def decode(self, vae: Any, latents: Tensor) -> Tensor:
        """Return pixels of z = latents / scale + shift."""
        return vae.decode(latents / vae.config.scaling_factor + (vae.config.get("shift_factor") or 0.0)).sample


@dataclass(frozen=True, slots=True)
class Centred:
    """Latents of an AutoencoderKL with a mean and a deviation for each channel, as Stable Diffusion XL's pipeline decodes them."""

    data: float = 1.0  # what they are divided by on top: the deviation that they have in EDM
    patch: int = 1

    def channels(self, vae: Any) -> int:
        """Return the autoencoder's."""
        return int(vae.config.latent_channels)

    def facts(self, vae: Any) -> tuple[Any, ...]:
        """Return means, deviations, scale, and what is divided by."""
        return tuple(vae.config.latents_mean), tuple(vae.config.latents_std), vae.config.scaling_factor, self.data

    def encode(self, vae: Any, pixels: Tensor, noise: Tensor) -> Tensor:
        """Return (z - mean) / deviation * scale / data."""
        mean, deviation = self._moments(vae, noise)
        return (drawn(vae.encode(pixels).latent_dist, noise) - mean) / deviation

    def decode(self, vae: Any, latents: Tensor) -> Tensor:
        """Return pixels of z = latents * data / scale * deviation + mean."""
        mean, deviation = self._moments(vae, latents)
        return vae.decode(latents * deviation + mean).sample

    def _moments(self, vae: Any, like: Tensor) -> tuple[Tensor, Tensor]:
        mean, deviation, scale, data = self.facts(vae)
        mean, deviation = (torch.tensor(values).to(like).view(-1, 1, 1) for values in (mean, deviation))
        return mean, deviation * data / scale


@dataclass(frozen=True, slots=True)
class Standardised:
    """Latents of an autoencoder of films (Qwen-Image's), with a mean and a deviation for each channel; a picture is a film of one."""

    patch: int = 1

    def channels(self, vae: Any) -> int:
        """Return the autoencoder's."""
        return int(vae.config.z_dim)

    def facts(self, vae: Any) -> tuple[Any, ...]:
        """Return means and deviations."""
        return tuple(vae.config.latents_mean), tuple(vae.config.latents_std)

    def encode(self, vae: Any, pixels: Tensor, noise: Tensor) -> Tensor:
        """Return (z - mean) / deviation."""
        mean, deviation = self._moments(vae, noise)
        return (drawn(vae.encode(pixels[:, :, None]).latent_dist, noise[:, :, None])[:, :, 0] - mean) / deviation

    def decode(self, vae: Any, latents: Tensor) -> Tensor:
        """Return pixels of z = latents * deviation + mean."""
        mean, deviation = self._moments(vae, latents)
        return vae.decode((latents * deviation + mean)[:, :, None]).sample[:, :, 0]

    def _moments(self, vae: Any, like: Tensor) -> tuple[Tensor, Tensor]:
        mean, deviation = (torch.tensor(values).to(like).view(-1, 1, 1) for values in self.facts(vae))
        return mean, deviation


@dataclass(frozen=True, slots=True)
class BatchNormalised:
    """Latents of an AutoencoderKLFlux2: 2x2 patches, whose channels have the mean and the deviation of its batch norm."""

    patch: int = 2
    eps: float | None = None  # that of the autoencoder's config, if not given

    def channels(self, vae: Any) -> int:
        """Return the channels of a patch."""
        return int(vae.config.latent_channels) * self.patch**2

    def facts(self, vae: Any) -> tuple[Any, ...]:
        """Return what is added to the variance."""
        return (self.eps or vae.config.batch_norm_eps,)

    def encode(self, vae: Any, pixels: Tensor, noise: Tensor) -> Tensor:
        """Return (patches of z - mean) / deviation."""
        z = drawn(vae.encode(pixels).latent_dist, functional.pixel_shuffle(noise, self.patch))
        mean, deviation = self._moments(vae, z)
        return (functional.pixel_unshuffle(z, self.patch) - mean) / deviation

    def decode(self, vae: Any, latents: Tensor) -> Tensor:
        """Return pixels of z, whose patches are latents * deviation + mean."""
        mean, deviation = self._moments(vae, latents)
        return vae.decode(functional.pixel_shuffle(latents * deviation + mean, self.patch)).sample

    def _moments(self, vae: Any, like: Tensor) -> tuple[Tensor, Tensor]:
        variance = vae.bn.running_var.to(like) + self.facts(vae)[0]
        return vae.bn.running_mean.to(like).view(-1, 1, 1), variance.sqrt().view(-1, 1, 1)


@dataclass(frozen=True, slots=True)
class Compressed:
    """Latents of an AutoencoderDC, which has no posterior."""

    patch: int = 1

    def channels(self, vae: Any) -> int:
        """Return the autoencoder's."""
        return int(vae.config.latent_channels)

    def facts(self, vae: Any) -> tuple[Any, ...]:
        """Return the scale."""
        return (vae.config.scaling_factor,)

    def encode(self, vae: Any, pixels: Tensor, noise: Tensor) -> Tensor:  # noqa: ARG002  # there is nothing to draw
        """Return z * scale."""
        return vae.encode(pixels).latent.float() * vae.config.scaling_factor

    def decode(self, vae: Any, latents: Tensor) -> Tensor:
        """Return pixels of z = latents / scale."""
        return vae.decode(latents / vae.config.scaling_factor).sample


def drawn(posterior: Any, noise: Tensor) -> Tensor:
    """Return mean + deviation * noise, float32."""
    return posterior.mean.float() + posterior.std.float() * noise
