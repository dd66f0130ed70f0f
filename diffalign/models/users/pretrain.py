"""Fits the encoder `pairs` before the training: to predict users' choices from their other ones, for which no denoiser is needed.

It takes seconds, and a denoiser learns far sooner what to draw for whom when the tokens already tell users apart. One user in ten is left
out of it, to see whether a few pairs say anything about the next choice of somebody new.
"""

from __future__ import annotations

import logging

import numpy as np
import torch
from torch import Tensor

from diffalign.core.progress import progress
from diffalign.models.users.encoders import PairsEncoder
from diffalign.models.users.evidence import ChoicesEvidence
from diffalign.models.users.settings import PairsSettings

logger = logging.getLogger(__name__)
LEARNING_RATE, WEIGHT_DECAY = 1e-3, 0.1
JITTER = 0.3  # of a feature's deviation, added to every one: there are few images, and the encoder would know each
MOST = 10_000  # pairs that mean and deviation are measured on


def fit(encoder: PairsEncoder, evidence: ChoicesEvidence, known: PairsSettings, seed: int) -> None:
    """Standardise the encoder's features and fit it, on the CPU; log how well it tells the choices of users it was not fitted to."""
    rng = np.random.default_rng([seed, 3])
    some = np.random.default_rng([seed, 4]).permutation(len(evidence.view))[:MOST]
    encoder.standardise(evidence.read(np.sort(some).tolist()).flatten(0, 1))
    users = rng.permutation(len(evidence.users))
    kept = users[len(users) // 10 :]
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 - step / known.fit_steps)
    with progress(total=known.fit_steps, desc="fit user encoder", unit="steps") as bar:
        for step in range(known.fit_steps):
            batch = _batch(evidence, kept, known.fit_batch, rng)
            for name in ("user", "user_query"):
                batch[name] = batch[name] + JITTER * encoder.deviation * torch.from_numpy(
                    rng.standard_normal(batch[name].shape, np.float32)
                )
            facts = encoder.penalty(batch, step / known.fit_steps)
            optimizer.zero_grad()
            facts["penalty"].backward()
            optimizer.step()
            schedule.step()
            bar.update()
            bar.set_postfix(accuracy=f"{float(facts['user/accuracy']):.2f}")
    optimizer.zero_grad()  # else the first step of the training would take the last gradient, too
    _tell(encoder, evidence, users[: len(users) // 10], rng)


@torch.no_grad()
def _tell(encoder: PairsEncoder, evidence: ChoicesEvidence, left_out: np.ndarray, rng: np.random.Generator) -> None:
    if not len(left_out):
        return
    encoder.eval()  # a variational one says its mean
    accuracy = float(encoder.penalty(_batch(evidence, left_out, 1000, rng), 1.0)["user/accuracy"])
    encoder.train()
    logger.info("the user encoder tells %.0f %% of the choices of %d users it was not fitted to", 100 * accuracy, len(left_out))
    if accuracy < 0.52:
        logger.warning("a user's pairs say next to nothing about their other choices; tokens will hardly be personal")


def _batch(evidence: ChoicesEvidence, users: np.ndarray, size: int, rng: np.random.Generator) -> dict[str, Tensor]:
    """Return the evidence of `size` random records, users uniform."""
    chosen = [evidence.users.positions[user] for user in rng.choice(users, size)]
    rows = [evidence.few(int(rng.choice(positions)), rng) for positions in chosen]
    batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    longest = int(batch["user_mask"].sum(dim=1).max())
    return batch | {name: batch[name][:, :longest] for name in ("user", "user_mask")}
