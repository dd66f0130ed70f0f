"""Flux.1, dev, schnell and Kontext: a flow-matching transformer on packed 2x2 patches; dev is told a guidance scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import FluxPipeline
from diffusers.pipelines.flux import pipeline_flux_kontext
from torch import Tensor, nn

from diffalign.core.types import Condition
from diffalign.models.backbones.packed import Packed
from diffalign.models.backbones.places import ADDED_QKV, CLOCK, FINAL, QKV, Published, embedder, feed_forward, fused, fused_qkv, plain

# Of a block with two streams and of one with both in one, but for the modulation by the time, which Chroma has elsewhere.
DOUBLE = {
    **fused_qkv("img_attn.qkv", "attn"),
    **fused_qkv("txt_attn.qkv", "attn", ADDED_QKV),
    **plain(attn__to_out__0="img_attn.proj", attn__to_add_out="txt_attn.proj"),
    **feed_forward("ff", "img_mlp.0", "img_mlp.2"),
    **feed_forward("ff_context", "txt_mlp.0", "txt_mlp.2"),
}
SINGLE = {**fused("linear1", *(f"attn.{name}" for name in QKV), "proj_mlp", shares=(1, 1, 1, 4)), **plain(proj_out="linear2")}
EMBEDDERS = plain(x_embedder="img_in", context_embedder="txt_in")
SCHNELL = """Flux schnell is distilled to draw in a few steps without guidance, and steering guidance is all that diffusion_npo and
self_npo are for; use Flux dev (drawn with true_cfg_scale), or another model"""


class Flux(Packed):
    """A transformer that predicts the velocity."""

    published = Published(
        {
            "transformer_blocks": ("double_blocks", {**DOUBLE, **plain(norm1__linear="img_mod.lin", norm1_context__linear="txt_mod.lin")}),
            "single_transformer_blocks": ("single_blocks", {**SINGLE, **plain(norm__linear="modulation.lin")}),
        },
        {
            **FINAL,
            **EMBEDDERS,
            **embedder(CLOCK, "time_in", "in_layer", "out_layer"),
            **embedder("time_text_embed.text_embedder", "vector_in", "in_layer", "out_layer"),
            **embedder("time_text_embed.guidance_embedder", "guidance_in", "in_layer", "out_layer"),
        },
    )

    @torch.no_grad()
    def encode_prompt(self, prompts: Sequence[str]) -> Condition:
        """Return {"prompt_embeds": (N, L, D) of T5, "pooled_prompt_embeds": (N, P) of CLIP}."""
        embeds, pooled, _ = self._pipe.encode_prompt(
            list(prompts), device=self._pipe.text_encoder.device, max_sequence_length=self._sequence_length()
        )
        return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}

    def predict(self, model: nn.Module, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Return the velocity like x (N, C, H, W). A guidance-distilled model is told `guidance_scale`, the same everywhere."""
        denoiser: Any = self.denoiser
        dtype, count, latents = denoiser.dtype, len(x), self._sequence(x, condition)
        words, pooled = (condition[name].to(dtype) for name in ("prompt_embeds", "pooled_prompt_embeds"))
        guidance = x.new_full((count,), self.settings.guidance_scale) if denoiser.config.guidance_embeds else None
        further = {**self._told(condition, count), **self._conditioning(condition)}
        with self._autocast():
            out = model(
                hidden_states=self._tokens_of(latents, dtype),
                timestep=t.float(),  # the transformer multiplies by 1000 itself
                guidance=guidance,
                pooled_projections=pooled,
                encoder_hidden_states=words,
                txt_ids=torch.zeros(words.shape[1], 3, device=x.device, dtype=dtype),
                img_ids=_places(latents, dtype),
                **further,
                return_dict=False,
            )[0]
        return self._unpacked_like(out, x)

    def _control(self, pixels: Tensor, controlnet: Any) -> Tensor:
        """Return tokens of the latents of conditioning images, or where the ControlNet reads pixels (XLabs') those in [-1, 1]."""
        return self.packed(self._control_latents(pixels)) if controlnet.input_hint_block is None else 2.0 * pixels - 1.0

    @classmethod
    def guidance(cls, guidance_scale: float, true_cfg: bool) -> dict[str, Any]:
        """Return the scale that a distilled model is told, or the one of both branches, which needs a negative prompt."""
        return {"true_cfg_scale": guidance_scale, "negative_prompt": ""} if true_cfg else {"guidance_scale": guidance_scale}

    @classmethod
    def unguided(cls, config: Mapping[str, Any]) -> str | None:
        """Return that schnell cannot; dev has two branches with `true_cfg_scale`."""
        return None if config.get("guidance_embeds") else SCHNELL

    @classmethod
    def architecture(cls, config: Mapping[str, Any], scheduler: Mapping[str, Any]) -> tuple[str, str]:  # noqa: ARG003  # it has one path
        """Return the names of dev or schnell."""
        return f"flux-1-{'dev' if config.get('guidance_embeds') else 'schnell'}", "flux1"


class FluxKontext(Flux):
    """FLUX.1 Kontext: the tokens of an input picture stand behind those of the picture."""

    names = ("flux-1-kontext-dev", "")
    picture = "needed"

    def reference_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the size of the nearest aspect ratio among those that the model was trained on, whatever `height` and `width` are."""
        _, wide, high = min((abs(width / height - w / h), w, h) for w, h in pipeline_flux_kontext.PREFERRED_KONTEXT_RESOLUTIONS)
        side = 2 * self._factor
        return high // side * side, wide // side * side

    @classmethod
    def architecture(cls, config: Mapping[str, Any], scheduler: Mapping[str, Any]) -> tuple[str, str]:  # noqa: ARG003  # it has one
        """Return its names."""
        return cls.names


def _places(latents: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Return the image ids (L, 3) of latents behind each other, of which the first number tells which of them a token is of."""
    ids = []
    for number, x in enumerate(latents):
        ids.append(FluxPipeline._prepare_latent_image_ids(len(x), x.shape[2] // 2, x.shape[3] // 2, x.device, dtype))
        ids[-1][..., 0] = number
    return torch.cat(ids)
