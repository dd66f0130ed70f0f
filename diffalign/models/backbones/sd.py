"""Stable Diffusion 1.x and 2.x (epsilon, v-prediction, zero-terminal-SNR checkpoints), and the embedded tiny-sd."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from diffalign.core.types import Condition
from diffalign.models.backbones.clip_unet import ClipUNet


class StableDiffusion(ClipUNet):
    """A UNet with one CLIP text encoder."""

    pipeline_options: ClassVar = {"safety_checker": None, "requires_safety_checker": False}
    lora_naming = "kohya_diffusers"

    @torch.no_grad()
    def encode_prompt(self, prompts: Sequence[str]) -> Condition:
        """Return {"prompt_embeds": (N, L, D)}: last hidden states of the text encoder; tokens where that is trained."""
        if (tokens := self._tokens_of(prompts)) is not None:
            return tokens
        encoder = self._pipe.text_encoder
        return {"prompt_embeds": self._pipe.encode_prompt(list(prompts), encoder.device, 1, False)[0]}

    def read(self, encoders: Mapping[str, Any], tokens: Condition) -> Condition:
        """Return {"prompt_embeds": (N, L, D)} of tokens."""
        return {"prompt_embeds": encoders["text_encoder"](tokens["input_ids"]).last_hidden_state}

    def predict(self, model: nn.Module, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Return the UNet's output like x (N, C, H, W)."""
        dtype: Any = self.denoiser.dtype
        further = {**self._told(condition, len(x)), **self._conditioning(condition)}
        with self._autocast():
            return model(x.to(dtype), t, self._words(condition), **further, return_dict=False)[0]

    @classmethod
    def architecture(cls, config: Mapping[str, Any], scheduler: Mapping[str, Any]) -> tuple[str, str]:
        """Return the names of version 1, or of one of the two kinds of version 2, which OpenCLIP's width tells."""
        velocity = scheduler.get("prediction_type") == "v_prediction"
        if config.get("cross_attention_dim") == 1024:
            return f"stable-diffusion-v2-{'768-v' if velocity else '512'}", "sd_v2_v" if velocity else "sd_v2"
        return "stable-diffusion-v1", "sd_v1_v" if velocity else "sd_v1"
