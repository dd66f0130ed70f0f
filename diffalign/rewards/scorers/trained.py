"""Scorers by a run of a reward method."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diffalign.core.errors import ConfigError, did_you_mean
from diffalign.data.importing import import_dataset
from diffalign.data.table import is_table, read_table
from diffalign.data.transforms import orient, pairs
from diffalign.data.view import View
from diffalign.rewards.base import check_arguments
from diffalign.rewards.heads.comparing import GpmHead
from diffalign.rewards.heads.embeds import Embeds
from diffalign.rewards.heads.hidden import HiddenEmbeds
from diffalign.rewards.heads.mixed import ArmoHead, MicroHead
from diffalign.rewards.heads.networks import NOBODY, PalHead, RewardHead
from diffalign.rewards.heads.new_user import fit_groups, fit_user
from diffalign.rewards.heads.pairs import RewardPairs, StoredEmbeds
from diffalign.rewards.heads.store import embeds_of, head_of
from diffalign.rewards.heads.table import name_of
from diffalign.rewards.heads.weighing import OrchestratorHead

BATCH = 32  # images at once
LOGITS = "logits of preference: under one prompt, the sigmoid of a difference is the chance that people prefer the first"
SCALES = {
    "ordinal": ("mean level of quality, from 1", "level"),
    "bt_then_regression": ("the rating that people would give, in the table's units", None),
    "like": ("logits of liking: their sigmoid is the chance that people like it", "logit"),
    "gpm": ("half the mean logit of being preferred to the prompt's other pictures, beside which it is", "logit"),
}


@dataclass(frozen=True, slots=True)
class HeadScorer:
    """A scorer by a reward head; of PAL and MiCRo for one user, given by the logits (P,) of their weights, or for nobody in particular."""

    name: str
    head: RewardHead
    embeds: Embeds
    beta: float
    revision: str | None
    device: torch.device
    logits: Tensor | None = None
    part: int | None = None  # which of the rewards that one is made of
    scale: str = LOGITS
    unit: str | None = "logit"
    licence: str = "that of the embeddings; the head is the user's own"

    @property
    def max_tokens(self) -> int | None:
        """Return how much of a prompt is read."""
        return self.embeds.max_tokens

    @property
    def reads_texts(self) -> bool:
        """Return whether it judges texts, and not images."""
        return isinstance(self.embeds, HiddenEmbeds)

    @property
    def together(self) -> bool:
        """Return whether the score of an image is one beside those of its prompt's others."""
        return isinstance(self.head, GpmHead)

    @torch.no_grad()
    def __call__(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> np.ndarray:
        """Return scores (N,); of a language model's run for texts in place of images."""
        if not isinstance(self.embeds, HiddenEmbeds):
            check_arguments(images, prompts)
        if self.together:
            return self._beside(images, prompts)
        rows = [np.empty(0)]
        for start in range(0, len(images), BATCH):
            pictures, words = self._embedded(images[start : start + BATCH], prompts[start : start + BATCH])
            rows.append(self.beta * self._rewards(pictures[:, None], words).double().cpu().numpy())
        return np.concatenate(rows)

    def _embedded(self, images: Sequence[Any], prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        seen = self.embeds.texts(images, prompts) if isinstance(self.embeds, HiddenEmbeds) else self.embeds.images(images)
        return seen.to(self.device), self.embeds.prompts(prompts).to(self.device)

    def _beside(self, images: Sequence[Any], prompts: Sequence[str]) -> np.ndarray:
        """Return scores (N,) of images beside the others of their prompt."""
        scores = np.zeros(len(images))
        for prompt in dict.fromkeys(prompts):
            places = [place for place, own in enumerate(prompts) if own == prompt]
            pictures, words = self._embedded([images[place] for place in places], [prompt])
            nobody = torch.full((1,), NOBODY, device=self.device)
            scores[places] = self.beta * self.head(pictures[None], words, nobody)[0].double().cpu().numpy()
        return scores

    def _rewards(self, images: Tensor, prompts: Tensor) -> Tensor:
        if self.part is not None:
            return self.head.part_rewards(images, prompts)[:, 0, self.part]
        if self.logits is None or not isinstance(self.head, PalHead | MicroHead):
            nobody = torch.full((len(images),), NOBODY, device=self.device)
            return self.head(images, prompts, nobody).squeeze(1)
        return self.head.by_logits(*self.head.standard(images, prompts), self.logits.expand(len(images), -1)).squeeze(1)


def trained(
    *, path: str, user: str | int | None = None, part: str | int | None = None, name: str | None = None, device: str = "cpu"
) -> HeadScorer:
    """Return the scorer of a run of a reward method in the folder `path`.

    `user` of a run of reward_pal is one of the training's, or a preference table or dataset file with the pairs of a new one, to which
    their few numbers are fitted now; without it the score is that of the average user. Of a run of reward_micro it is such a file, too, by
    whose pairs the groups' shares move. `part` is an aspect of a run of reward_armo, or
    the number of a group of reward_micro or reward_maxmin, whose own reward is the score. The score is called `trained` (`trained-USER`,
    `trained-PART`) unless `name` is given. Raises CheckpointError for a folder without such a run, or embeddings that are no longer those
    of the training; ConfigError for a user or a part that is not known.
    """
    folder, user = Path(path), None if user is None else str(user)
    run, head, source, beta = head_of(folder)
    if isinstance(head, OrchestratorHead):
        raise ConfigError(f"scorer `trained`: {folder} weighs scores and sees no pictures; use it as {run.scorer}")
    if user is not None and not isinstance(head, PalHead | MicroHead):
        raise ConfigError(f"scorer `trained`: {folder} is a run of {run.method}, which knows no users; leave out `user`")
    of_training = isinstance(head, PalHead) and user in head.sizes.users
    if user is not None and not of_training and not Path(user).exists():
        hint = did_you_mean(user, head.sizes.users)
        raise ConfigError(f"scorer `trained`: `user` is {user!r}, no user of {folder} and no file with pairs.{hint}")
    embeds = embeds_of(run, source, device)
    logits = None
    if isinstance(head, PalHead) and user is not None and of_training:
        logits = head.logits[head.sizes.users.index(user)].to(device)
    elif isinstance(head, PalHead | MicroHead) and user is not None:
        logits = fit_to_file(head, embeds, user, beta).to(device)
    called = "trained" if user is None else f"trained-{user if of_training else Path(user).stem}"
    called, place = (called, None) if part is None else (f"trained-{part}", _place(head, str(part), folder))
    scorer = HeadScorer(name or called, head.to(device), embeds, beta, run.facts["revision"], torch.device(device), logits, place)
    if isinstance(head, ArmoHead) and place is not None:
        return replace(scorer, scale=f"predicted {part}, in the table's units", unit=None)
    scale, unit = SCALES.get(name_of(head.settings), (LOGITS, "logit")) if place is None else (LOGITS, "logit")
    return replace(scorer, scale=scale, unit=unit)


def _place(head: RewardHead, part: str, folder: Path) -> int:
    """Return the place of a part's name. Raises ConfigError for a head that has none of that name."""
    if part not in head.parts:
        raise ConfigError(f"scorer `trained`: {folder} has no part `{part}`.{did_you_mean(part, head.parts)}")
    return head.parts.index(part)


def fit_to_file(head: PalHead | MicroHead, embeds: Embeds, dataset_name: str, beta: float) -> Tensor:
    """Return the logits (P,) of the user whose pairs a table or dataset holds. Raises ConfigError for one of several users."""
    with tempfile.TemporaryDirectory(prefix="diffalign-") as folder:
        table = read_table(dataset_name) if is_table(dataset_name) else import_dataset(dataset_name, Path(folder) / "table")
        view = View(table, [pairs, orient])
        if len(users := {entry.user for entry in view.entries}) != 1:
            raise ConfigError(f"scorer `trained`: {dataset_name} has pairs of {len(users)} users; expected those of one")
        whole = RewardPairs(view, view.entries, StoredEmbeds(view, embeds, Path(folder)), {}).whole()
        return fit_user(head, whole, beta) if isinstance(head, PalHead) else fit_groups(head, whole)
