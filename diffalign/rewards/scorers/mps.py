"""MPS, the multi-dimensional preference score (2405.14705), by its overall condition: a CLIP whose image half reads the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer, CLIPModel

from diffalign.core.errors import CheckpointError
from diffalign.data.units import PERCENT
from diffalign.models.weights import UNREADABLE
from diffalign.rewards.scorers.clip import CLIP_H, frame_of
from diffalign.rewards.scorers.network import Network, fill, frozen, read_weights

CONDITION = (
    "light, color, clarity, tone, style, ambiance, artistry, shape, face, hair, hands, limbs, structure, instance, texture, quantity, "
    "attributes, position, number, location, word, things."
)
COMPUTED = (".inv_freq", ".position_ids")  # in files, and not learnt


def mps(
    *,
    model: str = "RE-N-Y/mpsv1",
    processor: str = CLIP_H,
    condition: str = CONDITION,
    threshold: float = 0.3,
    revision: str | None = None,
    device: str = "cpu",
) -> Network:
    """Return MPS: exp(logit_scale) times the cosine of the prompt and an image that has read it.

    `model` is a file, or a folder or hub id with model.safetensors: a port, since the authors' file runs code. `processor` gives the
    CLIP's config, tokenizer and image processor. The image reads those words of the prompt that are near the words of `condition`: by
    `threshold` of the nearest, as where the authors score; where they train it is 0.01. They take the nearest of a whole batch; here it is
    that of the prompt, as with a batch of one. Only the released overall condition is known to make sense.
    """
    network, cross, tokenizer = _loaded(model, processor, revision)
    frozen(network, device)
    frozen(cross, device)
    longest = network.config.text_config.max_position_embeddings

    def read(texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        rules = {"padding": "max_length", "truncation": True, "max_length": longest, "return_tensors": "pt"}
        ids = tokenizer(list(texts), **rules)["input_ids"].to(device)
        states = network.text_projection(network.text_model(input_ids=ids).last_hidden_state)
        return states, states[torch.arange(len(ids)), ids.argmax(dim=-1)]

    def formula(pixels: Tensor, prompts: Sequence[str]) -> Tensor:
        seen = network.visual_projection(network.vision_model(pixel_values=pixels).last_hidden_state)
        words, ends = read(prompts)
        near = (words @ read([condition])[0][0].T).amax(dim=-1)  # (N, L)
        mask = near / near.amax(dim=-1, keepdim=True) > threshold
        return network.logit_scale.exp() * F.cosine_similarity(cross(seen, words, mask)[:, 0], ends, dim=-1)

    scale = "100 times a cosine, usually 5 to 15; compares images of one prompt: chances are the softmax over them"
    return Network("mps", scale, "MIT (code)", longest, revision, frame_of(processor, None), formula, device, PERCENT)


def _loaded(model: str, processor: str, revision: str | None) -> tuple[Any, Cross, Any]:
    """Return the CLIP, the layers above it and the tokenizer. Raises CheckpointError if any of them does not load."""
    given = read_weights(model, "model.safetensors", revision)
    weights = {key.removeprefix("mps."): value.float() for key, value in given.items() if not key.endswith(COMPUTED)}
    clip = {key.removeprefix("model."): value for key, value in weights.items() if key.startswith("model.")}
    own = {key.removeprefix("cross_model.").replace(".fn.", "."): value for key, value in weights.items() if key.startswith("cross_model.")}
    try:
        config: Any = AutoConfig.from_pretrained(processor, trust_remote_code=False)
        network, tokenizer = CLIPModel(config), AutoTokenizer.from_pretrained(processor, trust_remote_code=False)
    except UNREADABLE as error:
        raise CheckpointError(f"{processor}: no CLIP with a tokenizer can be loaded from here: {error}") from error
    try:
        cross = Cross(own)
    except KeyError as error:
        raise CheckpointError(f"{model}: not the weights of MPS ({error} is missing)") from error
    fill(network, clip, model)
    fill(cross, own, model)
    return network, cross, tokenizer


class Cross(nn.Module):
    """Image tokens (N, T, D) read a prompt's states (N, L, D), and then each other, in some layers; sizes are those of `weights`."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        width, pair = weights["layers.0.0.to_q.weight"].shape[1], weights["layers.0.0.to_kv.weight"].shape[0]
        inner, grown = weights["layers.0.0.to_q.weight"].shape[0], weights["layers.0.0.ff.0.weight"].shape[0] // 2
        count = len({key.split(".")[1] for key in weights})
        sizes = (width, pair // 2, inner, grown)
        self.layers = nn.ModuleList(nn.ModuleList([_Reads(*sizes), _Mixes(*sizes)]) for _ in range(count))

    def forward(self, tokens: Tensor, words: Tensor, mask: Tensor) -> Tensor:
        """Return tokens (N, T, D); `mask` (N, L) is true for words that are read."""
        for pair in self.layers:
            reads, mixes = list(pair.children())
            tokens = tokens + reads(tokens, words, mask)
            tokens = tokens + mixes(tokens)
        return tokens


class _Gate(nn.Module):
    """SwiGLU: the first half of the last axis times SiLU of the second."""

    def forward(self, x: Tensor) -> Tensor:
        value, gate = x.chunk(2, dim=-1)
        return F.silu(gate) * value


class _Reads(nn.Module):
    """Attention of many heads to one head of keys and values, beside a feed-forward part."""

    def __init__(self, width: int, head: int, inner: int, grown: int) -> None:
        super().__init__()
        self.head, self.norm = head, nn.LayerNorm(width)
        self.to_q, self.to_kv = nn.Linear(width, inner, bias=False), nn.Linear(width, 2 * head, bias=False)
        self.to_out = nn.Linear(inner, width, bias=False)
        self.ff = nn.Sequential(nn.Linear(width, 2 * grown, bias=False), _Gate(), nn.Linear(grown, width, bias=False))

    def forward(self, tokens: Tensor, words: Tensor, mask: Tensor) -> Tensor:
        """Return what is added to the tokens."""
        normal = self.norm(tokens)
        key, value = self.to_kv(words).chunk(2, dim=-1)
        return self.to_out(_attended(self.to_q(normal), key, value, self.head, mask)) + self.ff(normal)


class _Mixes(nn.Module):
    """Self-attention of the same kind with rotary positions (2104.09864), beside a feed-forward part, from one projection."""

    def __init__(self, width: int, head: int, inner: int, grown: int) -> None:
        super().__init__()
        self.head, self.norm, self.parts = head, nn.LayerNorm(width), (inner, head, head, 2 * grown)
        self.fused_attn_ff_proj = nn.Linear(width, sum(self.parts), bias=False)
        self.attn_out = nn.Linear(inner, width, bias=False)
        self.ff_out = nn.Sequential(_Gate(), nn.Linear(grown, width, bias=False))

    def forward(self, tokens: Tensor) -> Tensor:
        """Return what is added to the tokens."""
        query, key, value, wide = self.fused_attn_ff_proj(self.norm(tokens)).split(self.parts, dim=-1)
        turned = _rotated(query.unflatten(-1, (-1, self.head))).flatten(-2), _rotated(key[..., None, :]).squeeze(-2)
        return self.attn_out(_attended(*turned, value, self.head)) + self.ff_out(wide)


def _attended(query: Tensor, key: Tensor, value: Tensor, head: int, mask: Tensor | None = None) -> Tensor:
    """Return (N, T, inner) for queries (N, T, inner) in heads, and keys and values (N, L, head) that they share."""
    heads = query.unflatten(-1, (-1, head)).transpose(1, 2)
    shared = (v[:, None].expand(-1, heads.shape[1], -1, -1) for v in (key, value))
    attended = F.scaled_dot_product_attention(heads, *shared, attn_mask=None if mask is None else mask[:, None, None])
    return attended.transpose(1, 2).flatten(-2)


def _rotated(x: Tensor) -> Tensor:
    """Return (N, T, H, D) turned by the angles of positions 0 to T - 1."""
    half = x.shape[-1] // 2
    speeds = 1.0 / 10000.0 ** (torch.arange(half, device=x.device, dtype=x.dtype) / half)
    angles = torch.arange(x.shape[1], device=x.device, dtype=x.dtype)[:, None, None] * speeds
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()], dim=-1)
