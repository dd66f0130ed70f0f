"""What a language model says of tokens, from its last hidden states, in chunks: logits of all tokens never exist at once.

The head multiplies in one precision, its weights' or that of autocast; what is computed of logits is in float32 at least.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True, slots=True)
class Head:
    """The output embedding: logits = hidden @ weight.T + bias."""

    weight: Tensor  # (V, D)
    bias: Tensor | None = None  # (V,)
    dtype: torch.dtype | None = None  # what it multiplies in; that of `weight` if None

    def logits(self, values: Tensor) -> Tensor:
        """Return (N, V) of hidden states (N, D), in float32 at least."""
        dtype = self.dtype or self.weight.dtype
        return _wide(F.linear(values.to(dtype), self.weight.to(dtype), self.bias if self.bias is None else self.bias.to(dtype)))


@dataclass(frozen=True, slots=True)
class States:
    """Hidden states (N, D) of N tokens with the head that reads them; or, without a head, their logits (N, V)."""

    values: Tensor
    head: Head | None

    def logits(self) -> Tensor:
        """Return (N, V), in float32 at least."""
        return _wide(self.values) if self.head is None else self.head.logits(self.values)


def label_log_probs(states: States, labels: Tensor, chunk: int) -> Tensor:
    """Return the log-probabilities (N,) of `labels` (N,) in nats, `chunk` tokens at a time.

    Of a frozen head the derivative, weight[label] - softmax @ weight, is taken on the way forward: no logits are kept, none computed twice.
    """
    if states.head is None:
        return torch.log_softmax(states.logits(), dim=1).gather(1, labels[:, None])[:, 0]
    head, size = states.head, chunk or len(labels)
    return _LabelLogProbs.apply(states.values, head.weight, head.bias, labels, size, head.dtype)  # pyright: ignore[reportReturnType]  # apply has no type


def divergence(policy: States, reference: States, chunk: int) -> Tensor:
    """Return KL(reference || policy) (N,) of the next-token distributions, with gradient to the policy; chunks are computed again."""

    def one(values: Tensor, other: Tensor) -> Tensor:
        log_probs = torch.log_softmax(States(values, policy.head).logits(), dim=1)
        with torch.no_grad():
            meant = torch.log_softmax(States(other, reference.head).logits(), dim=1)
        return (meant.exp() * (meant - log_probs)).sum(dim=1)

    size = chunk or len(policy.values)
    parts = zip(policy.values.split(size), reference.values.split(size), strict=True)
    if not torch.is_grad_enabled():
        return torch.cat([one(values, other) for values, other in parts])
    return torch.cat([cast(Tensor, checkpoint(one, values, other, use_reentrant=False)) for values, other in parts])


@torch.no_grad()
def collision(states: States, chunk: int) -> Tensor:
    """Return log sum_v p_v^2 (N,), without gradient."""
    parts = [States(values, states.head) for values in states.values.split(chunk or len(states.values))]
    return torch.cat([torch.logsumexp(2.0 * torch.log_softmax(part.logits(), dim=1), dim=1) for part in parts])


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


class _LabelLogProbs(torch.autograd.Function):
    """log softmax(hidden @ weight.T + bias)[labels], (N,)."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, chunk: int, dtype: torch.dtype | None
    ) -> Tensor:
        dtype, (sloped, *trained) = dtype or weight.dtype, ctx.needs_input_grad[:3]
        ctx.trained = any(trained)
        matrix, wide = weight.to(dtype), torch.promote_types(dtype, torch.float32)
        values, slopes, kept = [], [], None
        for own, aim in zip(hidden.split(chunk), labels.split(chunk), strict=True):
            log_probs, odds = _said(own.to(dtype), matrix, bias, aim, wide)
            values.append(log_probs)
            if ctx.trained and len(own) == len(hidden):
                kept = odds  # one chunk: to keep it takes less than to compute it again
            elif sloped and not ctx.trained:
                slopes.append((matrix[aim].to(wide) - odds.to(dtype) @ matrix).to(hidden.dtype))
            del odds
        ctx.chunk, ctx.dtype = chunk, dtype
        own = (hidden, weight, bias, labels, kept) if ctx.trained else (torch.cat(slopes) if slopes else None,)
        ctx.save_for_backward(*own)
        return torch.cat(values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]  # one output
        if not ctx.trained:
            (slope,) = ctx.saved_tensors
            return (grad[:, None].to(slope.dtype) * slope, None, None, None, None, None)
        return (*_trained_gradients(ctx, grad), None, None, None)


def _said(hidden: Tensor, matrix: Tensor, bias: Tensor | None, labels: Tensor, wide: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the labels' log-probabilities (n,) and all probabilities (n, V), in place of the logits."""
    logits = F.linear(hidden, matrix, None if bias is None else bias.to(hidden.dtype)).to(wide)
    top = logits.amax(dim=1, keepdim=True)
    chosen = logits.gather(1, labels[:, None])
    total = logits.sub_(top).exp_().sum(dim=1, keepdim=True)
    return (chosen - top - total.log())[:, 0], logits.div_(total)


def _trained_gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients of hidden states, weight and bias, one chunk at a time."""
    hidden, weight, bias, labels, kept = ctx.saved_tensors
    matrix, wide = weight.to(ctx.dtype), torch.promote_types(ctx.dtype, torch.float32)
    own, of_weight, of_bias = [], torch.zeros_like(weight, dtype=wide), None if bias is None else torch.zeros_like(bias, dtype=wide)
    for part, aim, slope in zip(*(x.split(ctx.chunk) for x in (hidden, labels, grad)), strict=True):
        odds = _said(part.to(ctx.dtype), matrix, bias, aim, wide)[1] if kept is None else kept
        error = (odds * -slope[:, None]).scatter_add_(1, aim[:, None], slope[:, None].to(wide))  # slope * (one-hot - probabilities)
        del odds
        narrow = error.to(ctx.dtype)
        own.append((narrow @ matrix).to(hidden.dtype))
        _add_product(of_weight, narrow, part.to(ctx.dtype))
        if of_bias is not None:
            of_bias += error.sum(dim=0)
    return torch.cat(own), of_weight.to(weight.dtype), of_bias  # autograd casts what it is given to the inputs' own precision


def _add_product(total: Tensor, error: Tensor, hidden: Tensor) -> None:
    """Add error.T @ hidden to `total` (V, D), in place."""
    if total.dtype == error.dtype:
        total.addmm_(error.t(), hidden)
    else:
        total += error.t() @ hidden
