"""HiDream-I1 (2505.22705): a flow-matching transformer with routed experts, two CLIPs, T5, and all layers of Llama 3.1, one to a block."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from types import MethodType
from typing import Any

import torch
from diffusers.models.transformers.transformer_hidream_image import MOEFeedForwardSwiGLU
from diffusers.pipelines.hidream_image.pipeline_hidream_image import calculate_shift
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from diffalign.core.types import Condition
from diffalign.models.backbones.base import BackboneSettings
from diffalign.models.backbones.places import Published
from diffalign.models.backbones.pretrained import Pretrained
from diffalign.models.diffusion.path import Path, shifted

STREAMS = ("to_q", "to_k", "to_v", "to_out")


class HiDream(Pretrained):
    """A transformer that predicts the velocity with the other sign. Its experts are routed as in drawing, here with their gradient."""

    component = "transformer"
    lora_targets = (*STREAMS, *(f"{name}_t" for name in STREAMS))  # with the prompt's side
    names = ("hidream-i1", "")
    lora_naming = "comfyui"  # no script of kohya's trains it
    published = Published(as_diffusers=True)

    def __init__(self, pipe: Any, name: str, precision: torch.dtype = torch.float32, settings: BackboneSettings | None = None) -> None:
        super().__init__(pipe, name, precision, settings)
        # Diffusers routes without a gradient but in a mode of training whose output has another shape.
        denoiser: Any = self.denoiser
        denoiser.unpatchify = MethodType(_pictures, denoiser)
        for module in self.denoiser.modules():
            if isinstance(module, MOEFeedForwardSwiGLU):
                module._force_inference_output = module.gate._force_inference_output = True
                module.moe_infer = MethodType(_routed, module)
        self.sized(pipe, self.resolution)

    @torch.no_grad()
    def encode_prompt(self, prompts: Sequence[str]) -> Condition:
        """Return {"prompt_embeds": (N, L, D) of T5, "prompt_embeds_llama3": (N, S, L, D) of S layers, "pooled_prompt_embeds": (N, P)}."""
        options = {"do_classifier_free_guidance": False, "max_sequence_length": self._sequence_length()}
        words, _, layers, _, pooled, _ = self._pipe.encode_prompt(list(prompts), device=self._pipe.text_encoder_3.device, **options)
        return {"prompt_embeds": words, "prompt_embeds_llama3": layers.transpose(0, 1), "pooled_prompt_embeds": pooled}

    def predict(self, model: nn.Module, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Return the velocity like x (N, C, H, W)."""
        dtype: Any = self.denoiser.dtype
        with self._autocast():
            return -model(
                hidden_states=x.to(dtype),
                timesteps=1000.0 * t.float(),
                encoder_hidden_states_t5=condition["prompt_embeds"].to(dtype),
                encoder_hidden_states_llama3=condition["prompt_embeds_llama3"].to(dtype).transpose(0, 1),
                pooled_embeds=condition["pooled_prompt_embeds"].to(dtype),
                return_dict=False,
            )[0]

    def _path(self) -> Path:
        """Return the path; a shift by tokens is that of the most that it takes, whatever the size, as in the stock pipeline."""
        scheduler = self._pipe.scheduler.config
        path, cleanest = self._flow_path(), 1.0 / scheduler.num_train_timesteps
        if not scheduler.get("use_dynamic_shifting"):
            return replace(path, cleanest=shifted(torch.tensor(cleanest, dtype=torch.float64), scheduler.get("shift") or 1.0).item())
        shift = path.shift if "shift" in self.settings.flow else math.exp(calculate_shift(self._pipe.transformer.max_seq))
        return replace(path, cleanest=cleanest, shift=shift, dynamic=None)

    @classmethod
    def sample_size(cls, pipe: Any) -> int:
        """Return the pipeline's default; the transformer's config has the most alone."""
        return int(pipe.default_sample_size)

    @classmethod
    def sized(cls, pipe: Any, resolution: int) -> dict[str, Any]:
        """Return the arguments of a size; the pipeline draws in its own, to which it scales all others, so that is set as well."""
        pipe.default_sample_size = resolution // cls.factor(pipe)
        return super().sized(pipe, resolution)


def _pictures(self: Any, x: Tensor, sizes: Tensor, is_training: bool) -> Tensor:  # noqa: ARG001  # what diffusers calls it with
    """Return latents (N, C, H, W) of tokens, in training as well; in a dry run, where sizes have no numbers, of squares."""
    if isinstance(x, FakeTensor):
        side = math.isqrt(x.shape[1])
        return type(self).unpatchify(self, x, [(side, side)] * len(x), False)
    return type(self).unpatchify(self, x, sizes, False)


def _routed(self: Any, x: Tensor, experts: Tensor, weights: Tensor) -> Tensor:
    """Return what the experts (T k) of each token x (T, D) make of it, weighed (T k, 1), with a gradient; see `moe_infer` of diffusers.

    In a dry run, where nobody has chosen, all have equally much to do.
    """
    chosen = self.num_activated_experts
    tokens, out = x.repeat_interleave(chosen, dim=0), torch.zeros_like(x)
    order = torch.arange(len(tokens), device=x.device) // chosen
    every = list(self.experts)
    if isinstance(experts, FakeTensor):
        parts = [expert(part) for expert, part in zip(every, tokens.chunk(len(every)), strict=False)]
        return (torch.cat(parts) * weights).unflatten(0, (-1, chosen)).sum(dim=1)
    for number, expert in enumerate(every):
        mine = (experts == number).nonzero().flatten()
        made = expert(tokens[mine]) * weights[mine]
        out = out.to(made.dtype).index_add(0, order[mine], made)
    return out
