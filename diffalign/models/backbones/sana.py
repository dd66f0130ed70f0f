"""SANA (2410.10629) and 1.5 (2501.18427): a flow-matching transformer with linear attention, on deeply compressed latents, with Gemma 2."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from diffalign.core.types import Condition
from diffalign.models.backbones.latents import Compressed
from diffalign.models.backbones.places import Published, embedder, fused, fused_qkv, plain
from diffalign.models.backbones.pretrained import Pretrained
from diffalign.models.diffusion.path import Path


class Sana(Pretrained):
    """A transformer that predicts the velocity at whole times of a thousand."""

    component = "transformer"
    reads_padding = False
    names = ("sana", "")
    call_options: ClassVar = {"use_resolution_binning": False, "clean_caption": False}
    lora_naming = "comfyui"  # no script of kohya's trains it
    published = Published(
        {
            "transformer_blocks": (
                "blocks",
                {
                    **fused_qkv("attn.qkv", "attn1"),
                    **fused("cross_attn.kv_linear", "attn2.to_k", "attn2.to_v"),
                    **plain(attn1__to_out__0="attn.proj", attn2__to_q="cross_attn.q_linear", attn2__to_out__0="cross_attn.proj"),
                    **plain(ff__conv_inverted="mlp.inverted_conv.conv", ff__conv_point="mlp.point_conv.conv"),
                },
            )
        },
        {
            **plain(patch_embed__proj="x_embedder.proj", proj_out="final_layer.linear", time_embed__linear="t_block.1"),
            **plain(caption_projection__linear_1="y_embedder.y_proj.fc1", caption_projection__linear_2="y_embedder.y_proj.fc2"),
            **embedder("time_embed.emb.timestep_embedder", "t_embedder.mlp"),
        },
    )
    _latents = Compressed()

    @torch.no_grad()
    def encode_prompt(self, prompts: Sequence[str]) -> Condition:
        """Return {"prompt_embeds": (N, L, D), "prompt_attention_mask": (N, L)} of Gemma.

        Before a prompt stands the stock pipeline's instruction, of whose states the first is kept; the empty prompt is alone, as in its
        unconditional branch.
        """
        words, masks = zip(*map(self._encoded, prompts), strict=True)
        return {"prompt_embeds": torch.cat(words), "prompt_attention_mask": torch.cat(masks)}

    def _encoded(self, prompt: str) -> tuple[Tensor, Tensor]:
        pipe, length = self._pipe, self._sequence_length()
        instruction = inspect.signature(type(pipe).__call__).parameters["complex_human_instruction"].default if prompt else None
        encoder, kept = pipe.text_encoder, [0, *range(1 - length, 0)]
        options = {"max_sequence_length": length, "complex_human_instruction": instruction}
        words, mask = pipe._get_gemma_prompt_embeds(prompt, encoder.device, encoder.dtype, **options)
        return words[:, kept], mask[:, kept]

    def predict(self, model: nn.Module, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Return the velocity like x (N, C, H, W)."""
        denoiser: Any = self.denoiser
        dtype = denoiser.dtype
        with self._autocast():
            return model(
                x.to(dtype),
                encoder_hidden_states=condition["prompt_embeds"].to(dtype),
                encoder_attention_mask=condition["prompt_attention_mask"],
                timestep=(1000.0 * t.float()).long() * denoiser.config.timestep_scale,
                return_dict=False,
            )[0]

    def _path(self) -> Path:
        return self._flow_path(self._pipe.transformer.config.patch_size)
