"""The values that the constants of objectives may have, by their names, which mean the same in every objective."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffalign.core.keys import ABOVE_ZERO, FINITE, INSIDE_SHARE, NOT_NEGATIVE, SHARE, SHARE_BELOW_HALF, Range, require

RANGES: dict[str, Range] = {
    **dict.fromkeys(("beta", "beta_plus", "beta_minus", "tau", "eta", "temperature", "scale", "snr", "steps", "own_weight"), ABOVE_ZERO),
    **dict.fromkeys(("power", "advantage_clip", "length"), ABOVE_ZERO),
    **dict.fromkeys(("low", "high", "clip", "kl", "reference_kl"), NOT_NEGATIVE),
    **dict.fromkeys(("sft_weight", "cpo_alpha", "desirable_weight", "undesirable_weight", "weight", "barrier", "inter"), NOT_NEGATIVE),
    "label_smoothing": SHARE_BELOW_HALF,
    "threshold": FINITE,
    "eps": INSIDE_SHARE,
}  # any other number has to be finite
OWN: dict[str, dict[str, Range]] = {"bvpo": {"alpha": SHARE}, "srpo": {"alpha": SHARE}, "spa": {"alpha": SHARE}}


def check_constants(objective: str, constants: Mapping[str, Any]) -> None:
    """Raise ConfigError for the first constant of an objective that is outside its range."""
    ranges = {**RANGES, **OWN.get(objective, {})}
    for name, value in constants.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            allowed = ranges.get(name, FINITE)
            require(f"objective.{objective}.{name}", value, allowed.holds, allowed.expected)
