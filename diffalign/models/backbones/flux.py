"""Flux.1, dev and schnell: a flow-matching transformer on packed 2x2 patches; dev is told a guidance scale."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import FluxPipeline
from torch import Tensor, nn

from diffalign.core.types import Condition
from diffalign.models.backbones.pretrained import JOINT, Pretrained
from diffalign.models.diffusion.path import FlowPath, Path


class Flux(Pretrained):
    """A transformer that predicts the velocity."""

    component = "transformer"
    lora_targets = JOINT

    @torch.no_grad()
    def encode_prompt(self, prompts: Sequence[str]) -> Condition:
        """Return {"prompt_embeds": (N, L, D) of T5, "pooled_prompt_embeds": (N, P) of CLIP}."""
        embeds, pooled, _ = self._pipe.encode_prompt(
            list(prompts), device=self._pipe.text_encoder.device, max_sequence_length=self._sequence_length()
        )
        return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}

    def predict(self, model: nn.Module, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Return the velocity like x (N, C, H, W). A guidance-distilled model is told `guidance_scale`, the same everywhere."""
        denoiser: Any = self.denoiser
        dtype, (count, channels, height, width) = denoiser.dtype, x.shape
        words, pooled = (condition[name].to(dtype) for name in ("prompt_embeds", "pooled_prompt_embeds"))
        places = FluxPipeline._prepare_latent_image_ids(count, height // 2, width // 2, x.device, dtype)
        guidance = x.new_full((count,), self.settings.guidance_scale) if denoiser.config.guidance_embeds else None
        with self._autocast():
            out = model(
                hidden_states=FluxPipeline._pack_latents(x.to(dtype), count, channels, height, width),
                timestep=t.float(),  # the transformer multiplies by 1000 itself
                guidance=guidance,
                pooled_projections=pooled,
                encoder_hidden_states=words,
                txt_ids=torch.zeros(words.shape[1], 3, device=x.device, dtype=dtype),
                img_ids=places,
                **self._told(condition, count),
                return_dict=False,
            )[0]
        return FluxPipeline._unpack_latents(out, height * self._factor, width * self._factor, self._factor)

    def _sample_size(self) -> int:
        return int(self._pipe.default_sample_size)

    def _path(self) -> Path:
        side = self.resolution // self._factor
        return FlowPath.from_config(self._pipe.scheduler.config, side, side, **self.settings.flow)
