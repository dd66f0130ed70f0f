"""Qwen-Image (2508.02324): a flow-matching MMDiT on packed 2x2 patches, with Qwen2.5-VL, and the latents of a film's autoencoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diffalign.core.types import Condition
from diffalign.models.backbones.latents import Standardised
from diffalign.models.backbones.packed import Packed
from diffalign.models.backbones.places import Published


class QwenImage(Packed):
    """A transformer that predicts the velocity."""

    names = ("qwen-image", "")
    published = Published(as_diffusers=True)
    _latents = Standardised()

    @torch.no_grad()
    def encode_prompt(self, prompts: Sequence[str]) -> Condition:
        """Return {"prompt_embeds": (N, L, D), "prompt_attention_mask": (N, L)} of the language model's last layer.

        The prompt stands in the stock pipeline's template, whose first tokens are left out.
        """
        pipe, length = self._pipe, self._sequence_length()
        skipped, encoder = pipe.prompt_template_encode_start_idx, pipe.text_encoder
        chats = [pipe.prompt_template_encode.format(prompt) for prompt in prompts]
        tokens = pipe.tokenizer(chats, padding=True, max_length=length + skipped, truncation=True, return_tensors="pt").to(encoder.device)
        states = encoder(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, output_hidden_states=True).hidden_states[-1]
        mask = tokens.attention_mask[:, skipped:].bool()
        padding = length - mask.shape[1]
        words = nn.functional.pad(states[:, skipped:] * mask[..., None], (0, 0, 0, padding))
        return {"prompt_embeds": words, "prompt_attention_mask": nn.functional.pad(mask, (0, padding))}

    def predict(self, model: nn.Module, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Return the velocity like x (N, C, H, W)."""
        dtype: Any = self.denoiser.dtype
        latents = self._sequence(x, condition)
        words, mask = self._without_padding(condition["prompt_embeds"].to(dtype), condition["prompt_attention_mask"])
        with self._autocast():
            out = model(
                hidden_states=self._tokens_of(latents, dtype),
                timestep=t.float(),  # the transformer multiplies by 1000 itself
                encoder_hidden_states=words,
                encoder_hidden_states_mask=mask,
                img_shapes=[[(1, one.shape[2] // 2, one.shape[3] // 2) for one in latents]] * len(x),
                return_dict=False,
            )[0]
        return self._unpacked_like(out, x)

    @classmethod
    def guidance(cls, guidance_scale: float, true_cfg: bool) -> dict[str, Any]:  # noqa: ARG003  # it has real guidance alone
        """Return the scale of both branches, which needs a negative prompt."""
        return {"true_cfg_scale": guidance_scale, "negative_prompt": ""}
