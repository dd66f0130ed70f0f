"""Scorers by a run of reward_bt or reward_pal."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diffalign.core.errors import CheckpointError, ConfigError, did_you_mean
from diffalign.core.runs import Run
from diffalign.data.importing import import_dataset
from diffalign.data.table import is_table, read_table
from diffalign.data.transforms import orient, pairs
from diffalign.data.view import View
from diffalign.rewards.base import check_arguments
from diffalign.rewards.heads.embeds import Embeds, load_embeds
from diffalign.rewards.heads.networks import NOBODY, PalHead, RewardHead
from diffalign.rewards.heads.new_user import fit_user
from diffalign.rewards.heads.pairs import RewardPairs, StoredEmbeds
from diffalign.rewards.heads.store import FILE, load_head

BATCH = 32  # images at once


@dataclass(frozen=True, slots=True)
class HeadScorer:
    """A scorer by a reward head; of PAL for one user, given by the logits (P,) of their weights, or for nobody in particular."""

    name: str
    head: RewardHead
    embeds: Embeds
    beta: float
    revision: str | None
    device: torch.device
    logits: Tensor | None = None
    scale: str = "logits of preference: under one prompt, the sigmoid of a difference is the chance that people prefer the first"
    unit: str = "logit"
    licence: str = "that of the embeddings; the head is the user's own"

    @property
    def max_tokens(self) -> int | None:
        """Return how much of a prompt is read."""
        return self.embeds.max_tokens

    @torch.no_grad()
    def __call__(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> np.ndarray:
        """Return scores (N,)."""
        check_arguments(images, prompts)
        rows = [np.empty(0)]
        for start in range(0, len(images), BATCH):
            part = slice(start, start + BATCH)
            pictures, words = self.embeds.images(images[part]), self.embeds.prompts(prompts[part])
            rows.append(self.beta * self._rewards(pictures[:, None].to(self.device), words.to(self.device)).double().cpu().numpy())
        return np.concatenate(rows)

    def _rewards(self, images: Tensor, prompts: Tensor) -> Tensor:
        if self.logits is None or not isinstance(self.head, PalHead):
            nobody = torch.full((len(images),), NOBODY, device=self.device)
            return self.head(images, prompts, nobody).squeeze(1)
        return self.head.by_logits(*self.head.standard(images, prompts), self.logits.expand(len(images), -1)).squeeze(1)


def trained(*, path: str, user: str | int | None = None, name: str | None = None, device: str = "cpu") -> HeadScorer:
    """Return the scorer of a run of reward_bt or reward_pal in the folder `path`.

    `user` of a run of reward_pal is one of the training's, or a preference table or dataset file with the pairs of a new one, to which
    their few numbers are fitted now; without it the score is that of the average user. The score is called `trained` (`trained-USER`)
    unless `name` is given. Raises CheckpointError for a folder without such a run, or embeddings that are no longer those of the
    training; ConfigError for a user who is not known.
    """
    folder, user = Path(path), None if user is None else str(user)
    run = Run.open(folder, expects="reward")
    if not (folder / FILE).is_file():
        raise CheckpointError(f"{folder}: the run's weights are missing; expected {FILE}")
    head, source, beta = load_head(folder / FILE)
    if user is not None and not isinstance(head, PalHead):
        raise ConfigError(f"scorer `trained`: {folder} is a run of {run.method}, which knows no users; leave out `user`")
    of_training = isinstance(head, PalHead) and user in head.sizes.users
    if isinstance(head, PalHead) and user is not None and not of_training and not Path(user).exists():
        hint = did_you_mean(user, head.sizes.users)
        raise ConfigError(f"scorer `trained`: `user` is {user!r}, no user of {folder} and no file with pairs.{hint}")
    embeds = load_embeds(run.base, run.facts["revision"], device)
    if embeds.fingerprint != source:
        raise CheckpointError(f"{folder}: made on other embeddings than {run.base} gives now; a head is only good with its own")
    logits = None
    if isinstance(head, PalHead) and user is not None:
        logits = head.logits[head.sizes.users.index(user)] if of_training else fit_to_file(head, embeds, user, beta)
        logits = logits.to(device)
    called = "trained" if user is None else f"trained-{user if of_training else Path(user).stem}"
    return HeadScorer(name or called, head.to(device), embeds, beta, run.facts["revision"], torch.device(device), logits)


def fit_to_file(head: PalHead, embeds: Embeds, dataset_name: str, beta: float) -> Tensor:
    """Return the logits (P,) of the user whose pairs a table or dataset holds. Raises ConfigError for one of several users."""
    with tempfile.TemporaryDirectory(prefix="diffalign-") as folder:
        table = read_table(dataset_name) if is_table(dataset_name) else import_dataset(dataset_name, Path(folder) / "table")
        view = View(table, [pairs, orient])
        if len(users := {entry.user for entry in view.entries}) != 1:
            raise ConfigError(f"scorer `trained`: {dataset_name} has pairs of {len(users)} users; expected those of one")
        return fit_user(head, RewardPairs(view, view.entries, StoredEmbeds(view, embeds, Path(folder)), {}).whole(), beta)
