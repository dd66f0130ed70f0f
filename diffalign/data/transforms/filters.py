"""Transforms that keep a record or drop it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from diffalign.core.errors import ConfigError
from diffalign.data.records import Record
from diffalign.data.transforms.base import gap, labelled, oriented, score_of

SHARE = 0.05  # of the records that `lowest` keeps


def drop_ties(record: Record) -> tuple[Record, ...]:
    """Drop pairs with `prob` exactly one half."""
    return () if labelled(record)[1] == 0.5 else (record,)


def by_user(record: Record, *, only: Sequence[str] = ()) -> tuple[Record, ...]:
    """Keep records that name their user; with `only`, those of the listed users."""
    wanted = record.user is not None and (not only or record.user in only)
    return (record,) if wanted else ()


def min_margin(record: Record, *, margin: float, score: str | None = None) -> tuple[Record, ...]:
    """Keep pairs whose preference is clear: |2 prob - 1|, or the gap in the named `score`, at least `margin`."""
    clear = abs(2.0 * labelled(record)[1] - 1.0) if score is None else abs(gap(record, score))
    return (record,) if clear >= margin else ()


def lowest(record: Record, *, score: str, share: float = SHARE, most: float) -> tuple[Record, ...]:
    """Keep records whose first candidate has a score of at most `most`, which is taken from the data so that a `share` is kept.

    CHES filtering (2410.08847 keeps the 5 % with the lowest length-normalised CHES, those least likely to make the preferred answer
    less likely): {lowest: {score: ln_ches}} after `orient`, with the score of the pair written to its preferred candidate.
    Where `most` is not given it is the smallest threshold that keeps the share of what earlier transforms leave; equals stay together.
    Raises RecordError where the first candidate is not the preferred one.
    """
    _check_share(share)
    oriented(record, "lowest")
    return (record,) if record.candidates and score_of(record, record.candidates[0], score) <= most else ()


def threshold(records: Iterable[Record], score: str, share: float) -> float:
    """Return the smallest number that a `share` of the records' first candidates does not score above; 0 where there are none."""
    _check_share(share)
    found = sorted(score_of(record, record.candidates[0], score) for record in records if record.candidates)
    return found[math.ceil(share * len(found)) - 1] if found else 0.0


def _check_share(share: float) -> None:
    if not 0.0 < share <= 1.0:
        raise ConfigError(f"lowest: share is {share}; expected a number above 0, at most 1")
