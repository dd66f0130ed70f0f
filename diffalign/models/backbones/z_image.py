"""Z-Image and Z-Image-Turbo (2511.22699): a flow-matching transformer that reads prompt and picture as one sequence, with Qwen3."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diffalign.core.types import Condition
from diffalign.models.backbones.places import Place, Published, fused_qkv, plain, same
from diffalign.models.backbones.pretrained import Pretrained
from diffalign.models.diffusion.path import Path

_LAYER = {
    **fused_qkv("attention.qkv", "attention"),
    **plain(attention__to_out__0="attention.out"),
    **same("adaLN_modulation.0", "feed_forward.w1", "feed_forward.w2", "feed_forward.w3"),
}


class ZImage(Pretrained):
    """A transformer whose own time runs from noise to picture, and which predicts the velocity in that direction."""

    component = "transformer"
    names = ("z_image", "")
    side = 1024
    published = Published(
        {name: (name, _LAYER) for name in ("layers", "noise_refiner", "context_refiner")},
        {
            **same("t_embedder.mlp.0", "t_embedder.mlp.2", "cap_embedder.1"),
            "all_x_embedder.2-1": Place("x_embedder"),
            "all_final_layer.2-1.linear": Place("final_layer.linear"),
            "all_final_layer.2-1.adaLN_modulation.1": Place("final_layer.adaLN_modulation.1"),
        },
    )

    @torch.no_grad()
    def encode_prompt(self, prompts: Sequence[str]) -> Condition:
        """Return {"prompt_embeds": (N, L, D), "prompt_attention_mask": (N, L)} of the language model's last layer but one.

        The prompt stands in the model's chat template, as in the stock pipeline.
        """
        tokenizer, encoder = self._pipe.tokenizer, self._pipe.text_encoder
        template = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": True}
        chats = [tokenizer.apply_chat_template([{"role": "user", "content": prompt}], **template) for prompt in prompts]
        length = self._sequence_length()
        tokens = tokenizer(chats, padding="max_length", max_length=length, truncation=True, return_tensors="pt").to(encoder.device)
        mask = tokens.attention_mask.bool()
        states = encoder(input_ids=tokens.input_ids, attention_mask=mask, output_hidden_states=True).hidden_states[-2]
        return {"prompt_embeds": states * mask[..., None], "prompt_attention_mask": mask}

    def predict(self, model: nn.Module, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Return the velocity like x (N, C, H, W). Each prompt is told without its padding."""
        dtype: Any = self.denoiser.dtype
        words = condition["prompt_embeds"].to(dtype)
        with self._autocast():
            outputs = model(
                list(x.to(dtype)[:, :, None].unbind()),  # each a film of one picture
                (1.0 - t).float(),
                [row[:length] for row, length in zip(words, self._lengths(condition["prompt_attention_mask"]), strict=True)],
                return_dict=False,
            )[0]
        return -torch.stack(list(outputs))[:, :, 0]

    def _path(self) -> Path:
        return self._flow_path()
