"""Attention over segments, registered with transformers: candidates that share a prompt, and records that share a row.

Without segments in the forward's keywords it is stock `sdpa`, so a model that was switched to it generates and saves as before (its
name is not written to config.json). The segments travel as a keyword, so that a recomputed forward pass finds them too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.bias import causal_lower_right
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from diffalign.models.text.layout import Segment

NAME = "segments"
_windows: ContextVar[list[int | None] | None] = ContextVar("_windows", default=None)


class UnsupportedAttentionError(RuntimeError):
    """The model asks of attention what segments do not do."""


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    segments: Sequence[Segment] | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """Return the attention output (R, T, H, d) of query (R, H, T, d), key and value (R, G, T, d), as transformers asks for it.

    Raises UnsupportedAttentionError for soft caps, sinks and position biases, and for windows shorter than a text.
    """
    if segments is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **more)  # pyright: ignore[reportReturnType]  # no weights
    _check(segments, more)
    rows, width = query.shape[0], query.shape[2]
    flat = [x.transpose(1, 2).flatten(0, 1) for x in (query, key, value)]
    return segmented(flat, segments, width, dropout=dropout, scaling=scaling).unflatten(0, (rows, width)), None


def segmented(
    flat: Sequence[Tensor], segments: Sequence[Segment], width: int, *, dropout: float = 0.0, scaling: float | None = None
) -> Tensor:
    """Return the output (R*T, H, d) of query (R*T, H, d), key and value (R*T, G, d), zero where there is no token; `width` is T.

    Nothing here has the size of a row squared: each segment is computed on its own.
    """
    sizes = _sizes(segments, width, len(flat[0]))
    options = {"dropout_p": dropout, "scale": scaling, "enable_gqa": flat[0].shape[1] != flat[1].shape[1]}
    # Split, not sliced: its backward pass is one concatenation.
    pieces = iter(zip(*(x.split(sizes) for x in flat), strict=True))
    found: list[Tensor] = []
    for segment in segments:
        q, k, v = next(pieces)
        found.append(_attention(q, k, v, None, is_causal=True, **options))
        k, v = k[: segment.prompt], v[: segment.prompt]
        for length in filter(None, segment.parts[1:]):
            q, own_k, own_v = next(pieces)
            mask = _lower_right(length, segment.prompt + length, q.device)
            found.append(_attention(q, torch.cat([k, own_k]), torch.cat([v, own_v]), mask, is_causal=False, **options))
        found.append(v.new_zeros(len(next(pieces)[0]), *found[-1].shape[1:]))
    return torch.cat(found)


def _sizes(segments: Sequence[Segment], width: int, total: int) -> list[int]:
    """Return how many tokens each piece has: of a segment prompt and first part, each other part, and what is empty behind it."""
    sizes: list[int] = []
    starts = [s.row * width + s.start for s in segments]
    for segment, start, end in zip(segments, starts, [*starts[1:], total], strict=True):
        sizes += [segment.prompt + segment.parts[0], *filter(None, segment.parts[1:]), end - start - segment.size]
    return sizes


def _attention(query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any) -> Tensor:
    """Return the output (n, H, d) of one segment: query (n, H, d), key and value (m, G, d)."""
    q, k, v = (x.transpose(0, 1)[None] for x in (query, key, value))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, **options)[0].transpose(0, 1)


def _lower_right(queries: int, keys: int, device: torch.device) -> Any:
    """Return the mask (queries, keys) in which the last query sees all keys, as a kind that kernels know where they do."""
    if device.type == "cuda":
        return causal_lower_right(queries, keys)
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)


def _check(segments: Sequence[Segment], asked: Mapping[str, Any]) -> None:
    sliding_window = asked.get("sliding_window")
    if (seen := _windows.get()) is not None:
        seen.append(sliding_window)
    longest = max(segment.longest for segment in segments)
    if sliding_window is not None and sliding_window < longest:
        raise UnsupportedAttentionError(f"its attention has a window of {sliding_window} tokens, and texts have up to {longest}")
    for name in ("softcap", "s_aux", "position_bias"):
        if asked.get(name) is not None:
            raise UnsupportedAttentionError(f"its attention has a `{name}`")


@contextmanager
def windows_seen() -> Iterator[list[int | None]]:
    """Collect the sliding window (None: there is none) of every attention over segments that runs in the block."""
    token = _windows.set(found := [])
    try:
        yield found
    finally:
        _windows.reset(token)


def switch_on(model: PreTrainedModel) -> None:
    """Let `model` attend over segments where a forward pass brings them. Raises UnsupportedAttentionError if it does not run `sdpa`."""
    kind = model.config._attn_implementation
    if kind == NAME:
        return
    if kind != "sdpa":
        raise UnsupportedAttentionError(f"its attention is `{kind}`, not `sdpa`")
    model.set_attn_implementation(NAME)
    if model.config._attn_implementation != NAME:
        raise UnsupportedAttentionError("its attention cannot be exchanged")


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
