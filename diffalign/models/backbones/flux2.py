"""FLUX.2: a flow-matching transformer on batch-normalised patches of 32 channels, with three layers of Qwen3 (klein) or Mistral 3 (dev)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import Flux2KleinPipeline
from torch import Tensor, nn

from diffalign.core.types import Condition
from diffalign.models.backbones.latents import BatchNormalised
from diffalign.models.backbones.places import ADDED_QKV, FINAL, Place, Published, embedder, fused_qkv, plain
from diffalign.models.backbones.pretrained import JOINT, Pretrained
from diffalign.models.diffusion.path import Path
from diffalign.models.diffusion.shift import EmpiricalShift

MOST = 1024 * 1024  # pixels of an input picture
CLOCK = "time_guidance_embed.timestep_embedder"


class Flux2(Pretrained):
    """A transformer that predicts the velocity of tokens, each a place of the latent. Dev is told a guidance scale, klein is not."""

    component = "transformer"
    lora_targets = (*JOINT, "to_qkv_mlp_proj")
    names = ("flux-2", "")
    published = Published(
        {
            "transformer_blocks": (
                "double_blocks",
                {
                    **fused_qkv("img_attn.qkv", "attn"),
                    **fused_qkv("txt_attn.qkv", "attn", ADDED_QKV),
                    **plain(attn__to_out__0="img_attn.proj", attn__to_add_out="txt_attn.proj"),
                    **plain(ff__linear_in="img_mlp.0", ff__linear_out="img_mlp.2"),
                    **plain(ff_context__linear_in="txt_mlp.0", ff_context__linear_out="txt_mlp.2"),
                },
            ),
            "single_transformer_blocks": ("single_blocks", plain(attn__to_qkv_mlp_proj="linear1", attn__to_out="linear2")),
        },
        {
            **FINAL,
            **plain(x_embedder="img_in", context_embedder="txt_in", single_stream_modulation__linear="single_stream_modulation.lin"),
            **{f"double_stream_modulation_{name}.linear": Place(f"double_stream_modulation_{name}.lin") for name in ("img", "txt")},
            **embedder(CLOCK, "time_in", "in_layer", "out_layer"),
            **embedder("time_guidance_embed.guidance_embedder", "guidance_in", "in_layer", "out_layer"),
        },
    )
    picture = "optional"
    _latents = BatchNormalised()
    _shift = EmpiricalShift

    @torch.no_grad()
    def encode_prompt(self, prompts: Sequence[str]) -> Condition:
        """Return {"prompt_embeds": (N, L, 3 D)} of three layers of the language model; padding is read as well."""
        encoder, denoiser = self._pipe.text_encoder, self._pipe.transformer
        device = encoder.device
        if (words := self._rehearsed(encoder, len(prompts), self._sequence_length(), denoiser.config.joint_attention_dim)) is not None:
            return {"prompt_embeds": words}
        return {"prompt_embeds": self._pipe.encode_prompt(list(prompts), device, max_sequence_length=self._sequence_length())[0]}

    def predict(self, model: nn.Module, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Return the velocity like x (N, C, H, W)."""
        denoiser: Any = self.denoiser
        dtype = denoiser.dtype
        latents = self._sequence(x, condition)
        words, pipeline = condition["prompt_embeds"].to(dtype), Flux2KleinPipeline  # both pipelines lay tokens out alike
        guidance = x.new_full((len(x),), self.settings.guidance_scale) if denoiser.config.guidance_embeds else None
        with self._autocast():
            out = model(
                hidden_states=torch.cat([pipeline._pack_latents(one.to(dtype)) for one in latents], dim=1),
                timestep=t.float(),  # the transformer multiplies by 1000 itself
                encoder_hidden_states=words,
                txt_ids=pipeline._prepare_text_ids(words).to(x.device),
                img_ids=_places(latents).to(x.device),
                guidance=guidance,
                return_dict=False,
            )[0]
        return out[:, : x.shape[2] * x.shape[3]].mT.unflatten(2, x.shape[2:])

    def reference_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the size itself, of pictures above a megapixel one as large, in whole tokens."""
        scale = min(1.0, math.sqrt(MOST / (height * width)))
        high, wide = (int(side * scale) // self._factor * self._factor for side in (height, width))
        return high, wide

    def _path(self) -> Path:
        return self._flow_path(1)

    @classmethod
    def sample_size(cls, pipe: Any) -> int:
        """Return the pipeline's default; the transformer's config has none."""
        return int(pipe.default_sample_size) // cls._latents.patch

    @classmethod
    def unpacked(cls, pipe: Any, latents: Tensor, height: int, width: int) -> Tensor:
        """Return latents (N, C, H, W) of tokens of pictures of so many pixels."""
        side = cls.factor(pipe)
        return latents.mT.unflatten(2, (height // side, width // side))


def _places(latents: Sequence[Tensor]) -> Tensor:
    """Return the ids (N, L, 4) of latents behind each other: of one that is denoised, and of input pictures."""
    x, *references = latents
    ids = [Flux2KleinPipeline._prepare_latent_ids(x)]
    if references:
        one = Flux2KleinPipeline._prepare_image_ids([reference[:1] for reference in references])
        ids.append(one.expand(len(x), -1, -1))
    return torch.cat(ids, dim=1)
