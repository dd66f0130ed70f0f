"""Stable Diffusion 3 and 3.5 (2403.03206): a flow-matching MMDiT with two CLIPs and T5, any of which may be absent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from diffalign.core.types import Condition
from diffalign.models.backbones.places import ADDED_QKV, CLOCK, FINAL, Place, Published, embedder, feed_forward, fused_qkv, plain
from diffalign.models.backbones.pretrained import JOINT, Pretrained
from diffalign.models.diffusion.path import Path, shifted


class StableDiffusion3(Pretrained):
    """A transformer that predicts the velocity."""

    component = "transformer"
    names = ("stable-diffusion-3", "")
    lora_targets = JOINT
    published = Published(
        {
            "transformer_blocks": (
                "joint_blocks",
                {
                    **fused_qkv("x_block.attn.qkv", "attn"),
                    **fused_qkv("x_block.attn2.qkv", "attn2"),
                    **fused_qkv("context_block.attn.qkv", "attn", ADDED_QKV),
                    **plain(attn__to_out__0="x_block.attn.proj", attn2__to_out__0="x_block.attn2.proj"),
                    **plain(attn__to_add_out="context_block.attn.proj"),
                    **plain(norm1__linear="x_block.adaLN_modulation.1", norm1_context__linear="context_block.adaLN_modulation.1"),
                    **feed_forward("ff", "x_block.mlp.fc1", "x_block.mlp.fc2"),
                    **feed_forward("ff_context", "context_block.mlp.fc1", "context_block.mlp.fc2"),
                },
            )
        },
        {
            **FINAL,
            **plain(pos_embed__proj="x_embedder.proj", context_embedder="context_embedder"),
            **embedder(CLOCK, "t_embedder.mlp"),
            **embedder("time_text_embed.text_embedder", "y_embedder.mlp"),
        },
    )

    @torch.no_grad()
    def encode_prompt(self, prompts: Sequence[str]) -> Condition:
        """Return {"prompt_embeds": (N, L, D), "pooled_prompt_embeds": (N, P)}, joined as the stock pipeline does.

        Both CLIPs side by side, T5 behind them; zeros stand for an encoder that is absent.
        """
        pipe, names = self._pipe, list(prompts)
        device = pipe.vae.device
        clips = [self._clip(names, pipe.tokenizer, pipe.text_encoder), self._clip(names, pipe.tokenizer_2, pipe.text_encoder_2)]
        width = pipe.transformer.config.pooled_projection_dim - sum(clip[1].shape[1] for clip in clips if clip)
        blank = width // max(clips.count(None), 1)
        zeros = torch.zeros(len(names), self._words(), blank, device=device)
        words = torch.cat([zeros if clip is None else clip[0] for clip in clips], dim=-1)
        pooled = torch.cat([zeros[:, 0] if clip is None else clip[1] for clip in clips], dim=-1)
        dtype = torch.float32 if pipe.text_encoder_3 is None else pipe.text_encoder_3.dtype
        t5 = pipe._get_t5_prompt_embeds(names, max_sequence_length=self._sequence_length(), device=device, dtype=dtype)
        words = nn.functional.pad(words, (0, t5.shape[-1] - words.shape[-1]))
        return {"prompt_embeds": torch.cat([words, t5.to(words.dtype)], dim=1), "pooled_prompt_embeds": pooled}

    def predict(self, model: nn.Module, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Return the velocity like x (N, C, H, W)."""
        dtype: Any = self.denoiser.dtype
        words, pooled = (condition[name].to(dtype) for name in ("prompt_embeds", "pooled_prompt_embeds"))
        further = {**self._told(condition, len(x)), **self._conditioning(condition)}
        with self._autocast():
            return model(x.to(dtype), words, pooled, 1000.0 * t.float(), **further, return_dict=False)[0]

    def _control(self, pixels: Tensor, controlnet: Any) -> Tensor:
        """Return the latents of conditioning images; ControlNets without pooled embeddings read them without the VAE's shift."""
        latents, vae = self._control_latents(pixels), self._pipe.vae.config
        unshifted = controlnet.config.force_zeros_for_pooled_projection
        return latents + vae.shift_factor * vae.scaling_factor if unshifted else latents

    def _clip(self, prompts: list[str], tokenizer: Any, encoder: Any) -> tuple[Tensor, Tensor] | None:
        """Return (N, L, D) hidden states before the last layer, and (N, P) projected ones, None without the encoder.

        The pipeline's own method asks the first CLIP for its dtype, also where only the second is there.
        """
        if encoder is None:
            return None
        length = self._words()
        tokens = tokenizer(prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids
        out = encoder(tokens.to(encoder.device), output_hidden_states=True)
        return out.hidden_states[-2], out.text_embeds

    def _words(self) -> int:
        """Return how many tokens a CLIP takes; without the first one's tokenizer the pipeline says 77 whatever the second takes."""
        second = self._pipe.tokenizer_2
        return self._pipe.tokenizer_max_length if self._pipe.tokenizer is not None or second is None else second.model_max_length

    def _path(self) -> Path:
        scheduler = self._pipe.scheduler.config
        cleanest = 1.0 / scheduler.num_train_timesteps
        if not scheduler.get("use_dynamic_shifting"):
            cleanest = shifted(torch.tensor(cleanest, dtype=torch.float64), scheduler.shift).item()
        return replace(self._flow_path(self._pipe.transformer.config.patch_size), cleanest=cleanest)

    @classmethod
    def undrawable(cls, pipe: Any) -> str | None:
        """Return that the stock pipeline needs both CLIPs, where one is absent."""
        absent = None in (pipe.text_encoder, pipe.text_encoder_2)
        return "the stock SD3 pipeline draws only with both of its CLIP encoders; leave out the prompts to draw" if absent else None

    @classmethod
    def place(cls, layer: str, config: Mapping[str, Any]) -> Place | None:
        """Return where a layer lies: the last block only reads the prompt's tokens, and the norm for that has its halves swapped."""
        published = cls.published.place(layer)
        last = layer == f"transformer_blocks.{config['num_layers'] - 1}.norm1_context.linear"
        return replace(published, swapped=True) if published is not None and last else published
