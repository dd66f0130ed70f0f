"""Which records a step sees, in which order, and the loader that brings them."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from diffalign.core.parts import Index, Pairs
from diffalign.data.buckets import alike, block_order


@dataclass(frozen=True, slots=True, eq=False)
class Sampler:
    """Which records a step sees: sample g of the run is position perm(epoch)[g mod n], epoch = g div n.

    Samples are numbered over the whole effective batch, so that accumulation and processes only divide the same batch. So does the
    batch size, unless there are `buckets`: the order is then one in which a forward pass holds one bucket, if it can.
    """

    records: int
    batch_size: int
    accumulation: int
    processes: int
    rank: int
    seed: int
    buckets: np.ndarray | None = None  # (records,)
    index: Callable[[int], Index] | None = None  # of a sample number, instead of an order of all records: users sampled uniformly

    @property
    def effective(self) -> int:
        """Return the records of one optimiser step, over all processes."""
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
        return [part for block in blocks for part in alike(block, self.buckets[[position for position, _ in self.indices(block)]])]

    def indices(self, samples: Sequence[int]) -> list[Index]:
        """Return (position, epoch) of sample numbers."""
        if self.index is not None:
            return [self.index(g) for g in samples]
        return [(int(_order(self, g // self.records)[g % self.records]), g // self.records) for g in samples]

    def generators(self, samples: Sequence[int]) -> list[torch.Generator]:
        """Return one generator a sample."""
        return [sample_generator(self.seed, g) for g in samples]

    def batches(self, first_step: int, last_step: int) -> Iterator[list[Index]]:
        """Yield the indices of every forward pass from one step to another."""
        for step in range(first_step, last_step):
            yield from map(self.indices, self.passes(step))


@functools.lru_cache(maxsize=2)
def _order(sampler: Sampler, epoch: int) -> np.ndarray:
    """Return the positions (records,) of an epoch in their order."""
    rng = np.random.default_rng([sampler.seed, epoch])
    if sampler.buckets is None:
        return rng.permutation(sampler.records)
    return block_order(sampler.buckets, sampler.batch_size, epoch * sampler.records, rng)


def sample_generator(seed: int, sample: int) -> torch.Generator:
    """Return the generator of sample number `sample` of a run."""
    digest = hashlib.sha256(f"{seed}:{sample}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def loader(pairs: Pairs, sampler: Sampler, first_step: int, last_step: int, workers: int = 0) -> Iterator[Any]:
    """Yield the batches of all forward passes from one step to another; decoding runs in `workers` processes."""
    # A list, not the generator itself: the loader asks for its length, and workers may be started afresh.
    passes = list(sampler.batches(first_step, last_step))
    own = torch.Generator()  # else the loader would draw from the one that dropout draws from, at the first step of every process
    rows: Any = DataLoader(cast("Dataset[Any]", pairs), batch_sampler=passes, collate_fn=list, num_workers=workers, generator=own)
    for part in rows:
        yield pairs.to_batch(part)


def positions_alike(pairs: Pairs, size: int) -> list[list[int]]:
    """Return the positions of all records in parts of one bucket and at most `size`."""
    groups = [list(range(len(pairs)))] if pairs.buckets is None else alike(range(len(pairs)), pairs.buckets)
    return [group[start : start + size] for group in groups for start in range(0, len(group), size)]
