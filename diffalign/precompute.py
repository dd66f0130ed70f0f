"""Points of a trajectory kept on disk beside the cached latents: what the reference's network computes need not be computed twice.

Each record has a bank of draws (its time, whether its prompt is dropped, and x_t of every candidate); an epoch takes the next.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from diffalign.backbones.base import Backbone
from diffalign.data.batch import CachedPairs, Index, progress
from diffalign.data.cache import Bank, open_folder
from diffalign.data.pixels import record_generator
from diffalign.diffusion.likelihood import DiffusionLikelihood, with_dropped
from diffalign.diffusion.path import landed
from diffalign.diffusion.random import uniform
from diffalign.types import Batch, Query, Reference

Job = tuple[int, int]  # (table row, draw)


class Precomputed(Dataset[dict[str, Any]]):
    """Cached pairs with the query already drawn; the constructor computes the points that are missing."""

    def __init__(
        self,
        pairs: CachedPairs,
        likelihood: DiffusionLikelihood,
        reference: Reference,
        draws: int,
        seed: int,
        facts: dict[str, Any],
        device: torch.device,
        batch_size: int = 16,
    ) -> None:
        self.pairs, self.path, self.draws, self.seed = pairs, likelihood.path, draws, seed
        self._position = {entry.row: position for position, entry in enumerate(pairs.view.entries)}
        facts = facts | {"latents": pairs.folder.name, "draws": draws, "seed": seed, "prompt_dropout": likelihood.prompt_dropout}
        folder = open_folder(pairs.folder.parent, "points", facts)
        records, candidates = len(pairs.view.table) * draws, int(pairs.first[-1]) * draws
        self._points = Bank(folder, "x_t", candidates, pairs.latent_shape, "float32")
        self._times = Bank(folder, "t", records, (), "float64")
        self._drops = Bank(folder, "drop", records, (), "bool")
        with torch.no_grad(), reference.driving() as network:
            for part in progress(self._missing(), batch_size, "cache trajectory"):
                self._fill(part, likelihood, network, device)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: Index) -> dict[str, Any]:
        entry, draw = self.pairs.view.entries[index[0]], index[1] % self.draws
        rows = self.pairs.bank_rows(entry.row, draw, self.draws)
        known = {
            "x_t": torch.from_numpy(self._points.read([rows[i] for i in entry.order])),
            "t": self._times.read([entry.row * self.draws + draw])[0],
            "drop": self._drops.read([entry.row * self.draws + draw])[0],
        }
        return self.pairs[index[0], draw] | known

    def to_batch(self, rows: list[dict[str, Any]]) -> Batch:
        """Return the batch of loaded rows with its query."""
        batch = self.pairs.to_batch(rows)
        t = torch.tensor([row["t"] for row in rows], dtype=torch.float64).to(self.path.solver_times(1).dtype)
        condition = with_dropped(batch.condition, batch.empty, torch.tensor([bool(row["drop"]) for row in rows]))
        return replace(batch, query=Query(landed(self.path, batch.x0, torch.stack([row["x_t"] for row in rows]), t), condition))

    def _missing(self) -> list[Job]:
        """Return (row, draw) of all points to compute, rows of equally many candidates together."""
        used = sorted((self._candidates(row), row) for row in self._position)
        jobs = itertools.product((row for _, row in used), range(self.draws))
        return [(row, draw) for row, draw in jobs if self._times.missing([row * self.draws + draw])]

    def _fill(self, jobs: Sequence[Job], likelihood: DiffusionLikelihood, network: nn.Module, device: torch.device) -> None:
        """Draw the points of `jobs` as a step would, and write them; the flag of a record goes last."""
        for _, group in itertools.groupby(jobs, key=lambda job: self._candidates(job[0])):
            part = list(group)
            generators, again = ([record_generator(f"{self.seed}:{row}", draw) for row, draw in part] for _ in range(2))
            noised = likelihood.prepare(network, self._batch(part).to(device), generators).noised
            drops = uniform(len(part), again) < likelihood.prompt_dropout  # the first draw of `prepare`
            points = [i for row, draw in part for i in self.pairs.bank_rows(row, draw, self.draws)]
            records = [row * self.draws + draw for row, draw in part]
            self._points.write(points, noised.x_t.flatten(0, 1).float().cpu().numpy())
            self._drops.write(records, drops.numpy())
            self._times.write(records, noised.t.double().cpu().numpy())

    def _batch(self, jobs: Sequence[Job]) -> Batch:
        """Return the latents of all candidates of each row, in the table's order, and its prompt."""
        rows = []
        for row, draw in jobs:
            latents = self.pairs.latents(row, range(self._candidates(row)), draw)
            rows.append({**self.pairs[self._position[row], draw], "latents": latents})
        return self.pairs.to_batch(rows)

    def _candidates(self, row: int) -> int:
        return len(self.pairs.bank_rows(row, 0, 1))


def weights_of(model: Backbone) -> str:
    """Return a hash over the denoiser's own weights (their first numbers), names and shapes, without its adapter."""
    digest = hashlib.sha256()
    for name, value in model.denoiser.state_dict().items():
        if "lora_" not in name:
            digest.update(f"{name}{tuple(value.shape)}".encode())
            digest.update(value.flatten()[:256].float().cpu().numpy().tobytes())
    return digest.hexdigest()
