"""Points of a trajectory kept on disk beside the cached latents: what the reference's network computes need not be computed twice.

Each record has a bank of draws (its time, whether its prompt is dropped, and x_t of every candidate); an epoch takes the next.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from diffalign.core.parts import Index
from diffalign.core.processes import shares
from diffalign.core.progress import chunks
from diffalign.core.types import Batch, Query, Reference
from diffalign.data.batch import CachedPairs
from diffalign.data.cache import Bank, filling, open_folder, packed, unpacked
from diffalign.data.pixels import record_generator
from diffalign.models.backbones.base import Backbone
from diffalign.models.diffusion.likelihood import DiffusionLikelihood, with_dropped
from diffalign.models.diffusion.path import FlowPath, landed
from diffalign.models.weights import add_tensor

# Of an adapter, and of a user branch with its encoder: the base's points do not depend on them.
TRAINED = ("lora_", "_ip.", "encoder_hid_proj.", "image_proj.", "norm_ip.", "user_")


class Precomputed(Dataset[dict[str, Any]]):
    """Cached pairs with the query already drawn; the constructor computes the points that are missing.

    `facts` must name everything that the points depend on besides the latents: trajectory, schedule, network, precision.
    """

    def __init__(
        self,
        pairs: CachedPairs,
        likelihood: DiffusionLikelihood,
        reference: Reference,
        draws: int,
        seed: int,
        facts: dict[str, Any],
        device: torch.device,
    ) -> None:
        self.pairs, self.path, self.draws, self.buckets = pairs, likelihood.path, draws, pairs.buckets
        self._position = {row: place for place, row in enumerate(pairs.view.entries.rows.tolist())}
        own = {"latents": pairs.folder.name, "seed": seed, "prompt_dropout": likelihood.prompt_dropout, "version": 1}
        folder = open_folder(pairs.folder.parent, "points", facts | own)
        rows, candidates = len(pairs.view.table), int(pairs.first[-1])
        # One array a draw, so that more draws find the first ones there.
        self._points = [Bank(folder, f"x_t-{d}", candidates, pairs.row_shape, "float32") for d in range(draws)]
        self._times = [Bank(folder, f"t-{d}", rows, (), "float64") for d in range(draws)]
        self._drops = [Bank(folder, f"drop-{d}", rows, (), "bool") for d in range(draws)]
        with torch.no_grad(), reference.driving() as network, filling(folder):
            for own in shares(self.missing):
                for part in chunks(own, 16, "cache trajectory"):
                    for (draw, *_), group in itertools.groupby(part, key=lambda job: (job[0], *self._kind(job[1]))):
                        self._fill(draw, [row for _, row in group], likelihood, network, device, seed)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: Index) -> dict[str, Any]:
        entry, draw = self.pairs.view.entries[index[0]], index[1] % self.draws
        rows = self.pairs.bank_rows(entry.row, 0, 1)
        points = self._points[draw].read([rows[i] for i in entry.order])
        sizes = {
            "x_t": torch.from_numpy(unpacked(points, self.pairs.latent_shape(entry.row))),
            "t": self._times[draw].read([entry.row])[0],
            "drop": self._drops[draw].read([entry.row])[0],
        }
        return self.pairs[index[0], draw] | sizes

    def to_batch(self, rows: list[dict[str, Any]]) -> Batch:
        """Return the batch of loaded rows of one bucket with its query."""
        batch = self.pairs.to_batch(rows)
        t = torch.tensor([row["t"] for row in rows], dtype=torch.float64).to(self.path.solver_times(1).dtype)
        dropped = torch.tensor([bool(row["drop"]) for row in rows])
        noised = landed(self.path, batch.x0, torch.stack([row["x_t"] for row in rows]), t)
        condition = with_dropped(batch.condition, batch.empty, dropped)
        return replace(batch, query=Query(noised, condition, dropped, batch.frames, batch.conditioning))

    def missing(self) -> list[tuple[int, int]]:
        """Return (draw, row) of all points to compute, rows of equally many candidates, and of one size, together."""
        rows, first = list(self._position), self.pairs.first
        places = [i for row in rows for i in self.pairs.bank_rows(row, 0, 1)]
        jobs = []
        for draw in range(self.draws):
            lacking = {*self._times[draw].missing(rows), *self._drops[draw].missing(rows)}
            lacking |= set((np.searchsorted(first, self._points[draw].missing(places), "right") - 1).tolist())
            jobs += [(draw, row) for row in sorted(sorted(lacking), key=self._kind)]
        return jobs

    def _fill(
        self, draw: int, rows: Sequence[int], likelihood: DiffusionLikelihood, network: nn.Module, device: torch.device, seed: int
    ) -> None:
        """Draw points as a step would, for all candidates of each row in the table's order; the flag of a record goes last."""
        generators = [record_generator(f"{seed}:{row}", draw) for row in rows]
        query = likelihood.prepare(network, self._batch(rows, draw).to(device), generators)
        dropped = torch.zeros(len(rows), dtype=torch.bool) if query.dropped is None else query.dropped
        points = [i for row in rows for i in self.pairs.bank_rows(row, 0, 1)]
        self._points[draw].write(points, packed(query.noised.x_t.flatten(0, 1).float().cpu().numpy(), self.pairs.row_shape))
        self._drops[draw].write(rows, dropped.numpy())
        self._times[draw].write(rows, query.noised.t.double().cpu().numpy())

    def _batch(self, rows: Sequence[int], draw: int) -> Batch:
        """Return the latents and frames of all candidates of table rows, and their prompts."""
        loaded = []
        for row in rows:
            images = self.pairs.images(row, range(self._candidates(row)), draw)
            loaded.append({**self.pairs[self._position[row], draw], **images})
        return self.pairs.to_batch(loaded)

    def _kind(self, row: int) -> tuple[int, ...]:
        """Return what the rows of a batch must share: the number of candidates, and the size of the images."""
        return (self._candidates(row), *self.pairs.sizes[row])

    def _candidates(self, row: int) -> int:
        return int(self.pairs.first[row + 1] - self.pairs.first[row])


def network_facts(model: Backbone) -> dict[str, str]:
    """Return hashes over the denoiser's own weights, and over the schedule it was made for."""
    weights = hashlib.sha256()
    for name, value in model.denoiser.state_dict().items():
        if not any(part in name for part in TRAINED):
            name = name.replace(".base_layer", "")
            if type(value) in (Tensor, nn.Parameter):
                add_tensor(weights, name, value)
            else:  # quantised, whose bytes torchao does not show; biases and norms tell the network by their numbers
                weights.update(f"{name}{tuple(value.shape)}{value.dtype}{type(value).__name__}".encode())
    path = model.path
    kind = (path.prediction, path.dynamic if isinstance(path, FlowPath) else None)
    levels = torch.stack(path.level(path.solver_times(100))).cpu().numpy().tobytes()
    return {"denoiser": weights.hexdigest(), "schedule": hashlib.sha256(repr(kind).encode() + levels).hexdigest()}
