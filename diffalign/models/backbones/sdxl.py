"""Stable Diffusion XL (2307.01952): two text encoders, and a UNet that is told each image's original size and crop.

Playground v2.5 (2402.17245) is one of it with the noise of EDM and latents that are centred by channel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from diffalign.core.types import Condition
from diffalign.models.backbones.base import BackboneSettings
from diffalign.models.backbones.clip_unet import ClipUNet
from diffalign.models.backbones.latents import Centred
from diffalign.models.diffusion.edm import EDMPath, is_edm
from diffalign.models.diffusion.path import Path


class StableDiffusionXL(ClipUNet):
    """A UNet with two CLIP text encoders, pooled embeddings and time ids."""

    names = ("stable-diffusion-xl-v1-base", "sdxl_base_v1-0")
    pipeline_options: ClassVar = {"add_watermarker": False}

    def __init__(self, pipe: Any, name: str, precision: torch.dtype = torch.float32, settings: BackboneSettings | None = None) -> None:
        if pipe.vae.config.get("latents_mean") is not None:
            self._latents = Centred(_data(pipe))
        super().__init__(pipe, name, precision, settings)

    @torch.no_grad()
    def encode_prompt(self, prompts: Sequence[str]) -> Condition:
        """Return {"prompt_embeds": (N, L, D), "pooled_prompt_embeds": (N, P)}.

        The empty prompt is zeros where the pipeline's config says so, as in its unconditional branch and in SDXL's own training.
        """
        if (tokens := self._tokens_of(prompts)) is not None:
            return {**tokens, "has_words": torch.tensor([[bool(prompt)] for prompt in prompts], device=self.device)}
        device = self._pipe.text_encoder_2.device
        embeds, _, pooled, _ = self._pipe.encode_prompt(list(prompts), device=device, do_classifier_free_guidance=False)
        if self._pipe.config.force_zeros_for_empty_prompt:
            has_words = torch.tensor([bool(prompt) for prompt in prompts], device=device)
            embeds, pooled = embeds * has_words[:, None, None], pooled * has_words[:, None]
        return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}

    def read_layers(self) -> dict[str, int]:
        """Return how many layers of each text encoder the UNet reads: of the first one all but the last."""
        layers = super().read_layers()
        return layers | {"text_encoder": layers["text_encoder"] - 1}

    def read(self, encoders: Mapping[str, Any], tokens: Condition) -> Condition:
        """Return {"prompt_embeds": (N, L, D), "pooled_prompt_embeds": (N, P)} of tokens."""
        one = encoders["text_encoder"](tokens["input_ids"], output_hidden_states=True)
        two = encoders["text_encoder_2"](tokens["input_ids_2"], output_hidden_states=True)
        embeds, pooled = torch.cat([one.hidden_states[-2], two.hidden_states[-2]], dim=-1), two.text_embeds
        if self._pipe.config.force_zeros_for_empty_prompt:
            has_words = tokens["has_words"]  # (N, 1)
            embeds, pooled = embeds * has_words[..., None], pooled * has_words
        return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}

    def predict(self, model: nn.Module, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Return the UNet's output like x (N, C, H, W); without "frames" the images count as uncropped ones of x's own size."""
        dtype: Any = self.denoiser.dtype
        edm = self.path if isinstance(self.path, EDMPath) else None
        height, width = (side * self._factor for side in x.shape[2:])
        whole = torch.tensor([height, width, 0, 0, height, width], device=x.device)
        frames = condition["frames"] if "frames" in condition else whole.expand(len(x), -1)
        added = {**self._pooled(condition), "time_ids": frames.to(x.device, torch.float32)}
        added |= self._told(condition, len(x)).get("added_cond_kwargs", {})
        further = {"added_cond_kwargs": added, **self._conditioning(condition)}
        with self._autocast():
            label = t if edm is None else edm.label(t)
            out = model(x.to(dtype), label, self._words(condition), **further, return_dict=False)[0]
        return -out if edm is not None and edm.negated else out

    def _path(self) -> Path:
        config = self._pipe.scheduler.config
        return EDMPath.from_config(config) if is_edm(config) else super()._path()

    @classmethod
    def unpacked(cls, pipe: Any, latents: Tensor, height: int, width: int) -> Tensor:  # noqa: ARG003  # of families that pack
        """Return latents of the pipeline in the units of the path."""
        return latents / _data(pipe)


def _data(pipe: Any) -> float:
    """Return the deviation of a pipeline's latents on EDM's path, 1 on any other."""
    config = pipe.scheduler.config
    return EDMPath.from_config(config).data if is_edm(config) else 1.0
