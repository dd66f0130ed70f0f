"""Ovis-Image (2511.22982): Flux's blocks with gated MLPs, on Qwen3 alone, whose tokens have places of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import OvisImagePipeline
from torch import Tensor, nn

from diffalign.core.types import Condition
from diffalign.models.backbones.packed import Packed
from diffalign.models.backbones.places import ADDED_QKV, FINAL, QKV, Published, embedder, fused, fused_qkv, plain


class OvisImage(Packed):
    """A transformer that predicts the velocity. The first layer of a double block's MLP has no place: it is two modules there."""

    names = ("ovis-image", "")
    lora_naming = "comfyui"  # no script of kohya's trains it
    published = Published(
        {
            "transformer_blocks": (
                "double_blocks",
                {
                    **fused_qkv("img_attn.qkv", "attn"),
                    **fused_qkv("txt_attn.qkv", "attn", ADDED_QKV),
                    **plain(attn__to_out__0="img_attn.proj", attn__to_add_out="txt_attn.proj"),
                    **plain(ff__net__2="img_mlp.down_proj", ff_context__net__2="txt_mlp.down_proj"),
                    **plain(norm1__linear="img_mod.lin", norm1_context__linear="txt_mod.lin"),
                },
            ),
            "single_transformer_blocks": (
                "single_blocks",
                {
                    **fused("linear1", *(f"attn.{name}" for name in QKV), "proj_mlp", shares=(1, 1, 1, 8)),
                    **plain(proj_out="linear2", norm__linear="modulation.lin"),
                },
            ),
        },
        {
            **FINAL,
            **plain(x_embedder="img_in", context_embedder="semantic_txt_in"),
            **embedder("timestep_embedder", "time_in", "in_layer", "out_layer"),
        },
    )

    @torch.no_grad()
    def encode_prompt(self, prompts: Sequence[str]) -> Condition:
        """Return {"prompt_embeds": (N, L, D)} of the language model's last layer, zeros behind a prompt; they are read as well."""
        options = {"do_classifier_free_guidance": False, "max_sequence_length": self._sequence_length()}
        return {"prompt_embeds": self._pipe.encode_prompt(list(prompts), device=self._pipe.text_encoder.device, **options)[0]}

    def predict(self, model: nn.Module, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Return the velocity like x (N, C, H, W)."""
        dtype: Any = self.denoiser.dtype
        count, _, height, width = x.shape
        words = condition["prompt_embeds"].to(dtype)
        places = torch.arange(words.shape[1], device=x.device, dtype=dtype)
        with self._autocast():
            out = model(
                hidden_states=self.packed(x.to(dtype)),
                timestep=t.float(),  # the transformer multiplies by 1000 itself
                encoder_hidden_states=words,
                txt_ids=torch.stack([torch.zeros_like(places), places, places], dim=1),
                img_ids=OvisImagePipeline._prepare_latent_image_ids(count, height // 2, width // 2, x.device, dtype),
                return_dict=False,
            )[0]
        return self._unpacked_like(out, x)
