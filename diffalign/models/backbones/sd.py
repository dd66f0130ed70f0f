"""Stable Diffusion 1.x and 2.x (epsilon, v-prediction, zero-terminal-SNR checkpoints), and the embedded tiny-sd."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diffalign.core.types import Condition
from diffalign.models.backbones.pretrained import Pretrained


class StableDiffusion(Pretrained):
    """A UNet with one CLIP text encoder."""

    @torch.no_grad()
    def encode_prompt(self, prompts: Sequence[str]) -> Condition:
        """Return {"prompt_embeds": (N, L, D)}: last hidden states of the text encoder."""
        encoder = self._pipe.text_encoder
        return {"prompt_embeds": self._pipe.encode_prompt(list(prompts), encoder.device, 1, False)[0]}

    def predict(self, model: nn.Module, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Return the UNet's output like x (N, C, H, W)."""
        dtype: Any = self.denoiser.dtype
        with self._autocast():
            return model(x.to(dtype), t, condition["prompt_embeds"].to(dtype), **self._told(condition, len(x)), return_dict=False)[0]
