"""The units of scores: what one means is known from its scorer, or from the columns it was read from, and constants must be of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffalign.core.errors import ConfigError
from diffalign.data.table import Table

COSINE, PERCENT = "cosine", "100 x cosine"
FAR = 3.0  # scores are of another unit where they leave the range of the constants by so many times its width, or lie beside it
MOST_POINTS = 10.0  # of the prompts of `reward_conditioned`, which says "of 10 points"


def unit_of(manifest: Mapping[str, Any], score: str) -> str | None:
    """Return the unit of a table's score, by the scorer that gave it; of Pick-a-Pic's own `ps_score_*` a cosine. None if nobody says."""
    units = {about["name"]: about.get("unit") for about in manifest.get("scorers") or ()}
    if score in units:
        return units[score]
    span = manifest["scores"].get(score)
    return COSINE if manifest.get("reader") == "pickapic" and score == "pickscore" and span and abs(span["max"]) <= 1.0 else None


def check_range(table: Table, score: str, low: float, high: float) -> None:
    """Raise ConfigError where a table's scores lie far outside the range that constants give them: they are of another unit.

    >>> FAR * (0.28 - 0.12) < 24 - 0.28  # 100 times a cosine, and constants of a cosine
    True
    """
    span = table.manifest["scores"][score]
    least, most = span["min"], span["max"]
    width = high - low
    if max(low - least, most - high) <= FAR * width and least <= high + width and most >= low - width:
        return
    unit = unit_of(table.manifest, score)
    scores = f"scores of {least:.4g} to {most:.4g}" + (f" ({unit})" if unit else "")
    cure = "leave out low and high, and the table's own range counts"
    if low <= (least + most) / 200 <= high:
        cure = f"the constants are of cosines, and the scores 100 times them: divide the scores by 100, or write {low * 100:.4g} and"
        cure += f" {high * 100:.4g}"
    elif low <= (least + most) * 50 <= high:
        cure = f"the scores are cosines, and the constants 100 times them: write {low / 100:.4g} and {high / 100:.4g}"
    raise ConfigError(f"{table.path}: `{score}` has {scores}, and soft_label a low/high of {low:.4g}/{high:.4g}; {cure}")


def check_points(table: Table, score: str) -> None:
    """Raise ConfigError where scores that a prompt gives "of 10 points" are not from 0 to 10."""
    span = table.manifest["scores"].get(score)
    if span and (span["min"] < 0.0 or not 1.0 < span["max"] <= MOST_POINTS):
        unit = unit_of(table.manifest, score)
        raise ConfigError(
            f"{table.path}: `{score}` is {span['min']:.4g} to {span['max']:.4g}{f' ({unit})' if unit else ''}, and the prompts of "
            "reward_conditioned say `of 10 points`; give their range as `low` and `high`, or a `template` of your own with {goal} in it"
        )
