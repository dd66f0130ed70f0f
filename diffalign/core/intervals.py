"""When a difference may be claimed: intervals of means and of win rates over prompts, and the exact sign test."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from scipy.stats import binomtest, bootstrap

LEAST_PROMPTS = 6  # of fewer not even a clean sweep is significant: the sign test of five has p = 2 / 2^5 = 0.0625
FEW = 30  # below so many, intervals of a bootstrap are too narrow, and exact ones widen them
AT_ONCE = 2**20  # numbers of all resamples that lie in memory together; all of them would be gigabytes for 50,000 prompts
SIGNIFICANT = 0.05  # p up to which the sign test agrees with a claim

Verdict = Literal["win", "loss", "unclear"]


def bootstrapped(means: np.ndarray, seed: int) -> tuple[float, float]:
    """Return the 95 % percentile bootstrap interval of the mean of (N,) prompts; NaN for fewer than 6, a point where all are alike."""
    if len(means) < LEAST_PROMPTS:
        return math.nan, math.nan
    if np.ptp(means) == 0.0:  # nothing to resample
        return float(means[0]), float(means[0])
    rng = np.random.default_rng(seed)
    few = max(1, AT_ONCE // len(means))
    low, high = bootstrap((means,), np.mean, n_resamples=9999, batch=few, method="percentile", rng=rng).confidence_interval
    return float(low), float(high)


def share_interval(means: np.ndarray, seed: int) -> tuple[float, float]:
    """Return the 95 % interval of a win rate: the mean of (N,) prompts' shares in [0, 1], a half being a tie; NaN where all tie.

    Bootstrapped by prompt. Where fewer than 30 prompts are decided a bootstrap is too narrow (of four wins and twenty ties it excludes
    one half), so that each end is then the outer one of the bootstrap's and the exact one: the Clopper-Pearson interval of the share
    of decided prompts that are won, ties held fixed. It then holds one half wherever the sign test is not significant.

    >>> low, _ = share_interval(np.array([1.0] * 4 + [0.5] * 20), seed=0)
    >>> round(low, 3)  # 20 / 48 of the ties, and 4 / 24 of the exact interval's lower end for four of four, 0.398
    0.483
    """
    low, high = bootstrapped(means, seed)
    away = means[means != 0.5] - 0.5
    if not len(away):
        return math.nan, math.nan
    if len(away) >= FEW and np.ptp(means) > 0.0:
        return low, high
    reach = 2.0 * np.abs(away).mean() * len(away) / len(means)  # by how much the rate moves as the share won goes from 0 to 1
    exact = binomtest(int((away > 0.0).sum()), len(away)).proportion_ci()
    outer = [0.5 + reach * (end - 0.5) for end in (exact.low, exact.high)]
    if not math.isnan(low) and np.ptp(means) > 0.0:
        outer = [min(low, outer[0]), max(high, outer[1])]
    return float(outer[0]), float(outer[1])


def sign_test(wins: int, losses: int) -> float:
    """Return the p of the exact two-sided sign test of decided prompts; 1 where none is.

    >>> sign_test(4, 0)  # 2 / 2^4
    0.125
    """
    return float(binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0


def verdict(low: float, high: float, p: float, level: float = 0.5) -> Verdict:
    """Return on which side of `level` a number lies: claimed only where its whole interval does, and the sign test agrees.

    >>> verdict(0.51, 0.58, p=0.125), verdict(0.51, 0.58, p=0.01), verdict(0.3, 0.45, p=0.01)
    ('unclear', 'win', 'loss')
    """
    if not p <= SIGNIFICANT or not (low > level or high < level):
        return "unclear"
    return "win" if low > level else "loss"
