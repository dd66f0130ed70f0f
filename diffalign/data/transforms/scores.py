"""Transforms that give candidates new scores; the table keeps its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from diffalign.data.records import Candidate, Record
from diffalign.data.transforms.base import score_of
from diffalign.errors import ConfigError


def weighted(record: Record, *, scores: Mapping[str, float], into: str) -> tuple[Record, ...]:
    """Return the record with the weighted sum of several scores, {name: weight}, as the score `into` of every candidate.

    MODPO's margin rewards (2310.03708) are such a sum: {weighted: {scores: {safety: 0.3, brevity: 0.2}, into: margin}}.
    """
    if not scores:
        raise ConfigError("weighted: scores is empty; expected {name: weight}")

    def known(c: Candidate) -> Candidate:
        total = sum(weight * score_of(record, c, name) for name, weight in scores.items())
        return replace(c, scores={**c.scores, into: total})

    return (replace(record, candidates=tuple(map(known, record.candidates))),)


def share_beaten(record: Record, *, into: str = "gains") -> tuple[Record, ...]:
    """Return the record with the share of the other candidates that each beats, in [0, 1], as the score `into`; ties count one half.

    Of ranks without ties that is 1 - (rank - 1) / (K - 1); of a labelled pair `prob` and 1 - `prob`. It belongs before transforms
    that leave candidates out. Candidates without a rank are passed over and get no score.
    """
    ranks = [c.rank for c in record.candidates if c.rank is not None]
    if len(ranks) > 1:
        shares = [None if c.rank is None else _share(c.rank, ranks) for c in record.candidates]
    elif record.prob is not None and len(record.candidates) == 2:
        shares = [record.prob, 1.0 - record.prob]
    else:
        return (record,)
    own = zip(record.candidates, shares, strict=True)
    return (replace(record, candidates=tuple(c if s is None else replace(c, scores={**c.scores, into: s}) for c, s in own)),)


def _share(rank: float, ranks: list[float]) -> float:
    ties = ranks.count(rank) - 1
    return (sum(other > rank for other in ranks) + 0.5 * ties) / (len(ranks) - 1)
