"""Whether labels can be predicted from where candidates come from, on prompts that were not looked at: a warning, not a taste."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from diffalign.core.intervals import LEAST_PROMPTS, share_interval
from diffalign.data.shortcuts import LEAST_PAIRS
from diffalign.evaluate.explain.regression import FOLDS, POSITION, by_prompt, fit, folds, right
from diffalign.evaluate.explain.votes import Floats, Votes

WARNS = 0.55  # share of votes from which a prediction is worth a warning, where its interval excludes one half


@dataclass(frozen=True, slots=True)
class Predicted:
    """How well one column of origin predicts labels: the mean over prompts of the share that is right, one half being chance."""

    column: str
    rule: str
    share: float
    low: float
    high: float
    votes: int  # decided votes between things that differ in the column
    prompts: int

    @property
    def warns(self) -> bool:
        """Return whether the column predicts so much, and so surely, that it should be looked into."""
        return self.votes >= LEAST_PAIRS and self.share >= WARNS and self.low > 0.5


def predicted(votes: Votes, seed: int = 0) -> list[Predicted]:
    """Return what each column of origin, and the place, tells of the labels of other prompts, the best first.

    Columns of numbers predict by their difference, columns of names (file type, size, model) by weights of the names. Nothing is
    predicted of fewer than six prompts.
    """
    decided = votes.only(votes.decided)
    columns = dict.fromkeys(name for thing in votes.things for name in thing.origin)
    tried = [_of(name, decided, _columns(name, decided), seed) for name in columns]
    if not decided.oriented and len(decided):
        tried.append(_of(POSITION, decided, (np.ones((len(decided), 1)), ("the first",)), seed))
    return sorted((one for one in tried if one is not None), key=lambda one: -one.share)


def _columns(name: str, votes: Votes) -> tuple[Floats, tuple[str, ...]]:
    """Return the differences (P, N) of a column between the two things, and what its parts are called."""
    values = [thing.origin.get(name) for thing in votes.things]
    if all(isinstance(value, float) or value is None for value in values):
        numbers = np.array([np.nan if value is None else value for value in values], dtype=float)
        difference = np.nan_to_num(votes.difference(numbers))
        scale = float(np.sqrt(np.mean(difference**2)))
        return (difference / scale if scale else difference)[:, None], ("more",)
    names = sorted({str(value) for value in values if value is not None})
    one_hot = np.array([[float(str(value) == one) for one in names] for value in values])
    return one_hot[votes.first] - one_hot[votes.second], tuple(names)


def _of(name: str, votes: Votes, columns: tuple[Floats, tuple[str, ...]], seed: int) -> Predicted | None:
    """Return what a column predicts of the votes between things that differ in it; None where these have too few prompts."""
    differ = (columns[0] != 0.0).any(axis=1)
    matrix, votes = columns[0][differ], votes.only(differ)
    if len(np.unique(votes.group)) < LEAST_PROMPTS:
        return None
    part, chance = folds(votes.group, seed), np.full(len(votes), 0.5)
    for number in range(FOLDS):
        train = part != number
        chance[~train] = expit(matrix[~train] @ fit(matrix[train], votes.prob[train]))
    shares = by_prompt(right(np.where(np.abs(chance - 0.5) < 1e-9, 0.5, chance), votes.prob), votes.group)
    low, high = share_interval(shares, seed)
    return Predicted(name, _rule(fit(matrix, votes.prob), columns[1], name), float(shares.mean()), low, high, len(votes), len(shares))


def _rule(weight: Floats, names: tuple[str, ...], column: str) -> str:
    """Return in words what the column would choose."""
    if len(names) == 1:
        what = "the one shown first" if column == POSITION else f"more {column}"
        return f"{what} {'wins' if weight[0] > 0 else 'loses'}"
    return f"{names[int(weight.argmax())]} wins, {names[int(weight.argmin())]} loses"
