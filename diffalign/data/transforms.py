"""Record -> records: orient, filter, invert, soften, expand. Pure; the only place where candidates change order.

A transform returns a tuple: empty drops the record, several expand it (a ranking into its pairs).
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Literal

from scipy.special import expit

from diffalign.data.records import Candidate, Record
from diffalign.errors import ConfigError, RecordError

Transform = Callable[[Record], tuple[Record, ...]]


def _swap(record: Record) -> Record:
    first, second = record.candidates
    return replace(record, candidates=(second, first), prob=None if record.prob is None else 1.0 - record.prob)


def _pair(record: Record) -> Record:
    """Return `record`, which must be a labelled pair."""
    if len(record.candidates) != 2 or record.prob is None:
        found = f"{len(record.candidates)} candidates and {'no label' if record.prob is None else 'a label'}"
        raise RecordError(f"{record.source}: expected a labelled pair, found {found}; put `pairs` before this transform")
    return record


def _two(record: Record) -> tuple[Candidate, Candidate]:
    if len(record.candidates) != 2:
        raise RecordError(f"{record.source}: expected two candidates, found {len(record.candidates)}; put `pairs` before this transform")
    first, second = record.candidates
    return first, second


def orient(record: Record) -> tuple[Record, ...]:
    """Return the pair with the preferred candidate first (`prob` at least one half); exact ties keep their order."""
    return (_swap(record) if (_pair(record).prob or 0.0) < 0.5 else record,)


def invert(record: Record) -> tuple[Record, ...]:
    """Return the pair with its candidates exchanged and the label kept: trains the opposite taste (Diffusion-NPO, npo.md A1)."""
    return (replace(_swap(_pair(record)), prob=record.prob),)


def drop_ties(record: Record) -> tuple[Record, ...]:
    """Drop pairs with `prob` exactly one half."""
    return () if _pair(record).prob == 0.5 else (record,)


def soft_label(record: Record, *, score: str, low: float, high: float, temperature: float = 1.0) -> tuple[Record, ...]:
    """Return the pair with `prob` from a named score, min-max scaled by the dataset's `low` and `high`, then softmax.

    SmPO's p (2506.02698): softmax of the two scaled scores over `temperature`. The constants stand in the table's manifest.
    Raises RecordError if a candidate lacks the score, ConfigError if `high` is not above `low` or `temperature` not above zero.
    """
    if not high > low:
        raise ConfigError(f"soft_label: high ({high}) must be above low ({low})")
    if not temperature > 0.0:
        raise ConfigError(f"soft_label: temperature is {temperature}; expected a number above zero")
    first, second = (_score(record, candidate, score) for candidate in _two(record))
    return (replace(record, prob=float(expit((first - second) / (high - low) / temperature))),)


def _score(record: Record, candidate: Candidate, name: str) -> float:
    if name not in candidate.scores:
        raise RecordError(f"{record.source}: no score `{name}`; this record has {sorted(candidate.scores) or 'none'}")
    return candidate.scores[name]


def pairs(record: Record, *, how: Literal["all", "best_worst", "adjacent"] = "all", score: str | None = None) -> tuple[Record, ...]:
    """Return the labelled pairs of a ranking of K candidates, better first; equal ranks give `prob` one half.

    Ordered by `rank`, or by the named `score` if given. `all`: K(K-1)/2; `best_worst`: 1; `adjacent`: K-1. A record that is a
    labelled pair already is returned as it is. Candidates without a rank are passed over.
    """
    if score is None and record.prob is not None and len(record.candidates) == 2:
        return (record,)
    keyed = [(c.rank if score is None else -_score(record, c, score), c) for c in record.candidates]
    ranked = sorted(((key, c) for key, c in keyed if key is not None), key=lambda item: item[0])
    spans = {
        "all": itertools.combinations(range(len(ranked)), 2),
        "best_worst": [(0, len(ranked) - 1)] if len(ranked) > 1 else [],
        "adjacent": zip(range(len(ranked) - 1), range(1, len(ranked)), strict=True),
    }
    if how not in spans:
        raise ConfigError(f"pairs: `how` is `{how}`; expected all, best_worst or adjacent")
    return tuple(
        replace(
            record,
            id=f"{record.id}/{i}-{j}",
            candidates=(ranked[i][1], ranked[j][1]),
            prob=0.5 if ranked[i][0] == ranked[j][0] else 1.0,
        )
        for i, j in spans[how]
    )


def preferred(record: Record) -> tuple[Record, ...]:
    """Return the record with its first candidate alone: supervised training; put `orient` before it."""
    return (replace(record, candidates=record.candidates[:1], prob=None),)


def prompt_only(record: Record) -> tuple[Record, ...]:
    """Return the record without its candidates, for methods that make their own pictures; no image is read."""
    return (replace(record, candidates=(), prob=None),)


def by_user(record: Record, *, only: Sequence[str] = ()) -> tuple[Record, ...]:
    """Keep records that name their user; with `only`, those of the listed users."""
    wanted = record.user is not None and (not only or record.user in only)
    return (record,) if wanted else ()


def min_margin(record: Record, *, margin: float, score: str | None = None) -> tuple[Record, ...]:
    """Keep pairs whose preference is clear: |2 prob - 1|, or the gap in the named `score`, at least `margin`."""
    if score is None:
        gap = abs(2.0 * (_pair(record).prob or 0.0) - 1.0)
    else:
        first, second = (_score(record, candidate, score) for candidate in _two(record))
        gap = abs(first - second)
    return (record,) if gap >= margin else ()


def flip_labels(record: Record, *, share: float, seed: int = 0) -> tuple[Record, ...]:
    """Return the pair, its label turned round for a fixed pseudo-random `share` of ids: label noise that repeats."""
    if not 0.0 <= share <= 1.0:
        raise ConfigError(f"flip_labels: share is {share}; expected a number in [0, 1]")
    digest = hashlib.sha256(f"{seed}:{record.id}".encode()).digest()
    chance = int.from_bytes(digest[:8], "big") / 2**64
    prob = _pair(record).prob or 0.0
    return (replace(record, prob=1.0 - prob) if chance < share else record,)


TRANSFORMS: dict[str, Callable[..., tuple[Record, ...]]] = {
    "orient": orient,
    "invert": invert,
    "drop_ties": drop_ties,
    "soft_label": soft_label,
    "pairs": pairs,
    "preferred": preferred,
    "prompt_only": prompt_only,
    "by_user": by_user,
    "min_margin": min_margin,
    "flip_labels": flip_labels,
}


def apply(records: Iterable[Record], transforms: Sequence[Transform]) -> Iterator[Record]:
    """Yield every record after all `transforms`, in order."""
    for record in records:
        kept: tuple[Record, ...] = (record,)
        for transform in transforms:
            kept = tuple(new for old in kept for new in transform(old))
        yield from kept
