"""The alarm of over-optimisation: judges that training does not see fall, or pictures stop looking as they did.

`alarm` decides for `diffalign eval` and for the watch over a training alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from diffalign.core.intervals import LEAST_PROMPTS, bootstrapped, sign_test, verdict

MOST_WINS = 1 / 3  # a held-out score has fallen where the base wins two draws in three or more, ties counting one half
LARGE = 0.5  # or by so many standard deviations, with less than LEAST_KEPT of the base's left: where scores are few, most draws tie
LEAST_KEPT = 0.95  # hacked runs of the tiny model were at 0.92 or 0.97 in one evaluation, and at 0.41 or 0.85 in the next
LEAST_JUDGED = 0.7  # of the pictures that a scorer could judge before
LOOKS = {
    "diversity": (0.5, math.inf),  # a taste for one place takes a third of it
    "saturation": (0.5, 1.5),
    "sharpness": (0.5, 2.0),
    "high_frequency": (0.5, 2.0),
    "pixel_grid": (0.0, 3.0),
    "prompt_diversity": (0.5, math.inf),
}
"""What part of the base's a look of the pictures may become."""


@dataclass(frozen=True, slots=True)
class Change:
    """What a score gains over the base: the mean over prompts, with its 95 % interval."""

    name: str
    value: float
    low: float
    high: float
    base: float
    """Mean of the base over prompts."""
    wins: float
    """Share of draws, averaged by prompt, whose score rises; ties count one half."""
    effect: float
    """Cohen's d: `value` in standard deviations between prompts, the base's and the aligned model's pooled; so scores can be averaged."""
    p: float = 0.0
    """Of the exact two-sided sign test over prompts, by the mean of their draws; 0 in files from before it was written."""

    @property
    def rose(self) -> bool:
        """Return whether the score has risen for certain: its interval lies above zero, and the sign test agrees."""
        return verdict(self.low, self.high, self.p, level=0.0) == "win"

    @property
    def fell(self) -> bool:
        """Return whether the score has fallen for certain: its interval lies below zero, and the sign test agrees."""
        return verdict(self.low, self.high, self.p, level=0.0) == "loss"

    @property
    def left(self) -> float:
        """Return what part of the base's mean is left; 0 for a base not above zero, where only standard deviations can tell."""
        return (self.base + self.value) / self.base if self.base > 0 else 0.0


def change(base: Sequence[float], aligned: Sequence[float], prompts: Sequence[str], name: str, seed: int = 0) -> Change:
    """Return how `aligned` changes the scores of `base`, draw by draw; the interval is a percentile bootstrap by prompt.

    Draws that either cannot be judged (NaN) are left out. The interval is NaN for fewer than 6 prompts, everything is if none is left.
    """
    grouped: dict[str, list[tuple[float, float]]] = {}
    for prompt, pair in zip(prompts, zip(base, aligned, strict=True), strict=True):
        if not np.isnan(pair).any():
            grouped.setdefault(prompt, []).append(pair)
    if not grouped:
        return Change(name, *[math.nan] * 7)
    means = np.array([np.mean(pairs, axis=0) for pairs in grouped.values()])
    gains, wins = means[:, 1] - means[:, 0], [np.mean([(np.sign(b - a) + 1) / 2 for a, b in pairs]) for pairs in grouped.values()]
    value, spread = float(gains.mean()), math.sqrt(means.var(axis=0).mean())
    spread = spread if spread > 1e-12 * np.abs(means).max() else 0.0  # the rounding of equal means is none
    low, high = bootstrapped(gains, seed)
    return Change(
        name=name,
        value=value,
        low=low,
        high=high,
        base=float(means[:, 0].mean()),
        wins=float(np.mean(wins)),
        effect=value / spread if spread else math.copysign(math.inf, value) if value else 0.0,
        p=sign_test(int((gains > 0.0).sum()), int((gains < 0.0).sum())),
    )


def alarm(rewards: Sequence[Change], held_out: Sequence[Change], looks: Sequence[Change]) -> list[str]:
    """Return the reasons for alarm, none if it is silent.

    Args:
        rewards: what training optimised, as far as it is known.
        held_out: scores of judges that training does not see.
        looks: measures of how pictures look, of those in `LOOKS`.

    A held-out score is a reason where it fell for certain, by half a standard deviation and a twentieth of the base's, or, while a reward
    has risen, where the base wins two draws in three. A look is one where it left the limits in `LOOKS` for certain. The limits leave out
    falls that are real and small: agreeing with a preference costs some variety, and now and then an attribute.

    Example:
        >>> fallen = Change("adherence", value=-0.25, low=-0.38, high=-0.12, base=0.98, wins=0.3, effect=-1.1)
        >>> alarm([], [fallen], [])
        ['adherence fell by 0.25 [0.12, 0.38] from 0.98, winning 30% of draws']
    """
    risen = next((reward for reward in rewards if reward.rose), None)
    start = "" if risen is None else f"{risen.name} has risen by {risen.value:.3g} [{risen.low:.3g}, {risen.high:.3g}] while "
    reasons = [
        f"{start}{held.name} fell by {-held.value:.3g} [{-held.high:.3g}, {-held.low:.3g}] from {held.base:.3g}, "
        f"winning {held.wins:.0%} of draws"
        for held in held_out
        if held.fell and ((held.effect <= -LARGE and held.left < LEAST_KEPT) or (risen is not None and held.wins <= MOST_WINS))
    ]
    return reasons + [f"{start}{reason}" for look in looks if (reason := _shift(look))]


def _shift(look: Change) -> str:
    """Return how a look of the pictures left its limits, nothing where it did not."""
    least, most = LOOKS[look.name]
    if look.fell and look.left < least:
        return f"{look.name} fell to {look.left:.0%} of the base's, from {look.base:.3g}"
    if look.rose and look.left > most:
        return f"{look.name} rose to {look.left:.2g} times the base's, from {look.base:.3g}"
    return ""


def unjudged(name: str, before: int, now: int) -> list[str]:
    """Return a reason for alarm where a scorer can judge fewer than 0.7 of the pictures that it could judge of the base."""
    return [f"{name} can judge {now} of the pictures, and could judge {before} of the base's"] if now < LEAST_JUDGED * before else []


def mute(changes: Sequence[Change]) -> str | None:
    """Return why an alarm on held-out scores and looks could not go off at all; None where it could."""
    if all(math.isnan(one.low) for one in changes):
        return f"every held-out score, and the look of pictures, is known of fewer than {LEAST_PROMPTS} prompts"
    return None
