"""PixArt-alpha (2310.00426) and PixArt-sigma (2403.04692): a diffusion transformer with T5, epsilon, and a learned variance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from diffalign.core.types import Condition
from diffalign.models.backbones.places import Published, embedder, feed_forward, fused, fused_qkv, plain
from diffalign.models.backbones.pretrained import Pretrained
from diffalign.models.users import branch


class PixArt(Pretrained):
    """A transformer that is told its resolution where it was made for 1024 pixels (alpha)."""

    component = "transformer"
    reads_padding = False
    names = ("pixart", "")
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
                    **feed_forward("ff", "mlp.fc1", "mlp.fc2"),
                },
            )
        },
        {
            **plain(pos_embed__proj="x_embedder.proj", proj_out="final_layer.linear", adaln_single__linear="t_block.1"),
            **plain(caption_projection__linear_1="y_embedder.y_proj.fc1", caption_projection__linear_2="y_embedder.y_proj.fc2"),
            **embedder("adaln_single.emb.timestep_embedder", "t_embedder.mlp"),
            **embedder("adaln_single.emb.resolution_embedder", "csize_embedder.mlp"),
            **embedder("adaln_single.emb.aspect_ratio_embedder", "ar_embedder.mlp"),
        },
    )

    @torch.no_grad()
    def encode_prompt(self, prompts: Sequence[str]) -> Condition:
        """Return {"prompt_embeds": (N, L, D), "prompt_attention_mask": (N, L)} of T5; captions are taken as they are."""
        embeds, mask, _, _ = self._pipe.encode_prompt(
            list(prompts),
            do_classifier_free_guidance=False,
            device=self._pipe.text_encoder.device,
            max_sequence_length=self._sequence_length(),
        )
        return {"prompt_embeds": embeds, "prompt_attention_mask": mask}

    def predict(self, model: nn.Module, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Return the predicted noise like x (N, C, H, W); the half of the output that is the learned variance is dropped."""
        denoiser: Any = self.denoiser
        dtype = denoiser.dtype
        height, width = (side * self._factor for side in x.shape[2:])
        added: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
        if denoiser.use_additional_conditions:
            size = torch.tensor([[height, width]], device=x.device, dtype=dtype).expand(len(x), -1)
            added = {"resolution": size, "aspect_ratio": size[:, :1] / size[:, 1:]}
        words, mask = (condition[name].to(dtype) for name in ("prompt_embeds", "prompt_attention_mask"))
        if (tokens := self._tokens(condition, len(x))) is not None:
            words, mask = branch.appended(denoiser, words, mask, tokens)
        with self._autocast():
            out = model(
                x.to(dtype),
                encoder_hidden_states=words,
                encoder_attention_mask=mask,
                timestep=t,
                added_cond_kwargs=added,
                return_dict=False,
            )[0]
        return out[:, : x.shape[1]]
