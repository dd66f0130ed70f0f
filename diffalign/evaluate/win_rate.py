"""Win rates between paired scores, with intervals and an exact sign test."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest

from diffalign.core.intervals import bootstrapped


@dataclass(frozen=True, slots=True)
class WinRate:
    """Share of prompts that the second model wins, ties counting one half, with its 95 % interval, NaN where there is none."""

    rate: float
    low: float
    high: float
    prompts: int


def win_rate(base: Sequence[float], aligned: Sequence[float], prompts: Sequence[str], seed: int = 0) -> WinRate:
    """Return how often `aligned` scores above `base`, draw by draw; the interval is bootstrapped by prompt, not by image.

    Where every prompt is won, or every one lost, a bootstrap has no spread; the interval is then the exact binomial one. Otherwise
    there is none for fewer than 5 prompts, nor where all end alike, such as even.
    """
    wins = (np.sign(np.asarray(aligned) - np.asarray(base)) + 1.0) / 2.0
    groups: dict[str, list[float]] = {}
    for prompt, win in zip(prompts, wins, strict=True):
        groups.setdefault(prompt, []).append(float(win))
    means = np.array([np.mean(group) for group in groups.values()])
    low = high = math.nan
    if set(means) in ({0.0}, {1.0}):
        low, high = binomtest(int(means.sum()), len(means)).proportion_ci()
    elif np.ptp(means) > 0.0:
        low, high = bootstrapped(means, seed)
    return WinRate(float(means.mean()), float(low), float(high), len(means))


@dataclass(frozen=True, slots=True)
class SignTest:
    """How many prompts the second model wins, loses and ties, and the exact two-sided sign test's p of the decided ones."""

    wins: int
    losses: int
    ties: int
    p: float


def sign_test(base: Sequence[float], aligned: Sequence[float], prompts: Sequence[str]) -> SignTest:
    """Return the sign test over prompts: one is won where more of its draws are won than lost. Prompts that tie are left out of `p`.

    `p` is 1 where no prompt is decided.
    """
    ahead: dict[str, float] = {}
    for prompt, sign in zip(prompts, np.sign(np.asarray(aligned) - np.asarray(base)), strict=True):
        ahead[prompt] = ahead.get(prompt, 0.0) + float(sign)
    wins, losses = (sum(sign * own > 0.0 for own in ahead.values()) for sign in (1.0, -1.0))
    p = float(binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0
    return SignTest(wins, losses, len(ahead) - wins - losses, p)
