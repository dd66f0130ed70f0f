"""Which records a sample is drawn from where training has an order: clear preferences first, close ones last."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from diffalign.core.errors import ConfigError, TableError
from diffalign.data.view import Entry, View, without_content


@dataclass(frozen=True, eq=False)
class Stages:
    """Training in stages: stage s of a run of `samples` samples takes the records of `parts[s]`, in random orders without repetition.

    Curry-DPO (2403.07230, reconstructed from memory): pairs sorted by the gap of their scores, the largest gap first, plain DPO in every
    stage. There the reference of a stage is the model of the one before; here it stays the start of the run. Chaining runs, each from
    the result of the last with one stage's pairs (the transform `min_margin`), gives the paper's.
    """

    parts: tuple[np.ndarray, ...]  # the positions of each stage, none empty
    samples: int
    seed: int = 0

    def index(self, sample: int) -> tuple[int, int]:
        """Return (position, epoch) of a sample number of the run; the stages divide the run into equal shares."""
        stage = min(sample * len(self.parts) // self.samples, len(self.parts) - 1)
        first = -(-stage * self.samples // len(self.parts))
        own = self.parts[stage]
        epoch, place = divmod(sample - first, len(own))
        return int(own[_order(self.seed, stage, epoch, len(own))[place]]), epoch


@functools.lru_cache(maxsize=2)
def _order(seed: int, stage: int, epoch: int, records: int) -> np.ndarray:
    return np.random.default_rng([seed, stage, epoch]).permutation(records)


def by_gap(gaps: np.ndarray, stages: int) -> tuple[np.ndarray, ...]:
    """Return the positions (n,) of each stage, for gaps (records,): equal shares, the largest gaps first, ties in their order.

    Raises ConfigError for fewer than one stage, or more than records.
    """
    if not 1 <= stages <= len(gaps):
        raise ConfigError(f"curriculum: stages is {stages}; expected 1 to {len(gaps)}, the number of records")
    return tuple(np.array_split(np.argsort(-gaps, kind="stable"), stages))


def gap(view: View, *, score: str | None = None, stages: int = 3) -> tuple[np.ndarray, ...]:
    """Return the positions of each stage, those first whose first candidate is furthest above the second: by a score, or by rank.

    Scores and ranks are the table's own. Raises TableError where a candidate has none, or a record no second candidate.
    """
    known = [record.candidates for record in without_content(view.table)]

    def value(entry: Entry, place: int) -> float:
        if place >= len(entry.order):
            raise TableError(f"{view.table.path}: a curriculum of gaps compares two candidates; {entry.id} has {len(entry.order)}")
        candidate = known[entry.row][entry.order[place]]
        found = candidate.rank if score is None else candidate.scores.get(score)
        if found is None:
            own = f"score `{score}`; its scores are {sorted(candidate.scores) or 'none'}" if score else "rank; name a score instead"
            raise TableError(f"{view.table.path}: the curriculum orders pairs by a gap, and {entry.id} has no {own}")
        return -found if score is None else found

    return by_gap(np.array([value(entry, 0) - value(entry, 1) for entry in view.entries]), stages)


CURRICULA: dict[str, Callable[..., tuple[np.ndarray, ...]]] = {"gap": gap}
