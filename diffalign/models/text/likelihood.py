"""The likelihood of a language model: sums of token log-probabilities over completions, in nats."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from diffalign.core.errors import ConfigError
from diffalign.core.types import Generator, Scores, TextBatch, Tokens
from diffalign.models.text.head import Head, States, collision, divergence, label_log_probs
from diffalign.models.text.layout import Rows, Targets, lay_out, length_mask


@dataclass(frozen=True, slots=True)
class Answer:
    """What a language model gives for rows: hidden states with the head that reads them, or logits."""

    values: Tensor  # (R, T, D) last hidden states; (R, T, V) logits if `head` is None
    head: Head | None = None
    hidden: Tensor | None = None  # (R, T, D) if asked for


class Read(Protocol):
    """Calls a language model."""

    def __call__(self, model: Any, rows: Rows, *, whole: bool, hidden: bool) -> Answer:
        """Return the answer for `rows`: logits if `whole` or if the head cannot be read; with `hidden`, the hidden states in any case."""
        ...


@dataclass(frozen=True, slots=True)
class Switches:
    """What makes texts faster; each gives the same numbers on or off."""

    share_prompt: bool = True
    padding_free: bool = True
    logits_chunk: int = 1024  # completion tokens that the head takes at once; 0: all logits, of prompts too


@dataclass(frozen=True, slots=True)
class Aggregation:
    """How token log-probabilities (B, K, L) under a mask make a score (B, K).

    `normalized`: objectives divide by lengths where they compare. `joint`: the prompt's tokens count as the completion's.
    """

    total: Callable[[Tensor, Tensor], Tensor]
    normalized: bool = False
    joint: bool = False


@dataclass(frozen=True, slots=True)
class Said:
    """What a model says of a batch."""

    tokens: Tensor  # (B, K, L) log-probabilities of the completions
    prompt: Tensor | None = None  # (B, K, P) of the prompts but their first tokens
    states: States | None = None  # of the N scored tokens, for what needs whole distributions
    size: Tensor | None = None  # (B, K, L) mean magnitude of the hidden states that predict them
    targets: Targets | None = None  # where they go


def token_sum(tokens: Tensor, mask: Tensor) -> Tensor:
    """Return the sum over a completion: (B, K)."""
    return (tokens * mask).sum(dim=2)


def ld_sum(tokens: Tensor, mask: Tensor, *, alpha: float) -> Tensor:
    """Return the sum of the first L tokens plus `alpha` times that of the rest, L the shorter length of the pair (LD-DPO, 2409.06411)."""
    shared = mask.sum(dim=2)[:, :2].amin(dim=1)
    first = length_mask(shared, mask.shape[2])[:, None]
    return (tokens * mask * torch.where(first, 1.0, alpha).to(tokens)).sum(dim=2)


def plain() -> Aggregation:
    """Return the sum of a completion's tokens, end of text included."""
    return Aggregation(token_sum)


def mean() -> Aggregation:
    """Return the sum, to be divided by the length wherever scores are compared: LN-DPO, IPO as TRL has it, SimPO."""
    return Aggregation(token_sum, normalized=True)


def ld_dpo(*, alpha: float = 0.5) -> Aggregation:
    """Return the sum in which tokens beyond the shorter completion of the pair count `alpha`."""
    if not 0.0 <= alpha <= 1.0:
        raise ConfigError(f"likelihood `ld_dpo`: `alpha` is {alpha}; it lies between 0 and 1")
    return Aggregation(lambda tokens, mask: ld_sum(tokens, mask, alpha=alpha))


def joint() -> Aggregation:
    """Return the sum over prompt and completion, the first token unscored (DOVE, 2404.00530): each candidate under its own prompt."""
    return Aggregation(token_sum, joint=True)


LIKELIHOODS: dict[str, Callable[..., Aggregation]] = {"sum": plain, "mean": mean, "ld_dpo": ld_dpo, "joint": joint}


@dataclass(frozen=True, slots=True)
class SequenceLikelihood:
    """Scores of a language model. `needs` are the fields of `Tokens` that the objective reads; without any, it sees sums alone."""

    read: Read
    aggregation: Aggregation = Aggregation(token_sum)
    switches: Switches = Switches()
    needs: frozenset[str] = frozenset()

    @property
    def distributions(self) -> bool:
        """Return whether the objective needs more of the reference than log-probabilities, which a cache cannot keep."""
        return bool(self.needs & {"kl", "activation"})

    def lengths(self, prompts: Sequence[Tensor], completions: Sequence[Tensor]) -> list[int]:
        """Return how many tokens of each candidate of a record are scored."""
        extra = [len(ids) - 1 if self.aggregation.joint else 0 for ids in prompts]
        return [len(ids) + more for ids, more in zip(completions, extra, strict=True)]

    def prepare(self, driver: Any, batch: TextBatch, generator: Generator) -> TextBatch:  # noqa: ARG002  # the protocol's
        """Return the batch: nothing is drawn."""
        return batch

    def score(self, model: Any, query: TextBatch) -> Said:
        """Return what a model says of a batch, in float32 at least."""
        batch, own = self._scored(query), self.switches
        rows = lay_out(batch, share_prompt=own.share_prompt, padding_free=own.padding_free, prompts="prompt" in self.needs)
        answer = self.read(model, rows, whole=own.logits_chunk == 0, hidden="activation" in self.needs)

        def states(targets: Targets) -> States:
            return States(_picked(answer.values, targets), answer.head)

        here = states(rows.completion)
        tokens = rows.completion.spread(label_log_probs(here, rows.completion.labels, own.logits_chunk))
        prompt = rows.prompt and rows.prompt.spread(label_log_probs(states(rows.prompt), rows.prompt.labels, own.logits_chunk))
        size = None if answer.hidden is None else magnitude(answer.hidden, rows.completion)
        return Said(tokens, prompt, here if self.needs & {"kl", "collision"} else None, size, rows.completion)

    def scores(self, policy: Said, reference: Said | Tensor | None, batch: TextBatch) -> Scores:
        """Return what the objective sees; a reference may be its token log-probabilities (B, K, L) alone, computed before."""
        labels, scored = batch.labels, self._scored(batch)
        lengths = _lengths(scored.completions, policy.tokens.device)
        mask = length_mask(lengths, policy.tokens.shape[2])
        others = reference.tokens if isinstance(reference, Said) else reference
        own = self.aggregation.total(policy.tokens, mask)
        their = None if others is None else self.aggregation.total(others, mask)
        tokens, why = self._tokens(policy, reference, others, mask, scored) if self.needs else None, None
        if batch.rationale is not None:  # the last completion is learned and compared with nothing
            why = batch.rationale * token_sum(policy.tokens[:, -1:], mask[:, -1:])[:, 0]
            own, their, lengths = own[:, :-1], None if their is None else their[:, :-1], lengths[:, :-1]
            tokens = tokens and tokens.without_last()
        common = (batch.prob, labels.weight, labels.offset, lengths, self.aggregation.normalized, labels.columns, tokens)
        return Scores(own, their, *common, mismatched=batch.mismatched, rationale=why)

    def _scored(self, batch: TextBatch) -> TextBatch:
        return as_one_text(batch) if self.aggregation.joint else batch

    def _tokens(self, policy: Said, reference: Said | Tensor | None, others: Tensor | None, mask: Tensor, batch: TextBatch) -> Tokens:
        tokens = Tokens(policy.tokens, mask, others, old=batch.old)
        chunk, own, targets = self.switches.logits_chunk, policy.states, policy.targets
        their = reference if isinstance(reference, Said) else Said(policy.tokens)
        if policy.prompt is not None:
            lengths = _lengths(batch.prompts, mask.device) - 1
            tokens = replace(tokens, prompt=policy.prompt, prompt_mask=length_mask(lengths, policy.prompt.shape[2]))
        if "activation" in self.needs and their.size is not None:
            tokens = replace(tokens, activation=their.size / their.size.amax(dim=2, keepdim=True))
        if "collision" in self.needs and own and targets:
            tokens = replace(tokens, collision=targets.spread(collision(own, chunk)))
        if "kl" in self.needs and own and their.states and targets:
            tokens = replace(tokens, kl=targets.spread(divergence(own, their.states, chunk)))
        return tokens


def as_one_text(batch: TextBatch) -> TextBatch:
    """Return the batch in which everything but the first token of a candidate's prompt belongs to its completion."""
    prompts = tuple(tuple(ids[:1] for ids in own) for own in batch.prompts)
    pairs = zip(batch.prompts, batch.completions, strict=True)
    texts = tuple(tuple(torch.cat([p[1:], c]) for p, c in zip(own, answer, strict=True)) for own, answer in pairs)
    return replace(batch, prompts=prompts, completions=texts)


def magnitude(hidden: Tensor, targets: Targets) -> Tensor:
    """Return the mean absolute value of the hidden state (R, T, D) at each scored token: (B, K, L).

    Reconstructed: SparsePO (2410.05102) names the size of the reference's activations, and its code was not available.
    """
    values = _picked(hidden, targets).detach()
    return targets.spread(values.to(torch.promote_types(values.dtype, torch.float32)).abs().mean(dim=1))


def _picked(values: Tensor, targets: Targets) -> Tensor:
    return values.flatten(0, 1).index_select(0, targets.scored)


def _lengths(texts: tuple[tuple[Tensor, ...], ...], device: torch.device) -> Tensor:
    return torch.tensor([[len(ids) for ids in own] for own in texts], device=device)
