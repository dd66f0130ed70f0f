"""Krea 2: a flow-matching transformer on packed 2x2 patches of Qwen-Image's latents, with many layers of Qwen3-VL at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from diffalign.core.types import Condition
from diffalign.models.backbones.latents import Standardised
from diffalign.models.backbones.packed import Packed
from diffalign.models.backbones.places import Place, Published, plain
from diffalign.models.backbones.pretrained import ATTENTION
from diffalign.models.diffusion.path import Path

DISTILLED = 1.15  # logarithm of the shift of the model that was distilled to few steps, whatever the size
_ATTENTION = plain(attn__to_q="attn.wq", attn__to_k="attn.wk", attn__to_v="attn.wv", attn__to_out__0="attn.wo", attn__to_gate="attn.gate")
_BLOCK = {**_ATTENTION, **{f"ff.{name}": Place(f"mlp.{name}") for name in ("gate", "up", "down")}}


class Krea2(Packed):
    """A transformer that predicts the velocity."""

    lora_targets = ATTENTION
    reads_padding = False
    names = ("krea-2", "")
    side = 1024
    published = Published(
        {
            "transformer_blocks": ("blocks", _BLOCK),
            "text_fusion.layerwise_blocks": ("txtfusion.layerwise_blocks", _BLOCK),
            "text_fusion.refiner_blocks": ("txtfusion.refiner_blocks", _BLOCK),
        },
        {
            **plain(
                img_in="first", time_mod_proj="tproj.1", final_layer__linear="last.linear", text_fusion__projector="txtfusion.projector"
            ),
            **plain(time_embed__linear_1="tmlp.0", time_embed__linear_2="tmlp.2", txt_in__linear_1="txtmlp.1", txt_in__linear_2="txtmlp.3"),
        },
    )
    _latents = Standardised()

    @torch.no_grad()
    def encode_prompt(self, prompts: Sequence[str]) -> Condition:
        """Return {"prompt_embeds": (N, L, S, D) of S layers of the language model, "prompt_attention_mask": (N, L)}.

        The padding stands between the prompt and the end of the stock pipeline's template.
        """
        words, mask = self._pipe.get_text_hidden_states(list(prompts), self._sequence_length(), self._pipe.text_encoder.device)
        return {"prompt_embeds": words, "prompt_attention_mask": mask}

    def predict(self, model: nn.Module, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Return the velocity like x (N, C, H, W)."""
        dtype: Any = self.denoiser.dtype
        words = condition["prompt_embeds"].to(dtype)
        with self._autocast():
            out = model(
                hidden_states=self.packed(x.to(dtype)),
                encoder_hidden_states=words,
                timestep=t.float(),
                position_ids=self._pipe.prepare_position_ids(words.shape[1], x.shape[2] // 2, x.shape[3] // 2, x.device),
                encoder_attention_mask=condition["prompt_attention_mask"] > 0,
                return_dict=False,
            )[0]
        return self._unpacked_like(out, x)

    def _path(self) -> Path:
        path = self._flow_path()
        if self._pipe.config.is_distilled and "shift" not in self.settings.flow:
            return replace(path, shift=math.exp(DISTILLED), dynamic=None)
        return path

    @classmethod
    def guidance(cls, guidance_scale: float, true_cfg: bool) -> dict[str, Any]:  # noqa: ARG003  # it has real guidance alone
        """Return the scale by which the pipeline goes on from the conditional branch: one less than it is elsewhere."""
        return {"guidance_scale": max(guidance_scale - 1.0, 0.0)}
