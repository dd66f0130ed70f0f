"""From a view on a preference table to batches of embeddings, which are computed once and lie on disk beside the table."""

from __future__ import annotations

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
from diffalign.data.labels import labels_of
from diffalign.data.pictures import decode_image
from diffalign.data.view import Entry, View
from diffalign.rewards.heads.embeds import Embeds
from diffalign.rewards.heads.networks import NOBODY

PART = 16  # rows embedded at once


@dataclass(frozen=True, slots=True)
class RewardBatch:
    """B records as embeddings. It is its own query: nothing is random."""

    images: Tensor  # (B, K, F), preferred candidate first
    prompts: Tensor  # (B, D)
    users: Tensor  # (B,) int64
    prob: Tensor  # (B,) in [0, 1]
    ids: tuple[str, ...]
    labels: Labels

    def to(self, device: torch.device) -> RewardBatch:
        """Return the batch on `device`."""
        images, prompts, users, prob = (x.to(device) for x in (self.images, self.prompts, self.users, self.prob))
        return RewardBatch(images, prompts, users, prob, self.ids, self.labels.to(device))


@dataclass(frozen=True, slots=True)
class RewardLikelihood:
    """A head's rewards as scores: what takes the place of log-likelihoods in a reference-free objective."""

    def prepare(self, driver: Any, batch: RewardBatch, generator: Any) -> RewardBatch:  # noqa: ARG002  # the protocol's
        """Return the batch."""
        return batch

    def score(self, model: Any, query: RewardBatch) -> Tensor:
        """Return rewards (B, K), float32."""
        return model(query.images, query.prompts, query.users).float()

    def scores(self, policy: Tensor, reference: None, batch: RewardBatch) -> Scores:  # noqa: ARG002  # there is none
        """Return the rewards with the batch's labels."""
        labels = batch.labels
        return Scores(policy, prob=batch.prob, weight=labels.weight, offset=labels.offset, columns=labels.columns)


class StoredEmbeds:
    """Embeddings of a view's images and prompts on disk; the constructor computes those that are missing.

    Raises TableError where candidates have prompts of their own: a reward compares images under one.
    """

    def __init__(self, view: View, embeds: Embeds, root: Path) -> None:
        lists = [batch.column("candidates") for batch in view.table.batches()]
        if any(own.flatten().field("prompt").drop_null() for own in lists):
            raise TableError(f"{view.table.path}: candidates have prompts of their own; a reward model compares the images of one prompt")
        self._first = np.concatenate([[0], np.cumsum(np.concatenate([own.value_lengths().to_numpy() for own in lists]))])
        names = sorted({entry.prompt for entry in view.entries})
        facts = {"model": embeds.contents}
        folder = open_folder(root, "embeds", facts | {"table": view.table.fingerprint})
        prompt_folder = open_folder(root, "prompt-embeds", facts | {"prompts": fingerprint({"prompts": names})})
        self._images = Bank(folder, "images", int(self._first[-1]), (embeds.image_width,), "float32")
        self._prompts = Bank(prompt_folder, "prompts", len(names), (embeds.prompt_width,), "float32")
        self._place = {name: place for place, name in enumerate(names)}
        rows = sorted({entry.row for entry in view.entries})
        for part in chunks([row for row in rows if self._images.missing(self._all(row))], PART, "embed images"):
            records = [view.table[row] for row in part]
            shown = [decode_image(c.image or b"", f"{r.source}, candidate {i}") for r in records for i, c in enumerate(r.candidates)]
            self._images.write([place for row in part for place in self._all(row)], embeds.images(shown).numpy())
        for part in chunks(self._prompts.missing(range(len(names))), 4 * PART, "embed prompts"):
            self._prompts.write(part, embeds.prompts([names[place] for place in part]).numpy())

    def _all(self, row: int) -> range:
        return range(int(self._first[row]), int(self._first[row + 1]))

    def images(self, entry: Entry) -> Tensor:
        """Return (K, F) of a record's candidates."""
        own = self._all(entry.row)
        return torch.from_numpy(self._images.read([own[i] for i in entry.order]))

    def prompt(self, entry: Entry) -> Tensor:
        """Return (D,) of a record's prompt."""
        return torch.from_numpy(self._prompts.read([self._place[entry.prompt]])[0])


class RewardPairs(Dataset[dict[str, Any]]):
    """Some records of a view as embeddings, with the index of their user, `NOBODY` for one whom `users` does not name."""

    buckets: np.ndarray | None = None  # embeddings are all of one size

    def __init__(self, view: View, entries: Sequence[Entry], stored: StoredEmbeds, users: Mapping[str, int]) -> None:
        self.view, self.entries, self.stored, self.users = view, entries, stored, users

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
        return RewardBatch(images, prompts, users, prob, tuple(entry.id for entry in entries), labels_of(self.view, entries))

    def whole(self) -> RewardBatch:
        """Return all records as one batch."""
        return self.to_batch([self[position, 0] for position in range(len(self))])


def split(entries: Sequence[Entry], share: float, seed: int) -> tuple[list[Entry], list[Entry]]:
    """Return (kept, held out): `share` of the distinct prompts, at least one, are held out with all their records; drawn by `seed`."""
    prompts = sorted({entry.prompt for entry in entries})
    order = np.random.default_rng([seed, 5]).permutation(len(prompts))
    out = {prompts[i] for i in order[: max(1, round(share * len(prompts)))]}
    return [entry for entry in entries if entry.prompt not in out], [entry for entry in entries if entry.prompt in out]
