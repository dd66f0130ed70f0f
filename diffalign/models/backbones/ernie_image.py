"""ERNIE-Image: a flow-matching transformer that reads picture and prompt as one sequence, on FLUX.2's latents, with Ministral 3."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from diffalign.core.types import Condition
from diffalign.models.backbones.latents import BatchNormalised
from diffalign.models.backbones.places import Published
from diffalign.models.backbones.pretrained import Pretrained
from diffalign.models.diffusion.path import Path

LONGEST = 512  # tokens of a prompt, if not chosen; its pipeline cuts none


class ErnieImage(Pretrained):
    """A transformer that predicts the velocity. The model that rewrites prompts is left out: it would change what is compared."""

    component = "transformer"
    names = ("ernie-image", "")
    side = 1024
    published = Published(as_diffusers=True)
    pipeline_options: ClassVar = {"pe": None, "pe_tokenizer": None}
    call_options: ClassVar = {"use_pe": False}
    _latents = BatchNormalised(eps=1e-5)  # its pipeline's own, whatever the autoencoder's config says

    @torch.no_grad()
    def encode_prompt(self, prompts: Sequence[str]) -> Condition:
        """Return {"prompt_embeds": (N, L, D), "prompt_attention_mask": (N, L)} of the language model's last layer but one."""
        length = self._sequence_length()
        states = [state[:length] for state in self._pipe.encode_prompt(list(prompts), self._pipe.text_encoder.device)]
        words = torch.stack([nn.functional.pad(state, (0, 0, 0, length - len(state))) for state in states])
        mask = torch.arange(length) < torch.tensor([len(state) for state in states])[:, None]
        return {"prompt_embeds": words, "prompt_attention_mask": mask.to(words.device)}

    def predict(self, model: nn.Module, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Return the velocity like x (N, C, H, W)."""
        dtype: Any = self.denoiser.dtype
        mask = condition["prompt_attention_mask"] > 0
        words, _ = self._without_padding(condition["prompt_embeds"].to(dtype), mask)
        with self._autocast():
            return model(
                hidden_states=x.to(dtype), timestep=1000.0 * t.float(), text_bth=words, text_lens=mask.sum(dim=1), return_dict=False
            )[0]

    def _sequence_length(self) -> int:
        return self.settings.max_sequence_length or LONGEST

    def _path(self) -> Path:
        return self._flow_path(1)

    @classmethod
    def factor(cls, pipe: Any) -> int:
        """Return how many pixels high a latent row is: the pipeline counts the patch already."""
        return int(pipe.vae_scale_factor)
