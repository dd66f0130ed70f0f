"""Ratings from votes between models: Bradley-Terry strengths, with intervals that hold also where one side never loses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import evalica
import numpy as np

from diffalign.core.errors import ConfigError

TOLERANCE, LIMIT = 1e-10, 100_000  # of evalica's iteration; its own 100 rounds do not always reach the fixed point
ELO = 400.0 / np.log(10.0)  # Elo points in one unit of log-odds


@dataclass(frozen=True, slots=True)
class Vote:
    """One comparison: `share` in [0, 1] is what `left` got of the vote (1 won, 0 lost, one half a tie).

    Votes of one `prompt` are resampled together; a vote without a prompt stands for itself.
    """

    left: str
    right: str
    share: float
    prompt: str | None = None


@dataclass(frozen=True, slots=True)
class Rating:
    """A model's strength with its 95 % interval, and its record.

    `rating` is a log-odds: a model wins against another with chance 1 / (1 + exp(-difference)); all ratings have mean zero, and one
    unit is 400 / ln 10 = 173.7 Elo points. `wins` and `losses` count votes; a vote that is shared otherwise than by halves adds its shares.
    """

    model: str
    rating: float
    low: float
    high: float
    wins: float
    losses: float
    ties: int


def bradley_terry(votes: Sequence[Vote], *, virtual_ties: float = 1.0, resamples: int = 2000, seed: int = 0) -> list[Rating]:
    """Return the rating of every model, best first: the Bradley-Terry model (1952), fitted by evalica (2412.11314); ties count half.

    Without a prior a model that never lost has no finite strength (and evalica says 1e-6 of all). Every pair of models that met gets
    virtual ties, so many that a model has `virtual_ties` of them on average: between two models 1 is Jeffreys' prior, half a win to each.
    The interval is of the Bayesian bootstrap (Rubin 1981): a prompt's votes weigh Gamma(1), each half of the virtual ties
    Gamma(its size), so that the prior is as uncertain as it is small; a bootstrap that redraws votes alone would give a one-sided
    record no spread at all. Raises ConfigError where votes do not compare the models.
    """
    if not virtual_ties > 0.0:
        raise ConfigError(f"`virtual_ties` is {virtual_ties}; expected a number above 0: without them one-sided records have no rating")
    models = _models(votes)
    place = {model: position for position, model in enumerate(models)}
    lefts, rights = (np.array([place[getattr(v, side)] for v in votes]) for side in ("left", "right"))
    shares = np.array([v.share for v in votes])
    prompts = np.unique([f"p{v.prompt}" if v.prompt is not None else f"v{i}" for i, v in enumerate(votes)], return_inverse=True)[1]
    prior = _virtual(lefts, rights, len(models), virtual_ties)
    rating = _fit(_beaten(lefts, rights, shares, len(models)) + prior)
    rng = np.random.default_rng(seed)
    drawn = np.empty((resamples, len(models)))
    for sample in drawn:
        weights = rng.exponential(size=prompts.max() + 1)[prompts]
        sample[:] = _fit(_beaten(lefts, rights, shares, len(models), weights) + rng.gamma(prior))
    low, high = np.quantile(drawn, (0.025, 0.975), axis=0)
    rated = [Rating(m, float(rating[i]), float(low[i]), float(high[i]), *_record(votes, m)) for i, m in enumerate(models)]
    return sorted(rated, key=lambda r: -r.rating)


def votes_of_scores(scores: Mapping[str, Sequence[float]], prompts: Sequence[str]) -> list[Vote]:
    """Return a scorer's votes between every two models: `scores` of each model are of the same prompts, in the order of `prompts`."""
    return [
        Vote(left, right, float(np.sign(a - b) + 1.0) / 2.0, prompt)
        for left, right in combinations(scores, 2)
        for a, b, prompt in zip(scores[left], scores[right], prompts, strict=True)
    ]


def win_chance(first: Rating, second: Rating) -> float:
    """Return the chance in (0, 1) that the model says `first` wins against `second` with.

    >>> round(win_chance(Rating("a", 0.5493, 0, 0, 0, 0, 0), Rating("b", -0.5493, 0, 0, 0, 0, 0)), 3)
    0.75
    """
    return float(1.0 / (1.0 + np.exp(second.rating - first.rating)))


def table(ratings: Sequence[Rating]) -> str:
    """Return the ratings as lines of text, in Elo points around 1000, with intervals and records."""
    width = max(len("model"), *(len(r.model) for r in ratings))
    lines = [f"{'model':{width}}  {'Elo':>6}  {'95 % interval':>15}  {'won':>7} {'lost':>7} {'tied':>6}"]
    for r in ratings:
        points, low, high = (1000.0 + ELO * x for x in (r.rating, r.low, r.high))
        lines.append(f"{r.model:{width}}  {points:6.0f}  {low:6.0f} to {high:5.0f}  {r.wins:7g} {r.losses:7g} {r.ties:6}")
    return "\n".join(lines)


def _models(votes: Sequence[Vote]) -> list[str]:
    """Return the names of the models.

    Raises ConfigError for a share outside [0, 1], a model beside itself, and models that no chain of votes connects.
    """
    if not votes:
        raise ConfigError("no votes; expected at least one")
    for vote in votes:
        if vote.left == vote.right or not 0.0 <= vote.share <= 1.0:
            raise ConfigError(f"a vote of {vote.share} between `{vote.left}` and `{vote.right}`; expected a share in [0, 1] and two models")
    models = sorted({name for vote in votes for name in (vote.left, vote.right)})
    reached, edges = {models[0]}, {(v.left, v.right) for v in votes}
    while grown := {name for edge in edges if reached & set(edge) for name in edge} - reached:
        reached |= grown
    if apart := sorted(set(models) - reached):
        raise ConfigError(
            f"no votes connect `{apart[0]}` with `{models[0]}`; ratings of models that never met, even by others, are not comparable"
        )
    return models


def _beaten(lefts: np.ndarray, rights: np.ndarray, shares: np.ndarray, models: int, weights: np.ndarray | float = 1.0) -> np.ndarray:
    """Return (M, M): how much model i won against model j."""
    won = np.zeros((models, models))
    np.add.at(won, (lefts, rights), weights * shares)
    np.add.at(won, (rights, lefts), weights * (1.0 - shares))
    return won


def _virtual(lefts: np.ndarray, rights: np.ndarray, models: int, virtual_ties: float) -> np.ndarray:
    """Return (M, M): half of the virtual ties of each pair that met, zero elsewhere."""
    met = np.zeros((models, models), dtype=bool)
    met[lefts, rights] = met[rights, lefts] = True
    return met * (0.5 * virtual_ties * models / met.sum())


def _fit(won: np.ndarray) -> np.ndarray:
    """Return the log strengths (M,) of a matrix of wins, with mean zero."""
    i, j = np.nonzero(won > 0.0)
    names = range(len(won))
    result = evalica.bradley_terry(
        i.tolist(),
        j.tolist(),
        [evalica.Winner.X] * len(i),
        weights=won[i, j].tolist(),
        tolerance=TOLERANCE,
        limit=LIMIT,
    )
    logs = np.log(result.scores.reindex(names).to_numpy(dtype=float))
    return logs - logs.mean()


def _record(votes: Sequence[Vote], model: str) -> tuple[float, float, int]:
    """Return what a model won and lost, ties apart, and how often it tied."""
    shares = [vote.share if vote.left == model else 1.0 - vote.share for vote in votes if model in (vote.left, vote.right)]
    decided = [share for share in shares if share != 0.5]
    return float(sum(decided)), float(len(decided) - sum(decided)), len(shares) - len(decided)
