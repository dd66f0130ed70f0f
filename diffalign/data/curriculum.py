"""Curricula: training in stages, of which the first takes the clearest preferences and the last the closest ones."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from diffalign.core.errors import ConfigError, TableError
from diffalign.data.view import Entry, View, without_content


@dataclass(frozen=True, eq=False)
class Stages:
    """Training in stages of equal length: stage s of a run of `samples` samples goes through the records `parts[s]` in random orders.

    This is the order of Curry-DPO (2403.07230, reconstructed from memory): pairs are sorted by the gap of their scores, the largest gap
    first. There the reference of a stage is the model of the stage before, as here with `reference: old_policy` (`train.stages`); else it
    is the run's first model.
    """

    parts: tuple[np.ndarray, ...]  # the positions of each stage's records, none empty
    samples: int
    seed: int = 0

    def index(self, sample: int) -> tuple[int, int]:
        """Return (position, epoch) of a sample number of the run; the stages divide the run into equal shares."""
        stage = min(sample * len(self.parts) // self.samples, len(self.parts) - 1)
        first = -(-stage * self.samples // len(self.parts))
        positions = self.parts[stage]
        epoch, place = divmod(sample - first, len(positions))
        return int(positions[_order(self.seed, stage, epoch, len(positions))[place]]), epoch


@functools.lru_cache(maxsize=2)
def _order(seed: int, stage: int, epoch: int, records: int) -> np.ndarray:
    return np.random.default_rng([seed, stage, epoch]).permutation(records)


def by_gap(gaps: np.ndarray, stages: int) -> tuple[np.ndarray, ...]:
    """Return the positions (n,) of each stage, for gaps (records,): equal shares, the largest gaps first, equal gaps in their order.

    Raises ConfigError for fewer than one stage, or more stages than records.
    """
    if not 1 <= stages <= len(gaps):
        raise ConfigError(f"curriculum: stages is {stages}; expected 1 to {len(gaps)}, the number of records")
    return tuple(np.array_split(np.argsort(-gaps, kind="stable"), stages))


def gap(view: View, *, score: str | None = None, stages: int = 3) -> tuple[np.ndarray, ...]:
    """Return the positions of each stage; first come records whose first candidate is furthest above the second, in a score or in rank.

    Scores and ranks are those of the table. Raises TableError where a candidate has none, or a record has no second candidate.
    """
    candidates = [record.candidates for record in without_content(view.table)]

    def value(entry: Entry, place: int) -> float:
        if place >= len(entry.order):
            raise TableError(f"{view.table.path}: a curriculum of gaps compares two candidates; {entry.id} has {len(entry.order)}")
        candidate = candidates[entry.row][entry.order[place]]
        number = candidate.rank if score is None else candidate.scores.get(score)
        if number is None:
            missing = f"score `{score}`; its scores are {sorted(candidate.scores) or 'none'}" if score else "rank; name a score instead"
            raise TableError(f"{view.table.path}: the curriculum orders pairs by a gap, and {entry.id} has no {missing}")
        return -number if score is None else number

    return by_gap(np.array([value(entry, 0) - value(entry, 1) for entry in view.entries]), stages)


CURRICULA: dict[str, Callable[..., tuple[np.ndarray, ...]]] = {"gap": gap}
