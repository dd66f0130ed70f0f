"""Records by who chose: users sampled uniformly, each with other choices of its user as evidence, of other rows and other pictures."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.utils.data import Dataset

from diffalign.core.parts import Index, Pairs
from diffalign.core.types import Batch, Condition
from diffalign.data.view import View

EDGE = 4096  # bytes; images of large datasets are not read to their ends for it
Evidence = Callable[[int, np.random.Generator], dict[str, Tensor]]  # of the user of a position, drawn for it: keys begin with "user"


@dataclass(frozen=True, eq=False)
class Users:
    """The users of a view. `positions[u]` are the records of user `names[u]`, ascending."""

    names: tuple[str, ...]  # sorted
    positions: tuple[np.ndarray, ...]
    rows: np.ndarray  # (records,) the table row of each position
    pictures: np.ndarray  # (records, K) int64, hashes of each position's images
    seed: int = 0

    @classmethod
    def of(cls, view: View, seed: int = 0) -> Users:
        """Return the users of a view, every record of which has one."""
        names, found = names_of(view), {}
        for position, entry in enumerate(view.entries):
            found.setdefault(entry.user or "", []).append(position)
        rows = np.array([entry.row for entry in view.entries])
        return cls(names, tuple(np.array(found[name]) for name in names), rows, _pictures(view), seed)

    def __len__(self) -> int:
        return len(self.names)

    @functools.cached_property
    def owner(self) -> np.ndarray:
        """Return (records,) the user of each position, as an index into `names`."""
        owner = np.zeros(len(self.rows), dtype=np.int64)
        for user, own in enumerate(self.positions):
            owner[own] = user
        return owner

    def index(self, sample: int) -> Index:
        """Return (position, round) of sample number `sample`: a round takes every user once, and one of its records, in random order."""
        turn, place = divmod(sample, len(self))
        user = int(_round(self.seed, turn, len(self))[place])
        own = self.positions[user]
        cycle, nth = divmod(turn, len(own))
        return int(own[np.random.default_rng([self.seed, cycle, 1 + user]).permutation(len(own))[nth]]), turn

    def others(self, position: int) -> np.ndarray:
        """Return the positions of the same user's other records, which share neither table row nor picture with it; there may be none."""
        own = self.positions[self.owner[position]]
        return own[~self.tell_of(position, own)]

    def tell_of(self, position: int, others: np.ndarray) -> np.ndarray:
        """Return which of the positions `others` tell of the record itself: they share its row, or a picture with it."""
        shown = np.isin(self.pictures[others], self.pictures[position]).any(axis=1)
        return shown | (self.rows[others] == self.rows[position])

    def alone(self) -> int:
        """Return how many records have no others."""
        return sum(not len(self.others(position)) for position in range(len(self.rows)))


def names_of(view: View) -> tuple[str, ...]:
    """Return the users of a view, sorted; no image is read."""
    return tuple(sorted({entry.user or "" for entry in view.entries}))


def _pictures(view: View) -> np.ndarray:
    """Return (records, K) hashes of the encoded images of each position."""
    wanted: dict[int, list[int]] = {}
    for position, entry in enumerate(view.entries):
        wanted.setdefault(entry.row, []).append(position)
    found, base = np.zeros((len(view), max((len(entry.order) for entry in view.entries), default=0)), np.int64), 0
    for batch in view.table.batches():
        lists = batch.column("candidates")
        images, offsets = lists.values.field("image"), lists.offsets.to_numpy()
        for row in range(batch.num_rows):
            for position in wanted.get(base + row, ()):
                found[position] = [_digest(images[int(offsets[row]) + place]) for place in view.entries[position].order]
        base += batch.num_rows
    return found


def _digest(image: pa.Scalar) -> int:
    """Return a hash of the length, the head and the tail of an encoded image: where these agree, so does the rest."""
    data = memoryview(image.as_buffer() or b"")
    digest = hashlib.blake2b(len(data).to_bytes(8, "little"), digest_size=8)
    digest.update(data[:EDGE])
    digest.update(data[-EDGE:])
    return int.from_bytes(digest.digest(), "little", signed=True)


@functools.lru_cache(maxsize=2)
def _round(seed: int, turn: int, users: int) -> np.ndarray:
    """Return the users (users,) of a round in their order."""
    return np.random.default_rng([seed, turn, 0]).permutation(users)


class UserPairs(Dataset[dict[str, Any]]):
    """Training data whose batches also say who chose: the condition holds evidence of each record's user, and "user_kept" (B,).

    All of it is drawn by record and round, as crops are. A user is dropped, its tokens zero, with the chance `dropout`.
    """

    def __init__(self, pairs: Pairs, users: Users, evidence: Evidence, dropout: float) -> None:
        self.pairs, self.users, self.evidence, self.dropout = pairs, users, evidence, dropout
        self.buckets = pairs.buckets

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: Index) -> dict[str, Any]:
        digest = hashlib.sha256(f"{self.users.seed}:{index[0]}:{index[1]}:user".encode()).digest()
        rng = np.random.default_rng(int.from_bytes(digest[:8], "big"))
        known = {"user_kept": torch.tensor(float(rng.random() >= self.dropout)), **self.evidence(index[0], rng)}
        return self.pairs[index] | {"evidence": known}

    def to_batch(self, rows: list[dict[str, Any]]) -> Batch:
        """Return the batch of loaded rows of one bucket, with their users' evidence in its condition."""
        batch = self.pairs.to_batch(rows)
        known = {name: torch.stack([row["evidence"][name] for row in rows]) for name in rows[0]["evidence"]}
        query = batch.query and replace(batch.query, condition={**batch.query.condition, **known})
        condition: Condition = {**batch.condition, **{name: value.to(batch.prob.device) for name, value in known.items()}}
        return replace(batch, condition=condition, query=query)
