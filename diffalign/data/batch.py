"""From a view to batches: `LivePairs` encodes images and prompts in every step, `CachedPairs` once, on disk, before training.

Both are torch datasets over (position, epoch) and give the same batch for the same draw.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from diffalign.data.cache import Bank, open_folder
from diffalign.data.pixels import Framing, candidate_pixels, record_generator
from diffalign.data.view import View
from diffalign.types import Batch, Condition

Index = tuple[int, int]  # (position in the view, epoch)


class Pairs(Protocol):
    """Training data: a torch dataset over (position, epoch) whose rows make batches."""

    def __len__(self) -> int:
        """Return the number of records."""
        ...

    def __getitem__(self, index: Index) -> dict[str, Any]:
        """Return one loaded record."""
        ...

    def to_batch(self, rows: list[dict[str, Any]]) -> Batch:
        """Return the batch of loaded rows."""
        ...


@dataclass(frozen=True, slots=True)
class Encoders:
    """The frozen halves of a backbone, as functions."""

    image: Callable[[Tensor, Tensor], Tensor]  # pixels (N,3,h,w), noise (N,C,H,W) -> latents (N,C,H,W)
    prompt: Callable[[Sequence[str]], Condition]
    latent_shape: tuple[int, int, int]
    fingerprint: str


class LivePairs(Dataset[dict[str, Any]]):
    """Decodes and frames images (in loader processes); `to_batch` runs VAE and text encoder."""

    def __init__(self, view: View, encoders: Encoders, framing: Framing, variants: int) -> None:
        self.view, self.encoders, self.framing, self.variants = view, encoders, framing, variants
        self.empty = {name: value.cpu() for name, value in encoders.prompt([""]).items()}

    def __len__(self) -> int:
        return len(self.view)

    def __getitem__(self, index: Index) -> dict[str, Any]:
        position, epoch = index
        entry = self.view.entries[position]
        shape, order = self.encoders.latent_shape, list(entry.order)
        if order:
            pixels, noise = framed(self.view, entry.row, epoch % self.variants, self.framing, shape)
        else:
            pixels, noise = torch.zeros(0, 3, 1, 1), torch.zeros(0, *shape)
        return {"pixels": pixels[order], "noise": noise[order], "prompt": entry.prompt, "prob": entry.prob, "id": entry.id}

    def to_batch(self, rows: list[dict[str, Any]]) -> Batch:
        """Return the batch of loaded rows; runs the encoders."""
        pixels, noise = (torch.cat([row[name] for row in rows]) for name in ("pixels", "noise"))
        latents = self.encoders.image(pixels, noise) if len(pixels) else noise
        condition = self.encoders.prompt([row["prompt"] for row in rows])
        prob = torch.tensor([row["prob"] for row in rows])
        x0 = latents.unflatten(0, (len(rows), len(latents) // len(rows)))
        return Batch(x0, condition, self.empty, prob, tuple(row["id"] for row in rows))


def framed(view: View, row: int, variant: int, framing: Framing, latent_shape: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """Return pixels (K, 3, h, w) and posterior noise (K, C, H, W) of all candidates of a table row; drawn by id and variant."""
    record = view.table[row]
    generator = record_generator(record.id, variant)
    pixels = candidate_pixels(record, framing, generator)
    return pixels, torch.randn((len(pixels), *latent_shape), generator=generator)


class CachedPairs(Dataset[dict[str, Any]]):
    """Reads latents and prompt embeddings from disk; the constructor computes those that are missing."""

    def __init__(self, view: View, encoders: Encoders, framing: Framing, variants: int, root: Path, batch_size: int = 16) -> None:
        self.view, self.variants = view, variants
        counts = [batch.column("candidates").value_lengths().to_numpy() for batch in view.table.batches()]
        self.first = np.concatenate([[0], np.cumsum(np.concatenate(counts))])
        facts = {"table": view.table.fingerprint, "model": encoders.fingerprint}
        folder = open_folder(root, "latents", facts | {"framing": asdict(framing), "variants": variants})
        self.folder, self.latent_shape = folder, encoders.latent_shape
        self._latents = Bank(folder, "latents", int(self.first[-1]) * variants, encoders.latent_shape, "float32")
        self._fill_latents(encoders, framing, batch_size)
        self._prompts = {"": 0}
        for prompt in view.table.column("prompt"):
            self._prompts.setdefault(prompt, len(self._prompts))
        self._conditions = self._fill_prompts(encoders, open_folder(root, "prompts", facts), batch_size)
        self.empty = {name: torch.from_numpy(bank.read([0])) for name, bank in self._conditions.items()}

    def __len__(self) -> int:
        return len(self.view)

    def __getitem__(self, index: Index) -> dict[str, Any]:
        position, epoch = index
        entry = self.view.entries[position]
        condition = {name: torch.from_numpy(bank.read([self._prompts[entry.prompt]])[0]) for name, bank in self._conditions.items()}
        latents = self.latents(entry.row, entry.order, epoch)
        return {"latents": latents, "condition": condition, "prob": entry.prob, "id": entry.id}

    def latents(self, row: int, order: Sequence[int], epoch: int) -> Tensor:
        """Return the latents (K, C, H, W) of a table row's candidates in `order`; K = 0 for a prompt alone."""
        rows = self.bank_rows(row, epoch % self.variants, self.variants)
        return torch.from_numpy(self._latents.read([rows[i] for i in order]))

    def to_batch(self, rows: list[dict[str, Any]]) -> Batch:
        """Return the batch of loaded rows."""
        condition = {name: torch.stack([row["condition"][name] for row in rows]) for name in rows[0]["condition"]}
        prob = torch.tensor([row["prob"] for row in rows])
        return Batch(torch.stack([row["latents"] for row in rows]), condition, self.empty, prob, tuple(row["id"] for row in rows))

    def bank_rows(self, row: int, variant: int, variants: int) -> list[int]:
        """Return the positions, in a bank of `variants` for each candidate, of all candidates of a table row."""
        return [first * variants + variant for first in range(int(self.first[row]), int(self.first[row + 1]))]

    def _fill_latents(self, encoders: Encoders, framing: Framing, batch_size: int) -> None:
        rows, variants = sorted({entry.row for entry in self.view.entries if entry.order}), self.variants
        jobs = [(row, v) for row in rows for v in range(variants) if self._latents.missing(self.bank_rows(row, v, variants))]
        for part in progress(jobs, batch_size, "cache latents"):
            loaded = [framed(self.view, row, v, framing, encoders.latent_shape) for row, v in part]
            latents = encoders.image(torch.cat([pixels for pixels, _ in loaded]), torch.cat([noise for _, noise in loaded]))
            self._latents.write([i for row, v in part for i in self.bank_rows(row, v, variants)], latents.float().cpu().numpy())

    def _fill_prompts(self, encoders: Encoders, folder: Path, batch_size: int) -> dict[str, Bank]:
        shapes = {name: tuple(value.shape[1:]) for name, value in encoders.prompt([""]).items()}
        banks = {name: Bank(folder, name, len(self._prompts), shape, "float32") for name, shape in shapes.items()}
        used = {"": 0} | {entry.prompt: self._prompts[entry.prompt] for entry in self.view.entries}
        missing = {i for bank in banks.values() for i in bank.missing(list(used.values()))}
        jobs = [(prompt, i) for prompt, i in used.items() if i in missing]
        for part in progress(jobs, 4 * batch_size, "cache prompts"):
            for name, value in encoders.prompt([prompt for prompt, _ in part]).items():
                banks[name].write([i for _, i in part], value.float().cpu().numpy())
        return banks


def progress(jobs: list[Any], size: int, label: str) -> Iterator[list[Any]]:
    """Yield `jobs` in parts of `size` under a progress bar."""
    with tqdm(total=len(jobs), desc=label, disable=None if jobs else True) as bar:
        for start in range(0, len(jobs), size):
            yield jobs[start : start + size]
            bar.update(len(jobs[start : start + size]))


@dataclass(frozen=True, slots=True)
class Sampler:
    """Which records a step sees: sample g of the run is position perm(epoch)[g mod n], epoch = g div n.

    Samples are numbered over the whole effective batch, so that accumulation and processes only divide the same batch.
    """

    records: int
    batch_size: int
    accumulation: int
    processes: int
    rank: int
    seed: int

    @property
    def effective(self) -> int:
        """Return the records of one optimiser step, over all processes."""
        return self.batch_size * self.accumulation * self.processes

    def samples(self, step: int, micro: int) -> range:
        """Return the sample numbers of one forward pass of this process."""
        first = step * self.effective + (micro * self.processes + self.rank) * self.batch_size
        return range(first, first + self.batch_size)

    def indices(self, samples: range) -> list[Index]:
        """Return (position, epoch) of sample numbers."""
        return [(int(_permutation(self.records, self.seed, g // self.records)[g % self.records]), g // self.records) for g in samples]

    def generators(self, samples: range) -> list[torch.Generator]:
        """Return one generator a sample."""
        return [sample_generator(self.seed, g) for g in samples]

    def batches(self, first_step: int, last_step: int) -> Iterator[list[Index]]:
        """Yield the indices of every forward pass from one step to another."""
        for step, micro in itertools.product(range(first_step, last_step), range(self.accumulation)):
            yield self.indices(self.samples(step, micro))


@functools.lru_cache(maxsize=2)
def _permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(count)


def sample_generator(seed: int, sample: int) -> torch.Generator:
    """Return the generator of sample number `sample` of a run."""
    digest = hashlib.sha256(f"{seed}:{sample}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def loader(pairs: Pairs, sampler: Sampler, first_step: int, last_step: int, workers: int = 0) -> Iterator[Batch]:
    """Yield the batches of all forward passes from one step to another; decoding runs in `workers` processes."""
    # A list, not the generator itself: the loader asks for its length, and workers may be started afresh.
    passes = list(sampler.batches(first_step, last_step))
    rows: Any = DataLoader(cast("Dataset[Any]", pairs), batch_sampler=passes, collate_fn=list, num_workers=workers)
    for part in rows:
        yield pairs.to_batch(part)
