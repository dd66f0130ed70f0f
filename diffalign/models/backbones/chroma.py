"""Chroma (Chroma1): Flux schnell without its distillation, on T5 alone; a small network makes the modulations of all blocks at once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from diffusers import ChromaPipeline
from torch import Tensor, nn

from diffalign.core.types import Condition
from diffalign.models.backbones.flux import DOUBLE, EMBEDDERS, SINGLE
from diffalign.models.backbones.packed import Packed
from diffalign.models.backbones.places import Published, plain, same

NETWORK = "distilled_guidance_layer"  # which makes the modulations


class Chroma(Packed):
    """A transformer that predicts the velocity."""

    names = ("chroma", "chroma")
    published = Published(
        {
            "transformer_blocks": ("double_blocks", DOUBLE),
            "single_transformer_blocks": ("single_blocks", SINGLE),
            f"{NETWORK}.layers": (f"{NETWORK}.layers", plain(linear_1="in_layer", linear_2="out_layer")),
        },
        {
            **EMBEDDERS,
            **plain(proj_out="final_layer.linear"),
            **same(f"{NETWORK}.in_proj", f"{NETWORK}.out_proj"),
        },
    )

    @torch.no_grad()
    def encode_prompt(self, prompts: Sequence[str]) -> Condition:
        """Return {"prompt_embeds": (N, L, D) of T5, "prompt_attention_mask": (N, L)}, which leaves the first padding token in."""
        device = self._pipe.text_encoder.device
        words, mask = self._pipe._get_t5_prompt_embeds(list(prompts), max_sequence_length=self._sequence_length(), device=device)
        return {"prompt_embeds": words, "prompt_attention_mask": mask}

    def predict(self, model: nn.Module, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Return the velocity like x (N, C, H, W)."""
        dtype: Any = self.denoiser.dtype
        count, _, height, width = x.shape
        words, mask = (condition[name].to(dtype) for name in ("prompt_embeds", "prompt_attention_mask"))
        tokens = self.packed(x.to(dtype))
        mask = torch.cat([mask, mask.new_ones(count, tokens.shape[1])], dim=1)
        with self._autocast(), _masked(model, mask):
            out = model(
                hidden_states=tokens,
                timestep=t.float(),  # the transformer multiplies by 1000 itself
                encoder_hidden_states=words,
                txt_ids=torch.zeros(words.shape[1], 3, device=x.device, dtype=dtype),
                img_ids=ChromaPipeline._prepare_latent_image_ids(count, height // 2, width // 2, x.device, dtype),
                attention_mask=mask,
                return_dict=False,
            )[0]
        return self._unpacked_like(out, x)


@contextlib.contextmanager
def _masked(model: Any, mask: Tensor) -> Iterator[None]:
    """Give the mask to the single blocks where they are checkpointed: there, and not without a gradient, diffusers 0.42 leaves it out."""
    plain, single = model._gradient_checkpointing_func, type(model.single_transformer_blocks[0])
    if model.gradient_checkpointing:
        model._gradient_checkpointing_func = lambda block, *inputs: plain(block, *inputs, *([mask] if isinstance(block, single) else []))
    try:
        yield
    finally:
        model._gradient_checkpointing_func = plain
