"""Transforms that give candidates new scores; the scores in the table do not change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from diffalign.core.errors import ConfigError
from diffalign.data.records import Candidate, Record
from diffalign.data.transforms.base import score_of


def weighted(record: Record, *, scores: Mapping[str, float], into: str) -> tuple[Record, ...]:
    """Return the record with a new score `into` of every candidate: the weighted sum of `scores`, {name: weight}.

    MODPO's margin rewards (2310.03708) are such a sum: {weighted: {scores: {safety: 0.3, brevity: 0.2}, into: margin}}.
    """
    if not scores:
        raise ConfigError("weighted: scores is empty; expected {name: weight}")

    def with_sum(c: Candidate) -> Candidate:
        total = sum(weight * score_of(record, c, name) for name, weight in scores.items())
        return replace(c, scores={**c.scores, into: total})

    return (replace(record, candidates=tuple(map(with_sum, record.candidates))),)


def share_beaten(record: Record, *, scores: Sequence[str] = (), into: str = "gains") -> tuple[Record, ...]:
    """Return the record with a new score `into`: the share of the other candidates, in [0, 1], that each beats; ties count one half.

    By ranks without ties it is 1 - (rank - 1) / (K - 1); for a labelled pair without ranks it is `prob` and 1 - `prob`. With `scores` it
    is the mean over these scores: the probability of winning that RankDPO (2410.18013, reconstructed) takes from several reward models.
    Put it before transforms that leave candidates out. Candidates without a rank do not count and get no score.
    """
    ranked = [i for i, c in enumerate(record.candidates) if scores or c.rank is not None]
    candidates = [record.candidates[i] for i in ranked]
    keys = [[-score_of(record, c, name) for c in candidates] for name in scores] or [[c.rank or 0.0 for c in candidates]]
    if len(ranked) > 1:
        shares = {i: sum(_share(key[place], key) for key in keys) / len(keys) for place, i in enumerate(ranked)}
    elif record.prob is not None and len(record.candidates) == 2:
        shares = {0: record.prob, 1: 1.0 - record.prob}
    else:
        return (record,)
    scored = (replace(c, scores={**c.scores, into: shares[i]}) if i in shares else c for i, c in enumerate(record.candidates))
    return (replace(record, candidates=tuple(scored)),)


def _share(key: float, keys: Sequence[float]) -> float:
    """Return the share of the other keys that are larger than `key`; equal ones count one half."""
    return (sum(k > key for k in keys) + 0.5 * (keys.count(key) - 1)) / (len(keys) - 1)
