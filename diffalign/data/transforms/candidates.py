"""Transforms that choose a record's candidates and their order."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from diffalign.core.errors import ConfigError, RecordError
from diffalign.data.records import Candidate, Record
from diffalign.data.transforms.base import labelled_pair, require_oriented, score_of, swapped


def orient(record: Record) -> tuple[Record, ...]:
    """Return the pair with the preferred candidate first (`prob` at least one half); exact ties keep their order."""
    return (swapped(record) if labelled_pair(record)[1] < 0.5 else record,)


def invert(record: Record) -> tuple[Record, ...]:
    """Return the pair with its candidates exchanged, but not its label and offset: trains the opposite preference (Diffusion-NPO)."""
    pair, prob = labelled_pair(record)
    return (replace(swapped(pair), prob=prob, offset=pair.offset),)  # not flipped twice: in floating point 1 - (1 - p) is not p


def by_factuality(record: Record, *, score: str = "hallucinated") -> tuple[Record, ...]:
    """Return the oriented pair, its candidates exchanged and its label kept if the preferred candidate alone hallucinates.

    F-DPO's flip (2601.03027, data preparation of the released code): a pair whose flags are (1, 0) becomes one with (0, 1). The flag is
    the candidates' `score`, 0 (factual) or 1 (hallucinated). Raises RecordError for any other value.
    """
    (pair,) = orient(record)
    flags = tuple(score_of(pair, candidate, score) for candidate in pair.candidates)
    if not {0.0, 1.0}.issuperset(flags):
        raise RecordError(f"{record.source}: `{score}` is {flags[0]:g} and {flags[1]:g}; expected 0 (factual) or 1 (hallucinated)")
    return invert(pair) if flags == (1.0, 0.0) else (pair,)


def pairs(
    record: Record, *, how: Literal["all", "best_worst", "adjacent", "best_each"] = "all", score: str | None = None
) -> tuple[Record, ...]:
    """Return the labelled pairs of a ranking of K candidates, the better candidate first; equal ranks give `prob` one half.

    The ranking is by `rank`, or by a named `score`. `how` takes all K(K-1)/2 pairs, the one of best and worst, the K-1 of adjacent
    candidates, or the K-1 of the best against each other one (Curry-DPO, 2403.07230). A labelled pair is returned unchanged, unless
    there is a `score`. Candidates without a rank are left out.
    """
    if score is None and record.prob is not None and len(record.candidates) == 2:
        return (record,)
    ranked = _ranked(record, score)
    spans = {
        "all": itertools.combinations(range(len(ranked)), 2),
        "best_worst": [(0, len(ranked) - 1)] if len(ranked) > 1 else [],
        "adjacent": zip(range(len(ranked) - 1), range(1, len(ranked)), strict=True),
        "best_each": [(0, j) for j in range(1, len(ranked))],
    }
    if how not in spans:
        raise ConfigError(f"pairs: `how` is `{how}`; expected all, best_worst, adjacent or best_each")
    return tuple(
        replace(
            record,
            id=f"{record.id}/{i}-{j}",
            candidates=(ranked[i][1], ranked[j][1]),
            prob=0.5 if ranked[i][0] == ranked[j][0] else 1.0,
        )
        for i, j in spans[how]
    )


def by_model(record: Record, *, order: Sequence[str]) -> tuple[Record, ...]:
    """Return the pair of the first and the last model in `order`, best first, that drew candidates, labelled by that order alone.

    Delta Learning (2507.06187): what a stronger model made is preferred to what a weaker one made, however good either is. Candidates of
    other models are left out, and records of fewer than two of the models; of several candidates of a model the first counts. Raises
    ConfigError for an order of fewer than two models or with one twice, RecordError for an offset, which was made for another label.
    """
    if len(order) < 2 or len(set(order)) < len(order):
        raise ConfigError(f"by_model: order is {list(order)}; expected two or more models, best first")
    if record.offset is not None:
        raise RecordError(f"{record.source}: the offset belongs to the label that `by_model` replaces; put `offset_by` after `by_model`")
    drawn = {candidate.model: candidate for candidate in reversed(record.candidates)}
    present = [drawn[model] for model in order if model in drawn]
    return (replace(record, candidates=(present[0], present[-1]), prob=1.0),) if len(present) > 1 else ()


def singles(record: Record, *, score: str | None = "liked", liked: float = 1.0, disliked: float | None = None) -> tuple[Record, ...]:
    """Return a record for each candidate alone, `prob` 1 if it is liked and 0 if it is disliked, for objectives of unpaired votes.

    A lone candidate with a label stays as it is. Others are liked from `score` `liked` upwards, and disliked down from `disliked`, or
    below `liked` if that is None; those between, and those without the score, are left out: {singles: {score: rating, liked: 4,
    disliked: 2}} of stars. Of a labelled pair without the score the preferred candidate is liked, and the other disliked, by the share
    of the label. With `score` None every candidate becomes a record without a label, to learn from as it is. Raises ConfigError if
    `disliked` is above `liked`.
    """
    if score is None:
        return tuple(
            replace(record, id=f"{record.id}/{place}", candidates=(candidate,), prob=None, offset=None)
            for place, candidate in enumerate(record.candidates)
        )
    if disliked is not None and disliked > liked:
        raise ConfigError(f"singles: disliked ({disliked:g}) is above liked ({liked:g})")
    if len(record.candidates) == 1 and record.prob is not None:
        return (record,)

    def label(place: int, candidate: Candidate) -> float | None:
        value = candidate.scores.get(score)
        if value is not None:
            return 1.0 if value >= liked else 0.0 if disliked is None or value <= disliked else None
        if len(record.candidates) == 2 and record.prob is not None and not any(score in c.scores for c in record.candidates):
            return 1.0 - record.prob if place else record.prob
        return None

    labels = [label(place, candidate) for place, candidate in enumerate(record.candidates)]
    return tuple(
        replace(record, id=f"{record.id}/{place}", candidates=(candidate,), prob=prob, offset=None)
        for place, (candidate, prob) in enumerate(zip(record.candidates, labels, strict=True))
        if prob is not None
    )


def list_of(record: Record, *, candidates: int, score: str | None = None) -> tuple[Record, ...]:
    """Return a record of the best `candidates` of a ranking, best first, for listwise objectives; drop rankings that have fewer.

    The ranking is by `rank`, or by a named `score`; candidates without a rank are left out. `prob` is 1, or one half if the best two tie.
    """
    if candidates < 2:
        raise ConfigError(f"list_of: candidates is {candidates}; expected at least 2")
    best = _ranked(record, score)[:candidates]
    if len(best) < candidates:
        return ()
    return (replace(record, candidates=tuple(c for _, c in best), prob=0.5 if best[0][0] == best[1][0] else 1.0),)


def _ranked(record: Record, score: str | None) -> list[tuple[float, Candidate]]:
    """Return (key, candidate) of the ranked candidates, sorted by key, which is smallest for the best."""
    keyed = [(c.rank if score is None else -score_of(record, c, score), c) for c in record.candidates]
    return sorted(((key, c) for key, c in keyed if key is not None), key=lambda item: item[0])


def preferred(record: Record) -> tuple[Record, ...]:
    """Return the record with its first candidate alone, for supervised training. Raises RecordError if that is not the preferred one."""
    return (replace(require_oriented(record, "preferred"), candidates=record.candidates[:1], prob=None),)


def prompt_only(record: Record) -> tuple[Record, ...]:
    """Return the record without its candidates, for methods that draw their own images; no image is read."""
    return (replace(record, candidates=(), prob=None),)
