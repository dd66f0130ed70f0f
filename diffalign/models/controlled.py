"""Denoisers with a ControlNet beside them: called as the denoiser alone but for one more argument, the conditioning image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


class Controlled(nn.Module):
    """A denoiser with a ControlNet, whose outputs are added to what its blocks hand on."""

    def __init__(self, denoiser: Any, controlnet: Any) -> None:
        super().__init__()
        self.denoiser, self.controlnet = denoiser, controlnet

    @property
    def dtype(self) -> torch.dtype:
        """Return the dtype of the denoiser, which is that of its inputs."""
        return self.denoiser.dtype

    @property
    def config(self) -> Mapping[str, Any]:
        """Return the config of the denoiser."""
        return self.denoiser.config

    @property
    def reads_latents(self) -> bool:
        """Return whether the ControlNet reads latents of the conditioning image, and not its pixels."""
        return False


class ControlledUNet(Controlled):
    """A UNet, to whose skip connections the ControlNet adds."""

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        *,
        conditioning_image: Tensor,
        added_cond_kwargs: dict[str, Tensor] | None = None,
        return_dict: bool = False,
    ) -> tuple[Tensor]:
        """Return the UNet's output for samples (N, C, H, W), whose conditioning images (N, 3, h, w) are pixels in [0, 1]."""
        shared = {"added_cond_kwargs": added_cond_kwargs, "return_dict": return_dict}
        down, middle = self.controlnet(sample, timestep, encoder_hidden_states, conditioning_image.to(sample), **shared)
        residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
        return self.denoiser(sample, timestep, encoder_hidden_states, **residuals, **shared)


class ControlledSD3(Controlled):
    """The transformer of Stable Diffusion 3, to whose blocks the ControlNet adds."""

    @property
    def reads_latents(self) -> bool:
        """Return that it does."""
        return True

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        pooled_projections: Tensor,
        timestep: Tensor,
        *,
        conditioning_image: Tensor,
        return_dict: bool = False,
    ) -> tuple[Tensor]:
        """Return the transformer's output for latents (N, C, H, W), with those of the conditioning images, alike in shape."""
        blank = self.controlnet.config.force_zeros_for_pooled_projection  # as the stock pipeline asks
        (samples,) = self.controlnet(
            hidden_states=hidden_states,
            controlnet_cond=conditioning_image.to(hidden_states),
            encoder_hidden_states=encoder_hidden_states,
            pooled_projections=torch.zeros_like(pooled_projections) if blank else pooled_projections,
            timestep=timestep,
            return_dict=False,
        )
        shared = {"block_controlnet_hidden_states": samples, "return_dict": return_dict}
        return self.denoiser(hidden_states, encoder_hidden_states, pooled_projections, timestep, **shared)


class ControlledFlux(Controlled):
    """The transformer of Flux, to whose blocks of both kinds the ControlNet adds."""

    @property
    def reads_latents(self) -> bool:
        """Return whether it has no layers of its own that read pixels."""
        return self.controlnet.input_hint_block is None

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        guidance: Tensor | None,
        pooled_projections: Tensor,
        encoder_hidden_states: Tensor,
        txt_ids: Tensor,
        img_ids: Tensor,
        *,
        conditioning_image: Tensor,
        return_dict: bool = False,
    ) -> tuple[Tensor]:
        """Return the transformer's output for tokens (N, L, D), with those of conditioning images, or pixels (N, 3, h, w) in [-1, 1]."""
        shared = {
            "hidden_states": hidden_states,
            "timestep": timestep,
            "pooled_projections": pooled_projections,
            "encoder_hidden_states": encoder_hidden_states,
            "txt_ids": txt_ids,
            "img_ids": img_ids,
        }
        own = guidance if self.controlnet.config.guidance_embeds else None
        double, single = self.controlnet(**shared, controlnet_cond=conditioning_image.to(hidden_states), guidance=own, return_dict=False)
        return self.denoiser(
            **shared,
            guidance=guidance,
            controlnet_block_samples=double,
            controlnet_single_block_samples=single,
            controlnet_blocks_repeat=not self.reads_latents,
            return_dict=return_dict,
        )
