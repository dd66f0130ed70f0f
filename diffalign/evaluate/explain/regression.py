"""The Bradley-Terry model of votes on differences: a logistic regression, with intervals that redraw prompts.

The chance that the first of two things is preferred is sigmoid(sum over attributes of weight * difference / typical difference), where
the typical difference is the root mean square over all votes (Bradley and Terry 1952, with covariates as in Springall 1973). A tie counts
half for either. Weights are log-odds, with a normal prior around zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import stats
from scipy.optimize import minimize
from scipy.special import expit

from diffalign.core.intervals import LEAST_PROMPTS
from diffalign.data.shortcuts import LEAST_PAIRS
from diffalign.evaluate.explain.votes import Floats, Ints, Votes

PRIOR = 5.0  # standard deviation of a weight: odds of e^5 for one typical difference are beyond what people do
GROUP_PRIOR = 1.0  # of how far a user's or a source's weight lies from everybody's
FOLDS = 5
PER_ATTRIBUTE = 3  # decided votes for each weight, below which redraws of random votes are surer than they should be
SURE = 0.05  # share of the findings that may be chance (Benjamini and Hochberg 1995)
POSITION = "position"


@dataclass(frozen=True, slots=True)
class Design:
    """The differences between the two things of each vote: `matrix` (P, D), each in units of its typical difference `scale` (D,)."""

    names: tuple[str, ...]
    matrix: Floats
    scale: Floats
    missing: tuple[int, ...]  # votes in which a thing lacks the attribute; they count as no difference

    def rows(self, kept: np.ndarray) -> Design:
        """Return some of the votes."""
        return Design(self.names, self.matrix[kept], self.scale, self.missing)


def design(votes: Votes, differences: Mapping[str, Floats], *, position: bool, like: Design | None = None) -> Design:
    """Return the design of votes (P,) and their differences (P,) by attribute, without attributes that never differ; it may have none.

    With `position` a last column is the place: its weight is that of having been shown first. With `like`, the attributes and units are
    those of another design.
    """
    names, columns, scales, missing = [], [], [], []
    for name, difference in differences.items():
        there = np.isfinite(difference)
        scale = float(np.sqrt(np.mean(difference[there] ** 2))) if there.any() else 0.0
        if like is not None:
            scale = float(like.scale[like.names.index(name)]) if name in like.names else 0.0
        if scale > 0.0:
            names.append(name)
            columns.append(np.where(there, difference, 0.0) / scale)
            scales.append(scale)
            missing.append(int((~there).sum()))
    if position:
        names, columns, scales, missing = [*names, POSITION], [*columns, np.ones(len(votes))], [*scales, 1.0], [*missing, 0]
    matrix = np.stack(columns, axis=1) if columns else np.zeros((len(votes), 0))
    return Design(tuple(names), matrix, np.array(scales), tuple(missing))


def needed(made: Design) -> int:
    """Return how many decided votes a design takes for intervals and findings.

    Of 40 or 60 tables of random votes, one a prompt, with 9 attributes 53 % had a finding at 15 votes, 25 % at 20, and 3 % at 25 and at 30.
    """
    return max(LEAST_PAIRS, PER_ATTRIBUTE * len(made.names))


def fit(
    matrix: Floats,
    prob: Floats,
    weight: Floats | None = None,
    *,
    centre: Floats | float = 0.0,
    spread: float = PRIOR,
    start: Floats | None = None,
) -> Floats:
    """Return the weights (D,) that are most likely for differences (P, D) and labels (P,), votes counting `weight` (P,) times.

    The prior of a weight is normal around `centre` with standard deviation `spread`, which keeps weights finite where an attribute
    tells every vote.

    >>> differences = np.array([[1.0], [1.0], [1.0], [-1.0]] * 1000)  # three of four votes prefer the one that has more of it
    >>> bool(np.isclose(fit(differences, np.array([1.0, 1.0, 0.0, 0.0] * 1000))[0], np.log(3), atol=1e-3))
    True
    """
    counted = np.ones(len(prob)) if weight is None else weight

    def loss(w: Floats) -> tuple[float, Floats]:
        z, off = matrix @ w, (w - centre) / spread
        value = counted @ (np.logaddexp(0.0, z) - prob * z) + 0.5 * off @ off
        return float(value), matrix.T @ (counted * (expit(z) - prob)) + off / spread

    def curvature(w: Floats) -> Floats:
        p = expit(matrix @ w)
        return (matrix.T * (counted * p * (1.0 - p))) @ matrix + np.eye(matrix.shape[1]) / spread**2

    begin = np.broadcast_to(centre, matrix.shape[1]).astype(float) if start is None else start
    return minimize(
        loss, begin, jac=True, hess=curvature, method="trust-exact", options={"gtol": 1e-6 * max(1.0, float(counted.sum())) ** 0.5}
    ).x


def redrawn(group: Ints, resamples: int, seed: int) -> list[Floats]:
    """Return how often each vote (P,) counts in resamples that draw as many prompts as there are, with replacement."""
    rng, _, numbers = np.random.default_rng(seed), *np.unique(group, return_inverse=True)
    prompts = int(numbers.max()) + 1
    return [np.bincount(rng.integers(prompts, size=prompts), minlength=prompts)[numbers].astype(float) for _ in range(resamples)]


@dataclass(frozen=True, slots=True)
class Weights:
    """Weights (D,) of a design, with what resamples (R, D) make of them; none for fewer than six prompts."""

    names: tuple[str, ...]
    value: Floats
    drawn: Floats

    @property
    def low(self) -> Floats:
        """Return the lower ends (D,) of the 95 % intervals, NaN without resamples."""
        return self._quantile(0.025)

    @property
    def high(self) -> Floats:
        """Return the upper ends (D,)."""
        return self._quantile(0.975)

    @property
    def p(self) -> Floats:
        """Return the p (D,) of each weight being zero, normal with the resamples' deviation, two-sided."""
        if not len(self.drawn):
            return np.full(len(self.value), np.nan)
        deviation = self.drawn.std(axis=0, ddof=1)
        return 2.0 * stats.norm.sf(np.abs(self.value) / np.where(deviation > 0.0, deviation, np.inf))

    @property
    def sure(self) -> np.ndarray:
        """Return which weights (D,) are findings, of which on average one in twenty is chance."""
        p = self.p
        if not len(self.drawn) or not len(p):
            return np.zeros(len(self.value), dtype=bool)
        return np.asarray(stats.false_discovery_control(p)) <= SURE

    def _quantile(self, share: float) -> Floats:
        return np.quantile(self.drawn, share, axis=0) if len(self.drawn) else np.full(len(self.value), np.nan)


def weights(
    made: Design, votes: Votes, *, centre: Floats | float = 0.0, spread: float = PRIOR, resamples: int = 500, seed: int = 0
) -> Weights:
    """Return the weights of votes on a design, with resamples of their prompts where there are enough of them."""
    value = fit(made.matrix, votes.prob, centre=centre, spread=spread)
    counts = redrawn(votes.group, resamples, seed) if len(np.unique(votes.group)) >= LEAST_PROMPTS else []
    drawn = [fit(made.matrix, votes.prob, count, centre=centre, spread=spread, start=value) for count in counts]
    return Weights(made.names, value, np.array(drawn).reshape(len(drawn), len(value)))


def folds(group: Ints, seed: int) -> Ints:
    """Return which of five parts each vote (P,) belongs to, by its prompt; of fewer prompts than six, all to one."""
    _, numbers = np.unique(group, return_inverse=True)
    prompts = int(numbers.max()) + 1
    if prompts < LEAST_PROMPTS:
        return np.zeros(len(group), dtype=np.int64)
    return (np.random.default_rng(seed).permutation(prompts) % FOLDS)[numbers].astype(np.int64)


def chances(made: Design, votes: Votes, *, by_user: bool = True, seed: int = 0) -> Floats | None:
    """Return the chance (P,) that each vote's first thing is preferred, by weights of the votes on other prompts; None for too few prompts.

    With `by_user` the weights are those of the vote's user, which lie near everybody's where the user has few other votes.
    """
    part = folds(votes.group, seed)
    if not part.any():
        return None
    users = np.array([user or "" for user in votes.users], dtype=object)
    several = by_user and len(set(users)) > 1
    predicted = np.full(len(votes), 0.5)
    for number in range(FOLDS):
        train, test = part != number, part == number
        everybody = fit(made.matrix[train], votes.prob[train])
        predicted[test] = expit(made.matrix[test] @ everybody)
        for user in set(users[test]) if several else ():
            others, own = train & (users == user), test & (users == user)
            if others.any():
                theirs = fit(made.matrix[others], votes.prob[others], centre=everybody, spread=GROUP_PRIOR)
                predicted[own] = expit(made.matrix[own] @ theirs)
    return predicted


def likelihood(chance: Floats, prob: Floats) -> Floats:
    """Return how likely each label (P,) is: the chance of what it prefers; of ties one half."""
    return np.where(prob > 0.5, chance, np.where(prob < 0.5, 1.0 - chance, 0.5))


def right(chance: Floats, prob: Floats) -> Floats:
    """Return for each vote (P,) 1 where the likelier of the two is preferred, 0 where the other is, one half where both are as likely."""
    return 0.5 * (1.0 + np.sign(chance - 0.5) * np.sign(prob - 0.5))


def by_prompt(values: Floats, group: Ints) -> Floats:
    """Return the mean of values (P,) of each prompt."""
    _, numbers = np.unique(group, return_inverse=True)
    return np.bincount(numbers, values) / np.bincount(numbers)
