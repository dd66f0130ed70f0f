"""Lumina-Image 2.0 (2503.21758): a flow-matching transformer that reads prompt and picture as one sequence, with Gemma 2."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from diffalign.core.types import Condition
from diffalign.models.backbones.places import Place, Published, fused_qkv, plain
from diffalign.models.backbones.pretrained import Pretrained
from diffalign.models.diffusion.path import Path

_LAYER = {
    **fused_qkv("attention.qkv", "attn"),
    **plain(attn__to_out__0="attention.out", norm1__linear="adaLN_modulation.1"),
    **{f"feed_forward.linear_{number}": Place(f"feed_forward.w{number}") for number in (1, 2, 3)},
}


class Lumina2(Pretrained):
    """A transformer whose own time runs from noise to picture, and which predicts the velocity in that direction."""

    component = "transformer"
    reads_padding = False
    names = ("lumina-2", "")
    published = Published(
        {name: (name, _LAYER) for name in ("layers", "noise_refiner", "context_refiner")},
        {
            **plain(x_embedder="x_embedder", norm_out__linear_1="final_layer.adaLN_modulation.1", norm_out__linear_2="final_layer.linear"),
            "time_caption_embed.timestep_embedder.linear_1": Place("t_embedder.mlp.0"),
            "time_caption_embed.timestep_embedder.linear_2": Place("t_embedder.mlp.2"),
            "time_caption_embed.caption_embedder.1": Place("cap_embedder.1"),
        },
    )

    @torch.no_grad()
    def encode_prompt(self, prompts: Sequence[str]) -> Condition:
        """Return {"prompt_embeds": (N, L, D), "prompt_attention_mask": (N, L)} of the language model's last layer but one.

        Before a prompt stands the stock pipeline's system prompt; the empty one is alone, as in its unconditional branch.
        """
        pipe = self._pipe
        texts = [f"{pipe.system_prompt} <Prompt Start> {prompt}" if prompt else "" for prompt in prompts]
        padding = {"padding": "max_length", "max_length": self._sequence_length(), "truncation": True}
        tokens = pipe.tokenizer(texts, return_tensors="pt", **padding).to(pipe.text_encoder.device)
        states = pipe.text_encoder(tokens.input_ids, attention_mask=tokens.attention_mask, output_hidden_states=True).hidden_states[-2]
        return {"prompt_embeds": states, "prompt_attention_mask": tokens.attention_mask}

    def predict(self, model: nn.Module, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Return the velocity like x (N, C, H, W)."""
        dtype: Any = self.denoiser.dtype
        mask = condition["prompt_attention_mask"].long()  # of a cache it has no integers
        with self._autocast(), _rehearsed(model) if isinstance(mask, FakeTensor) else contextlib.nullcontext():
            return -model(
                hidden_states=x.to(dtype),
                timestep=(1.0 - t).float(),
                encoder_hidden_states=condition["prompt_embeds"].to(dtype),
                encoder_attention_mask=mask,
                return_dict=False,
            )[0]

    def _path(self) -> Path:
        return self._flow_path(self._pipe.transformer.config.patch_size)

    @classmethod
    def place(cls, layer: str, config: Mapping[str, Any]) -> Place | None:
        """Return where a layer lies: fewer heads have keys and values than queries."""
        published, shares = cls.published.place(layer), (config["num_attention_heads"], *[config["num_kv_heads"]] * 2)
        return replace(published, shares=shares) if published is not None and published.module.endswith(".qkv") else published


@contextlib.contextmanager
def _rehearsed(model: Any) -> Iterator[None]:
    """Take all prompts for as long as they may be: the network counts their tokens, which have no numbers in a dry run."""
    rope = model.rope_embedder

    def forward(x: Tensor, mask: Tensor) -> tuple[Any, ...]:
        (count, length), patch = mask.shape, rope.patch_size
        tokens = nn.functional.pixel_unshuffle(x, patch).flatten(2).mT
        whole = length + tokens.shape[1]
        turns = [
            rope._get_freqs_cis(torch.zeros(count, rows, 3, dtype=torch.int32, device=x.device)) for rows in (length, whole - length, whole)
        ]
        return tokens, *turns, [length] * count, [whole] * count

    rope.forward = forward
    try:
        yield
    finally:
        del rope.forward
