"""The attributes by which votes are explained, as differences between the two things of each vote, and those of another judge."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from diffalign.core.errors import ConfigError, did_you_mean
from diffalign.core.specs import Spec
from diffalign.data.table import is_table, read_table
from diffalign.evaluate.explain.directions import principal, sparse
from diffalign.evaluate.explain.looks import embedded, looks
from diffalign.evaluate.explain.votes import Floats, Votes, votes_of_table

Judge = tuple[str, Votes, dict[str, Floats]]
"""Name, votes and their attributes."""


def scores_of(votes: Votes) -> dict[str, Floats]:
    """Return every score of the things (T,), NaN where a thing has none."""
    names = dict.fromkeys(name for thing in votes.things for name in thing.scores)
    return {name: np.array([thing.scores.get(name, np.nan) for thing in votes.things]) for name in names}


def attributes(votes: Votes, scores: Sequence[str] = (), *, without: str | None = None) -> dict[str, Floats]:
    """Return looks and scores as differences (P,): all scores if none is named, but the one called `without`.

    Raises ConfigError for a score that the things do not have.
    """
    every = scores_of(votes)
    if odd := next((name for name in scores if name not in every), None):
        raise ConfigError(f"`scores`: these votes have no score `{odd}`.{did_you_mean(odd, every)}")
    chosen = {name: every[name] for name in scores or every if name != without}
    return {name: votes.difference(values) for name, values in {**looks(votes), **chosen}.items()}


def directions(votes: Votes, features: Spec, *, count: int, sparse_code: int | None, device: str, seed: int) -> dict[str, Floats]:
    """Return how far the features of the two pictures differ (P,) in so many directions, or features of a sparse code."""
    pictures = embedded(votes, features, device)
    apart = votes.difference(pictures)
    return principal(apart, count) if sparse_code is None else sparse(apart, sparse_code, seed=seed)


def with_judge(votes: Votes, against: str, scores: Sequence[str], *, rows: int, seed: int) -> tuple[Votes, Judge | None]:
    """Return the votes that are compared, and another judge's: another table's, or the same pairs by a score of theirs.

    The attributes of a judge by score are those of the votes, and stay empty here. Raises ConfigError for neither a table nor a score.
    """
    if is_table(against):
        other = votes_of_table(read_table(against), rows=rows, seed=seed)
        return votes, (against, other, attributes(other, scores))
    every = scores_of(votes)
    if against not in every:
        raise ConfigError(f"`against`: {against} is no table, and no score of these votes.{did_you_mean(against, every)}")
    gap = votes.difference(every[against])
    there = np.isfinite(gap)
    if not there.any():
        raise ConfigError(f"`against`: no two candidates of one vote have the score `{against}`")
    kept = votes.only(there)
    return kept, (against, kept.relabelled(0.5 * (1.0 + np.sign(gap[there]))), {})
