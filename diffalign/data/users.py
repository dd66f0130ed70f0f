"""Records by who chose: users sampled uniformly, each record with other choices of its user as evidence, none of them of the same row."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from diffalign.data.batch import Index, Pairs
from diffalign.data.view import View
from diffalign.types import Batch, Condition

Evidence = Callable[[int, np.random.Generator], dict[str, Tensor]]  # of the user of a position, drawn for it: keys begin with "user"


@dataclass(frozen=True, eq=False)
class Users:
    """The users of a view. `positions[u]` are the records of user `names[u]`, ascending."""

    names: tuple[str, ...]  # sorted
    positions: tuple[np.ndarray, ...]
    rows: np.ndarray  # (records,) the table row of each position
    seed: int = 0

    @classmethod
    def of(cls, view: View, seed: int = 0) -> Users:
        """Return the users of a view, every record of which has one."""
        found: dict[str, list[int]] = {}
        for position, entry in enumerate(view.entries):
            found.setdefault(entry.user or "", []).append(position)
        names = tuple(sorted(found))
        return cls(names, tuple(np.array(found[name]) for name in names), np.array([entry.row for entry in view.entries]), seed)

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
        """Return the positions of the same user's other records: those that share no table row with it."""
        own = self.positions[self.owner[position]]
        return own[self.rows[own] != self.rows[position]]


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
