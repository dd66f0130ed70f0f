"""A UNet with the CLIP text encoders that are trained beside it, called with the tokens of prompts, so that a gradient reaches both.

Layers, names and files are those of diffusers' scripts with `--train_text_encoder`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diffalign.core.types import Condition
from diffalign.models.controlled import Controlled

LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj")
TOKENS = {"tokenizer": "input_ids", "tokenizer_2": "input_ids_2"}  # under which name a tokenizer's tokens are in a condition
# (encoders by their name in the pipeline, condition with tokens) -> condition with embeddings
Read = Callable[[Mapping[str, Any], Condition], Condition]


class Prompted(nn.Module):
    """A UNet and its text encoders, called as the UNet alone, but with tokens in place of embeddings."""

    def __init__(self, unet: Any, encoders: Mapping[str, nn.Module], read: Read) -> None:
        super().__init__()
        self.unet, self.encoders, self._read = unet, nn.ModuleDict(encoders), read

    @property
    def dtype(self) -> torch.dtype:
        """Return the dtype of the UNet, which is that of its inputs."""
        return self.unet.dtype

    @property
    def config(self) -> Mapping[str, Any]:
        """Return the config of the UNet."""
        return self.unet.config

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        tokens: Condition,
        *,
        added_cond_kwargs: dict[str, Tensor] | None = None,
        return_dict: bool = False,
    ) -> tuple[Tensor]:
        """Return the UNet's output for samples (N, C, H, W) and the tokens of their prompts, as `tokenized` returns them."""
        words = {name: value.to(self.dtype) for name, value in self._read(self.encoders, tokens).items()}  # pyright: ignore[reportArgumentType]  # a ModuleDict is a mapping
        added = added_cond_kwargs and {**added_cond_kwargs, "text_embeds": words["pooled_prompt_embeds"]}
        return self.unet(sample, timestep, words["prompt_embeds"], added_cond_kwargs=added, return_dict=return_dict)


def tokenized(pipe: Any, prompts: Sequence[str], device: torch.device) -> Condition:
    """Return the tokens (N, L) of prompts for each tokenizer of a stock pipeline, as it makes them."""
    tokens = dict[str, Tensor]()
    for part, name in TOKENS.items():
        if (tokenizer := pipe.components.get(part)) is not None:
            padded = {"padding": "max_length", "max_length": tokenizer.model_max_length, "truncation": True}
            tokens[name] = tokenizer(list(prompts), **padded, return_tensors="pt").input_ids.to(device)
    return tokens


def networks(denoiser: nn.Module) -> tuple[nn.Module, ...]:
    """Return the networks of diffusers in a denoiser: itself, one and its ControlNet, or the UNet beside text encoders."""
    if isinstance(denoiser, Controlled):
        return denoiser.denoiser, denoiser.controlnet
    return (denoiser.unet,) if isinstance(denoiser, Prompted) else (denoiser,)


def text_encoders(denoiser: nn.Module) -> dict[str, Any]:
    """Return the text encoders in a denoiser by their name in the pipeline; none where they are not trained."""
    return dict(denoiser.encoders.items()) if isinstance(denoiser, Prompted) else {}
