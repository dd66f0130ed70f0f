"""Records by user, for personalisation: users are sampled uniformly, and each record comes with evidence, other choices of its user.

Evidence shares neither a table row nor an image with the record.
"""

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

EDGE = 4096  # bytes of an image's head and tail that are hashed; reading large datasets whole would take long
# (position, generator) -> evidence of the user of the record at the position, drawn with the generator; keys begin with "user".
Evidence = Callable[[int, np.random.Generator], dict[str, Tensor]]


@dataclass(frozen=True, eq=False)
class Users:
    """The users of a view. `positions[u]` are the records of user `names[u]`, ascending."""

    names: tuple[str, ...]  # sorted
    positions: tuple[np.ndarray, ...]
    rows: np.ndarray  # (records,) the table row of each position
    image_hashes: np.ndarray  # (records, K) int64, of each position's images
    seed: int = 0

    @classmethod
    def of(cls, view: View, seed: int = 0) -> Users:
        """Return the users of a view in which every record has a user."""
        names, owner = user_names(view), view.entries.users[1]
        owner = owner - owner.min(initial=0)  # records without a user are the first one's, who is called ""
        by_user = np.split(np.argsort(owner, kind="stable"), np.cumsum(np.bincount(owner, minlength=len(names)))[:-1])
        return cls(names, tuple(by_user), view.entries.rows, _image_hashes(view), seed)

    def __len__(self) -> int:
        return len(self.names)

    @functools.cached_property
    def owner(self) -> np.ndarray:
        """Return (records,) the user of each position, as an index into `names`."""
        owner = np.zeros(len(self.rows), dtype=np.int64)
        for user, positions in enumerate(self.positions):
            owner[positions] = user
        return owner

    def index(self, sample: int) -> Index:
        """Return (position, round) of sample number `sample`: each round takes one record of every user, in random order."""
        turn, place = divmod(sample, len(self))
        user = int(_round(self.seed, turn, len(self))[place])
        positions = self.positions[user]
        cycle, nth = divmod(turn, len(positions))
        return int(positions[np.random.default_rng([self.seed, cycle, 1 + user]).permutation(len(positions))[nth]]), turn

    def evidence_positions(self, position: int) -> np.ndarray:
        """Return the positions of the same user's records that overlap with `position` in neither row nor image; may be empty."""
        positions = self.positions[self.owner[position]]
        return positions[~self.overlaps(position, positions)]

    def overlaps(self, position: int, positions: np.ndarray) -> np.ndarray:
        """Return (len(positions),) bool: which of these records share the table row, or an image, with the record at `position`."""
        same_image = np.isin(self.image_hashes[positions], self.image_hashes[position]).any(axis=1)
        return same_image | (self.rows[positions] == self.rows[position])

    def without_evidence(self) -> int:
        """Return the number of records for which the user has no evidence."""
        return sum(not len(self.evidence_positions(position)) for position in range(len(self.rows)))


def user_names(view: View) -> tuple[str, ...]:
    """Return the users of a view, sorted; no image is read."""
    names, owner = view.entries.users
    return (*([""] if (owner < 0).any() else []), *names)


def _image_hashes(view: View) -> np.ndarray:
    """Return (records, K) hashes of the encoded images of each position."""
    positions_of: dict[int, list[int]] = {}  # table row -> positions
    for position, row in enumerate(view.entries.rows.tolist()):
        positions_of.setdefault(row, []).append(position)
    hashes, base = np.zeros((len(view), view.entries.counts.max(initial=0)), np.int64), 0
    for batch in view.table.batches():
        lists = batch.column("candidates")
        images, offsets = lists.values.field("image"), lists.offsets.to_numpy()
        for row in range(batch.num_rows):
            for position in positions_of.get(base + row, ()):
                hashes[position] = [_digest(images[int(offsets[row]) + place]) for place in view.entries[position].order]
        base += batch.num_rows
    return hashes


def _digest(image: pa.Scalar) -> int:
    """Return a hash of the length, the head and the tail of an encoded image; compressed files that agree in these are the same."""
    data = memoryview(image.as_buffer() or b"")
    digest = hashlib.blake2b(len(data).to_bytes(8, "little"), digest_size=8)
    digest.update(data[:EDGE])
    digest.update(data[-EDGE:])
    return int.from_bytes(digest.digest(), "little", signed=True)


@functools.lru_cache(maxsize=2)
def _round(seed: int, turn: int, users: int) -> np.ndarray:
    """Return (users,) the users in the order of a round."""
    return np.random.default_rng([seed, turn, 0]).permutation(users)


class UserPairs(Dataset[dict[str, Any]]):
    """Training data whose condition also holds evidence of each record's user, and "user_kept" (B,): 0 where the user is dropped.

    A user is dropped, its tokens set to zero, with probability `dropout`. All draws depend on `seed`, record and round alone, as crops do.
    `users` are None where the evidence is of the record's own pictures, and not of who chose them.
    """

    def __init__(self, pairs: Pairs, users: Users | None, evidence: Evidence, dropout: float, seed: int = 0) -> None:
        self.pairs, self.users, self.evidence, self.dropout, self.seed = pairs, users, evidence, dropout, seed
        self.buckets = pairs.buckets

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: Index) -> dict[str, Any]:
        digest = hashlib.sha256(f"{self.seed}:{index[0]}:{index[1]}:user".encode()).digest()
        rng = np.random.default_rng(int.from_bytes(digest[:8], "big"))
        evidence = {"user_kept": torch.tensor(float(rng.random() >= self.dropout)), **self.evidence(index[0], rng)}
        return self.pairs[index] | {"evidence": evidence}

    def to_batch(self, rows: list[dict[str, Any]]) -> Batch:
        """Return the batch of loaded rows of one bucket, with their users' evidence in its condition."""
        batch = self.pairs.to_batch(rows)
        evidence = {name: torch.stack([row["evidence"][name] for row in rows]) for name in rows[0]["evidence"]}
        query = batch.query and replace(batch.query, condition={**batch.query.condition, **evidence})
        condition: Condition = {**batch.condition, **{name: value.to(batch.prob.device) for name, value in evidence.items()}}
        return replace(batch, condition=condition, query=query)
