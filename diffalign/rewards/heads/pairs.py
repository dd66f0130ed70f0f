"""From a view on a preference table to batches of embeddings, which are computed once and lie on disk beside the table."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from diffalign.core.errors import TableError
from diffalign.core.parts import Index
from diffalign.core.progress import chunks
from diffalign.core.types import Labels, Scores
from diffalign.data.cache import Bank, fingerprint, open_folder
from diffalign.data.entries import Entries, Entry
from diffalign.data.labels import labels_of
from diffalign.data.view import View, without_content
from diffalign.rewards.heads.embeds import Embeds, of_candidates
from diffalign.rewards.heads.networks import NOBODY, Targets

PART = 16  # rows embedded at once
ROW = re.compile(r"[\s,:#]*(?:row|line|record|vote|entry)?[\s#]*\d+\s*$")  # what tells records of one dataset apart


@dataclass(frozen=True, slots=True)
class RewardBatch:
    """B records as embeddings. It is its own query: nothing is random."""

    images: Tensor  # (B, K, F), preferred candidate first
    prompts: Tensor  # (B, D)
    users: Tensor  # (B,) int64
    prob: Tensor  # (B,) in [0, 1]
    ids: tuple[str, ...]
    labels: Labels
    sources: Tensor | None = None  # (B,) int64: which source a record is of, where the head tells sources apart

    def to(self, device: torch.device) -> RewardBatch:
        """Return the batch on `device`."""
        images, prompts, users, prob = (x.to(device) for x in (self.images, self.prompts, self.users, self.prob))
        sources = None if self.sources is None else self.sources.to(device)
        return RewardBatch(images, prompts, users, prob, self.ids, self.labels.to(device), sources)

    @property
    def targets(self) -> Targets:
        """Return what a head with a loss of its own learns from."""
        return Targets(self.prob, self.labels.columns, self.sources)


@dataclass(frozen=True, slots=True)
class RewardLikelihood:
    """A head's rewards as scores: what takes the place of log-likelihoods in a reference-free objective, or brings its own losses."""

    def prepare(self, driver: Any, batch: RewardBatch, generator: Any) -> RewardBatch:  # noqa: ARG002  # the protocol's
        """Return the batch."""
        return batch

    def score(self, model: Any, query: RewardBatch) -> tuple[Tensor, Tensor | None]:
        """Return rewards (B, K), float32, and the head's own losses (B,), if it has any."""
        rewards, losses = model(query.images, query.prompts, query.users, query.targets)
        return rewards.float(), losses

    def scores(self, policy: tuple[Tensor, Tensor | None], reference: None, batch: RewardBatch) -> Scores:  # noqa: ARG002  # there is none
        """Return the rewards with the batch's labels."""
        labels, (rewards, losses) = batch.labels, policy
        if losses is not None and labels.weight is not None:
            losses = labels.weight.to(losses) * losses
        given = {"prob": batch.prob, "weight": labels.weight, "offset": labels.offset, "columns": labels.columns}
        return Scores(rewards, losses=losses, **given)


class StoredEmbeds:
    """Embeddings of a view's images and prompts on disk; the constructor computes those that are missing.

    Raises TableError where candidates have prompts of their own: a reward compares images under one. With `scores` no image is embedded:
    these columns of the view take their place.
    """

    def __init__(self, view: View, embeds: Embeds, root: Path, scores: Sequence[str] = ()) -> None:
        lists = [batch.column("candidates") for batch in view.table.batches()]
        if any(own.flatten().field("prompt").drop_null() for own in lists):
            raise TableError(f"{view.table.path}: candidates have prompts of their own; a reward model compares the images of one prompt")
        self._first = np.concatenate([[0], np.cumsum(np.concatenate([own.value_lengths().to_numpy() for own in lists]))])
        self._scores = tuple(view.columns.index(score) for score in scores)
        names = sorted(view.entries.prompts)
        facts = {"model": embeds.contents}
        folder = open_folder(root, "embeds", facts | {"table": view.table.fingerprint})
        prompt_folder = open_folder(root, "prompt-embeds", facts | {"prompts": fingerprint({"prompts": names})})
        self._images = Bank(folder, "images", int(self._first[-1]), (embeds.image_width,), "float32")
        self._prompts = Bank(prompt_folder, "prompts", len(names), (embeds.prompt_width,), "float32")
        self._place = {name: place for place, name in enumerate(names)}
        rows = np.unique(view.entries.rows).tolist()
        for part in chunks([row for row in rows if not scores and self._images.missing(self._all(row))], PART, "embed images"):
            seen = of_candidates(embeds, [view.table[row] for row in part])
            self._images.write([place for row in part for place in self._all(row)], seen.numpy())
        for part in chunks(self._prompts.missing(range(len(names))), 4 * PART, "embed prompts"):
            self._prompts.write(part, embeds.prompts([names[place] for place in part]).numpy())

    def _all(self, row: int) -> range:
        return range(int(self._first[row]), int(self._first[row + 1]))

    def images(self, entry: Entry) -> Tensor:
        """Return (K, F) of a record's candidates: their embeddings, or their scores."""
        if self._scores:
            return torch.tensor([entry.columns[place] for place in self._scores]).T
        own = self._all(entry.row)
        return torch.from_numpy(self._images.read([own[i] for i in entry.order]))

    def prompt(self, entry: Entry) -> Tensor:
        """Return (D,) of a record's prompt."""
        return torch.from_numpy(self._prompts.read([self._place[entry.prompt]])[0])


class RewardPairs(Dataset[dict[str, Any]]):
    """Some records of a view as embeddings, with the index of their user, `NOBODY` for one whom `users` does not name."""

    buckets: np.ndarray | None = None  # embeddings are all of one size

    def __init__(
        self,
        view: View,
        entries: Sequence[Entry],
        stored: StoredEmbeds,
        users: Mapping[str, int],
        sources: Mapping[int, int] | None = None,  # of a row, which source it is of
    ) -> None:
        self.view, self.entries, self.stored, self.users, self.sources = view, entries, stored, users, sources

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: Index) -> dict[str, Any]:
        entry = self.entries[index[0]]
        own = {"images": self.stored.images(entry), "prompts": self.stored.prompt(entry)}
        return own | {"users": torch.tensor(self.users.get(entry.user or "", NOBODY)), "entry": entry}

    def to_batch(self, rows: list[dict[str, Any]]) -> RewardBatch:
        """Return the batch of loaded rows."""
        images, prompts, users = (torch.stack([row[name] for row in rows]) for name in ("images", "prompts", "users"))
        entries = [row["entry"] for row in rows]
        prob = torch.tensor([entry.prob for entry in entries])
        sources = None if self.sources is None else torch.tensor([self.sources[entry.row] for entry in entries])
        return RewardBatch(images, prompts, users, prob, tuple(entry.id for entry in entries), labels_of(self.view, entries), sources)

    def whole(self) -> RewardBatch:
        """Return all records as one batch."""
        return self.to_batch([self[position, 0] for position in range(len(self))])


def split(entries: Entries, share: float, seed: int) -> tuple[Entries, Entries]:
    """Return (kept, held out): `share` of the distinct prompts, at least one, are held out with all their records; drawn by `seed`."""
    prompts = sorted(entries.prompts)
    order = np.random.default_rng([seed, 5]).permutation(len(prompts))
    out = {prompts[i] for i in order[: max(1, round(share * len(prompts)))]}
    held_out = np.array([prompt in out for prompt in entries.texts("prompt")], bool)
    return entries.take(np.flatnonzero(~held_out)), entries.take(np.flatnonzero(held_out))


def sources_of(view: View, by: str) -> tuple[dict[int, int], tuple[str, ...]]:
    """Return which source every table row is of, and the names of the sources, sorted.

    `by` is source (the dataset that a record came from), user, or a column of the table. Raises TableError for a record without it.
    """
    named: dict[int, str] = {}
    for row, record in enumerate(without_content(view.table)):
        name = {"source": ROW.sub("", record.source), "user": record.user}.get(by, record.meta.get(by))
        if not name:
            raise TableError(f"{record.source}: has no `{by}`, by which sources are told apart; name another as `by` of the reward_head")
        named[row] = str(name)
    names = tuple(sorted(set(named.values())))
    if len(names) < 2:
        raise TableError(
            f"{view.table.path}: all records are of one source by `{by}` ({', '.join(names)}); expected two or more to balance"
        )
    return {row: names.index(name) for row, name in named.items()}, names
