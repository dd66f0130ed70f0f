"""Transforms that give candidates new scores; the scores in the table do not change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

from diffalign.core.errors import ConfigError
from diffalign.core.specs import Spec, bind, single
from diffalign.data.advantages import advantages, win_fraction
from diffalign.data.combiners import COMBINERS
from diffalign.data.records import Candidate, Record
from diffalign.data.transforms.base import score_of


def weighted(record: Record, *, scores: Mapping[str, float], into: str) -> tuple[Record, ...]:
    """Return the record with a new score `into` of every candidate: the weighted sum of `scores`, {name: weight}.

    MODPO's margin rewards (2310.03708) are such a sum: {weighted: {scores: {safety: 0.3, brevity: 0.2}, into: margin}}.
    """
    if not scores:
        raise ConfigError("weighted: scores is empty; expected {name: weight}")

    def total(c: Candidate) -> float:
        return sum(weight * score_of(record, c, name) for name, weight in scores.items())

    return _with_scores(record, into, [total(c) for c in record.candidates])


def share_beaten(record: Record, *, scores: Sequence[str] = (), into: str = "gains") -> tuple[Record, ...]:
    """Return the record with a new score `into`: the share of the other candidates, in [0, 1], that each beats; ties count one half.

    By ranks without ties it is 1 - (rank - 1) / (K - 1); for a labelled pair without ranks it is `prob` and 1 - `prob`. With `scores` it
    is the mean over these scores: the probability of winning that RankDPO (2410.18013, reconstructed) takes from several reward models.
    Put it before transforms that leave candidates out. Candidates without a rank do not count and get no score.
    """
    ranked = [i for i, c in enumerate(record.candidates) if scores or c.rank is not None]
    candidates = [record.candidates[i] for i in ranked]
    keys = [[score_of(record, c, name) for c in candidates] for name in scores] or [[-(c.rank or 0.0) for c in candidates]]
    if len(ranked) > 1:
        shares = dict(zip(ranked, (win_fraction(keys).sum(axis=0) / len(keys)).tolist(), strict=True))
    elif record.prob is not None and len(record.candidates) == 2:
        shares = {0: record.prob, 1: 1.0 - record.prob}
    else:
        return (record,)
    scored = (replace(c, scores={**c.scores, into: shares[i]}) if i in shares else c for i, c in enumerate(record.candidates))
    return (replace(record, candidates=tuple(scored)),)


def combined(record: Record, *, scores: Sequence[str], into: str, how: Spec = "weighted") -> tuple[Record, ...]:
    """Return the record with a new score `into` of every candidate, made of `scores` by a combiner (`data.combiners`).

    {combined: {scores: [pickscore, ocr], how: {log_sigmoid: {centres: {pickscore: 21, ocr: 0.5}}}, into: reward}}. Raises ConfigError for
    a combiner that looks at all prompts at once (gdpo, maxmin, hypervolume), which a transform does not see.
    """
    if single("combiner", how)[0] == "prompt_weights":
        raise ConfigError("combined: `how` is prompt_weights, a network that no transform loads; score the table by the scorer `combined`")
    combiner = bind("combiner", COMBINERS, how)()
    if combiner.scope == "all":
        raise ConfigError(f"combined: `how` is {how!r}, which looks at all prompts at once; a transform sees one record")
    return _with_scores(record, into, combiner.combine({name: [_scores(record, name)] for name in scores})[0].tolist())


def advantage(
    record: Record,
    *,
    score: str,
    into: str = "advantage",
    spread: Literal["group", "none"] = "group",
    ddof: int = 0,
    eps: float = 1e-4,
    floor: float = 0.0,
    clip: float | None = 5.0,
) -> tuple[Record, ...]:
    """Return the record with a new score `into`: by how much each candidate's `score` exceeds the record's mean, over their deviation.

    The constants are those of `data.advantages.advantages`. Records whose scores are all equal, which teach nothing, are dropped. Put it
    before transforms that leave candidates out.
    """
    rewards = _scores(record, score)
    if len(rewards) < 2 or max(rewards) == min(rewards):
        return ()
    values = advantages([rewards], spread=spread, ddof=ddof, eps=eps, floor=floor, clip=clip)[0]
    return _with_scores(record, into, values.tolist())


def _scores(record: Record, name: str) -> list[float]:
    return [score_of(record, candidate, name) for candidate in record.candidates]


def _with_scores(record: Record, into: str, values: Sequence[float]) -> tuple[Record, ...]:
    """Return the record with the score `into` of every candidate."""
    scored = (replace(c, scores={**c.scores, into: value}) for c, value in zip(record.candidates, values, strict=True))
    return (replace(record, candidates=tuple(scored)),)
