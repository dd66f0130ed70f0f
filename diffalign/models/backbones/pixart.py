"""PixArt-alpha (2310.00426) and PixArt-sigma (2403.04692): a diffusion transformer with T5, epsilon, and a learned variance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diffalign.core.types import Condition
from diffalign.models.backbones.pretrained import Pretrained
from diffalign.models.users import branch


class PixArt(Pretrained):
    """A transformer that is told its resolution where it was made for 1024 pixels (alpha)."""

    component = "transformer"

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
