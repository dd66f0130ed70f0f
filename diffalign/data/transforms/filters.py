"""Transforms that keep a record or drop it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from diffalign.core.errors import ConfigError
from diffalign.data.records import Record
from diffalign.data.transforms.base import gap, labelled_pair, require_oriented, score_of

SHARE = 0.05  # the share of records that `lowest` keeps


def drop_ties(record: Record) -> tuple[Record, ...]:
    """Drop pairs with `prob` exactly one half."""
    return () if labelled_pair(record)[1] == 0.5 else (record,)


def by_user(record: Record, *, only: Sequence[str] = ()) -> tuple[Record, ...]:
    """Keep records that name their user; with `only`, those of the listed users alone."""
    listed = record.user is not None and (not only or record.user in only)
    return (record,) if listed else ()


def min_margin(record: Record, *, margin: float, score: str | None = None) -> tuple[Record, ...]:
    """Keep pairs whose preference is clear: |2 prob - 1|, or the gap in the named `score`, at least `margin`."""
    clearness = abs(2.0 * labelled_pair(record)[1] - 1.0) if score is None else abs(gap(record, score))
    return (record,) if clearness >= margin else ()


def lowest(record: Record, *, score: str, share: float = SHARE, most: float) -> tuple[Record, ...]:
    """Keep records whose first candidate has a score of at most `most`; a config may leave `most` out, to keep a `share` of the records.

    Then `most` is the `threshold` of the records that earlier transforms leave, and records with equal scores are kept or dropped
    together. CHES filtering (2410.08847) keeps the 5 % of pairs with the lowest length-normalised CHES, whose training is least likely to
    make the preferred answer less likely: {lowest: {score: ln_ches}} after `orient`, where the preferred candidate has the pair's score.
    Raises RecordError if the first candidate is not the preferred one.
    """
    _check_share(share)
    require_oriented(record, "lowest")
    return (record,) if record.candidates and score_of(record, record.candidates[0], score) <= most else ()


def threshold(records: Iterable[Record], score: str, share: float) -> float:
    """Return the smallest score that at least a `share` of the records' first candidates does not exceed; 0 if there are none."""
    _check_share(share)
    scores = sorted(score_of(record, record.candidates[0], score) for record in records if record.candidates)
    return scores[math.ceil(share * len(scores)) - 1] if scores else 0.0


def _check_share(share: float) -> None:
    if not 0.0 < share <= 1.0:
        raise ConfigError(f"lowest: share is {share}; expected a number above 0, at most 1")
