"""Kolors: Stable Diffusion XL's UNet with ChatGLM3 in place of its two text encoders, whose states the UNet itself projects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from diffalign.core.errors import ConfigError
from diffalign.core.types import Condition
from diffalign.models.backbones.base import BackboneSettings
from diffalign.models.backbones.sdxl import StableDiffusionXL

LENGTH = 256  # tokens of a prompt, with the padding that the UNet reads as well


class Kolors(StableDiffusionXL):
    """A UNet with ChatGLM3, whose last token's state stands for the pooled embedding, and time ids."""

    names = ("kolors", "")
    pipeline_options: ClassVar = {}

    def __init__(self, pipe: Any, name: str, precision: torch.dtype = torch.float32, settings: BackboneSettings | None = None) -> None:
        length = None if settings is None else settings.max_sequence_length
        if length not in (None, LENGTH):
            raise ConfigError(
                f"`max_sequence_length` is {length}; prompts of Kolors have {LENGTH} tokens, whatever its pipeline is called with"
            )
        super().__init__(pipe, name, precision, settings)

    @torch.no_grad()
    def encode_prompt(self, prompts: Sequence[str]) -> Condition:
        """Return {"prompt_embeds": (N, L, D) of the layer before the last, "pooled_prompt_embeds": (N, D) of the last token}."""
        encoder = self._pipe.text_encoder
        if (words := self._rehearsed(encoder, len(prompts), LENGTH, encoder.config.hidden_size)) is not None:
            return {"prompt_embeds": words, "pooled_prompt_embeds": words[:, -1]}
        options = {"do_classifier_free_guidance": False, "max_sequence_length": LENGTH}
        words, _, pooled, _ = self._pipe.encode_prompt(list(prompts), encoder.device, **options)
        return {"prompt_embeds": words, "pooled_prompt_embeds": pooled}
