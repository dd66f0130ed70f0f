"""The order of records: which of them each training step takes, and the loader that yields their batches."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from diffalign.core.parts import Index, Pairs
from diffalign.data.buckets import block_order, grouped


@dataclass(frozen=True, slots=True, eq=False)
class Sampler:
    """The records of each step: sample g of the run is the record at position perm(epoch)[g mod n], where epoch = g div n.

    Samples are numbered through whole effective batches, so how a batch is divided among accumulation steps and processes changes
    nothing. The batch size matters only with `buckets`: the order then lets as many forward passes as possible hold one bucket.
    """

    records: int
    batch_size: int
    accumulation: int
    processes: int
    rank: int
    seed: int
    buckets: np.ndarray | None = None  # (records,)
    index: Callable[[int], Index] | None = None  # (sample number) -> (position, epoch), in place of the random order of all records

    @property
    def effective(self) -> int:
        """Return the number of records of one optimiser step, over all processes."""
        return self.batch_size * self.accumulation * self.processes

    def samples(self, step: int, micro: int) -> range:
        """Return the sample numbers of one micro-batch of this process."""
        first = step * self.effective + (micro * self.processes + self.rank) * self.batch_size
        return range(first, first + self.batch_size)

    def passes(self, step: int) -> list[Sequence[int]]:
        """Return the sample numbers of all forward passes of a step: one for each micro-batch, or for each bucket in it."""
        blocks = [self.samples(step, micro) for micro in range(self.accumulation)]
        if self.buckets is None:
            return list(blocks)
        return [part for block in blocks for part in grouped(block, self.buckets[[position for position, _ in self.indices(block)]])]

    def indices(self, samples: Sequence[int]) -> list[Index]:
        """Return (position, epoch) of sample numbers."""
        if self.index is not None:
            return [self.index(g) for g in samples]
        return [(int(_order(self, g // self.records)[g % self.records]), g // self.records) for g in samples]

    def generators(self, samples: Sequence[int]) -> list[torch.Generator]:
        """Return one random generator per sample."""
        return [sample_generator(self.seed, g) for g in samples]

    def batches(self, first_step: int, last_step: int) -> Iterator[list[Index]]:
        """Yield the indices of every forward pass of the steps from `first_step` to before `last_step`."""
        for step in range(first_step, last_step):
            yield from map(self.indices, self.passes(step))


@functools.lru_cache(maxsize=2)
def _order(sampler: Sampler, epoch: int) -> np.ndarray:
    """Return the positions (records,) in the order of an epoch."""
    rng = np.random.default_rng([sampler.seed, epoch])
    if sampler.buckets is None:
        return rng.permutation(sampler.records)
    return block_order(sampler.buckets, sampler.batch_size, epoch * sampler.records, rng)


def sample_generator(seed: int, sample: int) -> torch.Generator:
    """Return the random generator of sample number `sample` of a run."""
    digest = hashlib.sha256(f"{seed}:{sample}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def loader(pairs: Pairs, sampler: Sampler, first_step: int, last_step: int, workers: int = 0) -> Iterator[Any]:
    """Yield the batches of all forward passes of the steps from `first_step` to before `last_step`; `workers` processes decode images."""
    passes: Any = _Passes(sampler, first_step, last_step)
    own = torch.Generator()  # else the loader would draw from the one that dropout draws from, at the first step of every process
    collate: Any = stacked if workers else list
    rows: Any = DataLoader(cast("Dataset[Any]", pairs), batch_sampler=passes, collate_fn=collate, num_workers=workers, generator=own)
    for part, indices in zip(rows, passes, strict=True):
        yield pairs.to_batch(unstacked(part, len(indices)) if workers else part)


@dataclass(frozen=True, slots=True)
class _Passes:
    """The indices of all forward passes of some steps, made as they are needed: those of a long run, as a list, take gigabytes."""

    sampler: Sampler
    first_step: int
    last_step: int

    def __iter__(self) -> Iterator[list[Index]]:
        return self.sampler.batches(self.first_step, self.last_step)


def stacked(rows: Sequence[Any]) -> Any:
    """Return rows as one: tensors that fit together in a tensor, dicts key by key, all else in a list.

    A worker hands over each tensor by itself, in shared memory: a few large ones take a fraction of the time, and of the open files.
    """
    first = rows[0]
    if isinstance(first, dict):
        return {name: stacked([row[name] for row in rows]) for name in first}
    if isinstance(first, Tensor) and all(row.shape == first.shape for row in rows):
        return torch.stack(list(rows))
    return list(rows)


def unstacked(whole: Any, count: int) -> list[Any]:
    """Return the `count` rows that `stacked` has made one of."""
    if isinstance(whole, dict):
        columns = {name: unstacked(values, count) for name, values in whole.items()}
        return [{name: values[i] for name, values in columns.items()} for i in range(count)]
    return list(whole)


def positions_by_bucket(pairs: Pairs, size: int) -> list[list[int]]:
    """Return the positions of all records in lists of at most `size`, each within one bucket."""
    groups = [list(range(len(pairs)))] if pairs.buckets is None else grouped(range(len(pairs)), pairs.buckets)
    return [group[start : start + size] for group in groups for start in range(0, len(group), size)]
