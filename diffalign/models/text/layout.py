"""From ragged texts to the rows that a language model reads, and back to one number for each token.

Two switches, four layouts. `share_prompt`: the prompt of a record stands once, and each candidate continues it, blind to the others.
`padding_free`: all records stand in one row. With neither, rows are the ordinary right-padded ones of every causal model.
The last token of a completion predicts nothing that is scored, so it is never read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diffalign.core.errors import TableError
from diffalign.core.types import TextBatch


@dataclass(frozen=True, slots=True)
class Segment:
    """A prompt and its continuations, one after another in a row. Each token sees the prompt and its own continuation, up to itself."""

    row: int
    start: int  # first token of the prompt in the row
    prompt: int  # tokens
    parts: tuple[int, ...]  # tokens of each continuation; zero if there is nothing to read

    @property
    def size(self) -> int:
        """Return the number of its tokens."""
        return self.prompt + sum(self.parts)

    @property
    def longest(self) -> int:
        """Return the number of tokens of its longest text."""
        return self.prompt + max(self.parts)

    def offset(self, part: int) -> int:
        """Return where a continuation begins in the row."""
        return self.start + self.prompt + sum(self.parts[:part])


@dataclass(frozen=True, slots=True)
class Targets:
    """The N tokens that are scored, and where their numbers go."""

    scored: Tensor  # (N,) int64: index into R*T of the place that predicts the token
    labels: Tensor  # (N,) int64: the token
    places: Tensor  # (N,) int64: index into B*K*L
    shape: tuple[int, int, int]  # B, K, L
    lengths: Tensor  # (B, K) int64: scored tokens

    @property
    def mask(self) -> Tensor:
        """Return which places (B, K, L) hold a token."""
        return length_mask(self.lengths, self.shape[2])

    def spread(self, values: Tensor) -> Tensor:
        """Return values (N,) in their places (B, K, L), zero elsewhere; differentiable."""
        count = int(np.prod(self.shape))
        return values.new_zeros(count).index_copy(0, self.places, values).view(self.shape)


@dataclass(frozen=True, slots=True)
class Rows:
    """What a model reads: R rows of T tokens."""

    ids: Tensor  # (R, T) int64, zero where there is no token
    positions: Tensor  # (R, T) int64
    mask: Tensor  # (R, T) bool
    completion: Targets
    prompt: Targets | None = None  # only if asked for: every token of the prompt but the first
    segments: tuple[Segment, ...] | None = None  # None: rows are causal and padded on the right


@dataclass(frozen=True, slots=True)
class _Unit:
    """Candidates that stand in one segment: `members` are numbers b*K + k."""

    prompt: Tensor
    members: tuple[int, ...]


def length_mask(lengths: Tensor, size: int) -> Tensor:
    """Return (..., size) bool: the first `lengths` (...) places."""
    return torch.arange(size, device=lengths.device) < lengths[..., None]


def lay_out(batch: TextBatch, *, share_prompt: bool, padding_free: bool, prompts: bool = False) -> Rows:
    """Return the rows of a batch; with `prompts`, the prompts' own tokens are scored too.

    Records whose candidates have different prompts are not shared. Raises TableError if a prompt or a completion has no token.
    """
    completions = [ids for own in batch.completions for ids in own]
    units = list(_units(batch, share=share_prompt))
    segments = _segments(units, [len(ids) - 1 for ids in completions], padding_free=padding_free)
    shape = (1 + max(s.row for s in segments), max(s.start + s.size for s in segments))
    read = [ids for unit in units for ids in (unit.prompt, *(completions[m][:-1] for m in unit.members))]
    columns = [(s.row * shape[1] + offset, length, first) for s in segments for offset, length, first in _stretches(s)]
    where, positions = _ranges([(to, n) for to, n, _ in columns]), _ranges([(first, n) for _, n, first in columns])
    device, count = batch.prob.device, shape[0] * shape[1]
    index = torch.from_numpy(where).to(device)
    ids = torch.zeros(count, dtype=torch.int64, device=device).index_copy(0, index, torch.cat(read))
    places = torch.zeros(count, dtype=torch.int64, device=device).index_copy(0, index, torch.from_numpy(positions).to(device))
    mask = torch.zeros(count, dtype=torch.bool, device=device).index_fill(0, index, value=True)
    targets = _completion_targets(batch, units, segments, shape[1])
    own = _prompt_targets(batch, units, segments, shape[1]) if prompts else None
    shared = segments if share_prompt or padding_free else None
    return Rows(ids.view(shape), places.view(shape), mask.view(shape), targets, own, shared)


def _units(batch: TextBatch, *, share: bool) -> Iterator[_Unit]:
    for b, (prompts, completions) in enumerate(zip(batch.prompts, batch.completions, strict=True)):
        if not all(len(ids) for ids in (*prompts, *completions)):
            name = batch.ids[b] if batch.ids else str(b)
            raise TableError(f"record {name}: a prompt or a completion without a token; an empty prompt needs a token to begin with")
        members = range(b * len(prompts), (b + 1) * len(prompts))
        if share and all(ids is prompts[0] or torch.equal(ids, prompts[0]) for ids in prompts[1:]):
            yield _Unit(prompts[0], tuple(members))
        else:
            yield from (_Unit(ids, (member,)) for ids, member in zip(prompts, members, strict=True))


def _segments(units: Sequence[_Unit], read: Sequence[int], *, padding_free: bool) -> tuple[Segment, ...]:
    """Return where the units stand; `read` is how many tokens of each candidate's completion are."""
    segments, start = [], 0
    for number, unit in enumerate(units):
        parts = tuple(read[m] for m in unit.members)
        segments.append(Segment(0 if padding_free else number, start, len(unit.prompt), parts))
        start += segments[-1].size if padding_free else 0
    return tuple(segments)


def _stretches(segment: Segment) -> Iterator[tuple[int, int, int]]:
    """Yield (place in the row, tokens, first position) of the prompt and of each continuation."""
    yield segment.start, segment.prompt, 0
    for part, length in enumerate(segment.parts):
        yield segment.offset(part), length, segment.prompt


def _completion_targets(batch: TextBatch, units: Sequence[_Unit], segments: Sequence[Segment], width: int) -> Targets:
    completions = [ids for own in batch.completions for ids in own]
    order, scored = [], []
    for unit, segment in zip(units, segments, strict=True):
        row = segment.row * width
        for part, member in enumerate(unit.members):
            order.append(member)
            scored += [(row + segment.start + segment.prompt - 1, 1), (row + segment.offset(part), segment.parts[part])]
    return _targets(batch, [completions[m] for m in order], order, scored)


def _prompt_targets(batch: TextBatch, units: Sequence[_Unit], segments: Sequence[Segment], width: int) -> Targets:
    pairs = [(unit, segment, member) for unit, segment in zip(units, segments, strict=True) for member in unit.members]
    scored = [(s.row * width + s.start, s.prompt - 1) for _, s, _ in pairs]
    return _targets(batch, [unit.prompt[1:] for unit, _, _ in pairs], [member for _, _, member in pairs], scored)


def _targets(batch: TextBatch, labels: Sequence[Tensor], members: Sequence[int], scored: Sequence[tuple[int, int]]) -> Targets:
    """Return the targets of candidates `members`, whose `labels` are predicted at the ranges `scored`, in that order."""
    device, count = batch.prob.device, len(batch.prompts[0])
    size = max(len(ids) for ids in labels)
    lengths = torch.zeros(len(members), dtype=torch.int64)
    lengths[list(members)] = torch.tensor([len(ids) for ids in labels])
    places = _ranges([(member * size, len(ids)) for member, ids in zip(members, labels, strict=True)])
    index, to = (torch.from_numpy(x).to(device) for x in (_ranges(scored), places))
    shape = (len(batch.prompts), count, size)
    return Targets(index, torch.cat(list(labels)), to, shape, lengths.view(shape[:2]).to(device))


def _ranges(spans: Sequence[tuple[int, int]]) -> np.ndarray:
    """Return all ranges (first, count) one after another, int64."""
    return np.concatenate([np.arange(first, first + count, dtype=np.int64) for first, count in spans])
