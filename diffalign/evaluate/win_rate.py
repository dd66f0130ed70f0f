"""Win rates between paired scores: intervals, an exact sign test, and how many of the wins a person could see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from diffalign.core.intervals import Verdict, share_interval, sign_test, verdict

VISIBLE_MARGIN = 0.5  # standard deviations of the base's scores
"""A win can be seen from here on. Cohen calls half a standard deviation "an effect likely to be visible to the naked eye of a careful
observer" (A power primer, 1992)."""


@dataclass(frozen=True, slots=True)
class WinRate:
    """How the second model fares against the first; all counts are of prompts."""

    rate: float
    """Share of draws won, averaged by prompt, ties counting one half."""
    low: float
    """Lower end of its 95 % interval; NaN where every prompt ties."""
    high: float
    prompts: int
    wins: int
    """Prompts with more draws won than lost."""
    losses: int
    ties: int
    p: float
    """Of the exact two-sided sign test of wins and losses."""
    margin: float
    """How far two scores must lie apart for the difference to be visible, in units of the score."""
    visible_wins: int
    """Prompts won by more than the margin, in the mean over their draws."""
    visible_losses: int

    @property
    def verdict(self) -> Verdict:
        """Return `win` or `loss` where interval and sign test agree, else `unclear`."""
        return verdict(self.low, self.high, self.p)

    def facts(self) -> dict[str, Any]:
        """Return the row of `eval.json`."""
        return {
            "win_rate": self.rate,
            "ci95": [self.low, self.high],
            "wins": self.wins,
            "losses": self.losses,
            "ties": self.ties,
            "sign_test_p": self.p,
            "verdict": self.verdict,
            "visible_margin": self.margin,
            "visible_wins": self.visible_wins,
            "visible_losses": self.visible_losses,
        }


def win_rate(
    base: Sequence[float], aligned: Sequence[float], prompts: Sequence[str], seed: int = 0, *, visible_margin: float = VISIBLE_MARGIN
) -> WinRate:
    """Return how often `aligned` scores above `base`, draw by draw; draws of one prompt count together.

    Args:
        base: scores (N,) of the first model's draws, finite.
        aligned: scores (N,) of the second model's, from the same noise.
        prompts: the prompt of each draw.
        seed: of the bootstrap.
        visible_margin: standard deviations of `base` by which a prompt must be won for the win to be visible.

    Example:
        >>> won = win_rate([0.1, 0.5, 0.9], [0.2, 0.9, 0.9], ["a star", "a ring", "a cross"])
        >>> won.wins, won.losses, won.ties, won.visible_wins, won.p, won.verdict
        (2, 0, 1, 1, 0.5, 'unclear')
    """
    first, second = np.asarray(base, dtype=float), np.asarray(aligned, dtype=float)
    margin = visible_margin * float(first.std())
    groups: dict[str, list[float]] = {}
    for prompt, gain in zip(prompts, second - first, strict=True):
        groups.setdefault(prompt, []).append(float(gain))
    gains = [np.array(group) for group in groups.values()]
    means = np.array([(np.sign(group) + 1.0).mean() / 2.0 for group in gains])
    ahead = np.array([np.sign(group).sum() for group in gains])
    wins, losses, gained = ahead > 0.0, ahead < 0.0, np.array([group.mean() for group in gains])
    low, high = share_interval(means, seed)
    return WinRate(
        rate=float(means.mean()),
        low=low,
        high=high,
        prompts=len(gains),
        wins=int(wins.sum()),
        losses=int(losses.sum()),
        ties=int((ahead == 0.0).sum()),
        p=sign_test(int(wins.sum()), int(losses.sum())),
        margin=margin,
        visible_wins=int((wins & (gained > margin)).sum()),
        visible_losses=int((losses & (gained < -margin)).sum()),
    )
