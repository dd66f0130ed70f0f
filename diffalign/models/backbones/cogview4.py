"""CogView4 (2403.05121, its fourth version): a flow-matching transformer with GLM-4 that is told each picture's size and crop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from diffalign.core.types import Condition
from diffalign.models.backbones.places import Published
from diffalign.models.backbones.pretrained import Pretrained
from diffalign.models.diffusion.path import FlowPath, Path, shifted
from diffalign.models.diffusion.shift import RootShift

GROUP = 16  # prompts are as long as a multiple of so many tokens


class CogView4(Pretrained):
    """A transformer that predicts the velocity, and is told the time as it was before the shift."""

    component = "transformer"
    names = ("cogview4", "")
    published = Published(as_diffusers=True)
    _shift = RootShift

    @torch.no_grad()
    def encode_prompt(self, prompts: Sequence[str]) -> Condition:
        """Return {"prompt_embeds": (N, L, D), "prompt_attention_mask": (N, L)} of the language model's last layer but one.

        A prompt is padded in front to a multiple of 16 tokens, which the transformer sees as well; behind them stand zeros, which it
        does not.
        """
        length = self._sequence_length()
        words = [self._encoded(prompt, length) for prompt in prompts]
        width = -(-length // GROUP) * GROUP
        padded = torch.stack([nn.functional.pad(row, (0, 0, 0, width - len(row))) for row in words])
        mask = torch.arange(width) < torch.tensor([len(row) for row in words])[:, None]
        return {"prompt_embeds": padded, "prompt_attention_mask": mask.to(padded.device)}

    def _encoded(self, prompt: str, length: int) -> Tensor:
        """Return the states (L, D) of a prompt of at most `length` tokens, with the padding in front of it."""
        tokenizer, encoder = self._pipe.tokenizer, self._pipe.text_encoder
        tokens = tokenizer(prompt, max_length=length, truncation=True, return_tensors="pt").input_ids.to(encoder.device)
        tokens = nn.functional.pad(tokens, (-tokens.shape[1] % GROUP, 0), value=tokenizer.pad_token_id)
        return encoder(tokens, output_hidden_states=True).hidden_states[-2][0]

    def predict(self, model: nn.Module, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Return the velocity like x (N, C, H, W); prompts of one length at a time, since the network takes no padding."""
        lengths = self._lengths(condition["prompt_attention_mask"])
        if len(set(lengths)) == 1:
            return self._predict(model, x, t, condition, lengths[0])
        rows = {length: [row for row, other in enumerate(lengths) if other == length] for length in dict.fromkeys(lengths)}
        parts = [
            self._predict(model, x[own], t[own], {name: value[own] for name, value in condition.items()}, length)
            for length, own in rows.items()
        ]
        order = torch.tensor([row for own in rows.values() for row in own], device=x.device)
        return torch.cat(parts)[order.argsort()]

    def _predict(self, model: nn.Module, x: Tensor, t: Tensor, condition: Condition, length: int) -> Tensor:
        """Return the velocity where all prompts have `length` tokens."""
        dtype: Any = self.denoiser.dtype
        height, width = (side * self._factor for side in x.shape[2:])
        whole = torch.tensor([height, width, 0, 0, height, width], device=x.device)
        frames = condition["frames"] if "frames" in condition else whole.expand(len(x), -1)
        original, crop, target = frames.to(x.device, dtype).split(2, dim=1)
        path = self.path.at(*x.shape[2:])
        assert isinstance(path, FlowPath)
        with self._autocast():
            return model(
                hidden_states=x.to(dtype),
                encoder_hidden_states=condition["prompt_embeds"][:, :length].to(dtype),
                timestep=1000.0 * shifted(t, 1.0 / path.shift).float(),
                original_size=original,
                target_size=target,
                crop_coords=crop,
                return_dict=False,
            )[0]

    def _path(self) -> Path:
        path, count = self._flow_path(self._pipe.transformer.config.patch_size), self._pipe.scheduler.config.num_train_timesteps
        return replace(path, cleanest=1.0 / count, count=count)
