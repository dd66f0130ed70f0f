"""The passes of the anchor in a step: its records, its generators and its gradient, beside those of the preferences."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from diffalign.data.sampler import Sampler, loader
from diffalign.methods.config import TrainConfig
from diffalign.methods.parts import Parts
from diffalign.train.step import Driving, preference_step

SPACING = 1_000_003  # between the seeds of the preferences' samples and of the anchor's


@dataclass(slots=True)
class Anchor:
    """The anchor of a run: as many records a step as the preferences have, each with one candidate."""

    parts: Parts
    sampler: Sampler
    weight: float
    steps: int  # of the whole run
    workers: int
    batches: Iterator[Any] | None = field(default=None, repr=False)  # from the step that is taken first

    @classmethod
    def of(cls, config: TrainConfig, parts: Parts, division: tuple[int, int, int, int]) -> Anchor | None:
        """Return the anchor of a run, None where it has none. `division` is the sampler's batch, accumulation, processes and rank."""
        if (own := parts.anchor) is None or config.anchor_weight is None:
            return None
        sampler = Sampler(len(own.pairs), *division, config.seed + SPACING, own.pairs.buckets)
        return cls(own, sampler, config.anchor_weight, config.max_train_steps, config.dataloader_num_workers)

    def gradients(self, step: int, policy: nn.Module, accelerator: Accelerator, driving: Driving) -> dict[str, Tensor]:
        """Add the gradient of the weighted loss of a step's records; return the loss, as the log has it, under "anchor".

        Processes do not exchange gradients here: the preferences' last pass does, after it.
        """
        passes = self.sampler.passes(step)
        if self.batches is None:
            self.batches = loader(self.parts.pairs, self.sampler, step, self.steps, self.workers)
        total, records = torch.zeros((), device=accelerator.device), sum(map(len, passes))
        with accelerator.no_sync(policy):
            for samples in passes:
                batch = next(self.batches).to(accelerator.device)
                loss, _ = preference_step(self.parts, policy, batch, self.sampler.generators(samples), driving)
                share = loss * len(samples) / records
                accelerator.backward(self.weight * share)
                total += share.detach()
        return {"anchor": total}
