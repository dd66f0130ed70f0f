"""Transforms by several scores at once: the strength of a preference over an ensemble, and labels along directions in score space."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

from diffalign.core.errors import ConfigError
from diffalign.data.records import Record
from diffalign.data.transforms.base import flipped, gap, labelled_pair
from diffalign.data.transforms.labels import sigmoid

Repair = Literal["flip", "drop", "soften", "margin"]


def by_strength(
    record: Record,
    *,
    scores: Sequence[str],
    how: Repair,
    units: Mapping[str, float] | None = None,
    sure: float = 0.0,
    wrong: float = 0.2,
    temperature: float = 1.0,
    scale: float = 1.0,
) -> tuple[Record, ...]:
    """Return the pair repaired by the strength of its preference, which is by how much the preferred candidate leads in `scores`.

    Secrets of RLHF II (2401.06080): the mean lead over several reward models, with their deviation; here each lead is in `units` of its
    score, so that no scale decides. A config may leave `units` out: then they are the root mean square of the gaps in the data.

    - flip, drop: a pair whose strength is below zero, by more than `sure` deviations, is turned around, or left out.
    - soften: the label is the chance that it is right, sigmoid(strength / temperature + log((1 - wrong) / wrong)), if a share `wrong` of
      all labels is not (Bayes' rule; ours).
    - margin: `scale` times the strength is added to the offset inside the sigmoid, the adaptive margin.

    Ties stay as they are. Raises ConfigError for no scores, or a share or temperature out of range; RecordError for a missing score.
    """
    _check_constants(scores, wrong, temperature, sure)
    pair, prob = labelled_pair(record)
    if prob == 0.5:
        return (pair,)
    mean, deviation = _strength(pair, scores, units or {})
    side = 1.0 if prob > 0.5 else -1.0
    strength = side * mean
    if how == "soften":
        right = sigmoid(strength / temperature + math.log((1.0 - wrong) / wrong))
        return (replace(pair, prob=right if prob > 0.5 else 1.0 - right),)
    if how == "margin":
        return (replace(pair, offset=(pair.offset or 0.0) + scale * mean),)
    if strength >= -sure * deviation:
        return (pair,)
    return (flipped(pair),) if how == "flip" else ()


def _check_constants(scores: Sequence[str], wrong: float, temperature: float, sure: float) -> None:
    if not scores or not 0.0 < wrong < 1.0 or not temperature > 0.0 or sure < 0.0:
        raise ConfigError(
            f"by_strength: scores is {list(scores)}, wrong {wrong}, temperature {temperature} and sure {sure}; expected names, a share "
            "above 0 and below 1, a number above zero, and zero or more"
        )


def _strength(record: Record, scores: Sequence[str], units: Mapping[str, float]) -> tuple[float, float]:
    """Return the mean of the leads of candidate 0 over `scores`, each in its unit, and their deviation, 0 for one score."""
    leads = [gap(record, name) / units.get(name, 1.0) for name in scores]
    mean = math.fsum(leads) / len(leads)
    return mean, math.sqrt(math.fsum((lead - mean) ** 2 for lead in leads) / max(len(leads) - 1, 1))


def typical_gaps(records: Iterable[Record], scores: Sequence[str]) -> dict[str, float]:
    """Return the root mean square of the gap in each score over pairs, 1 where it never differs."""
    squares = [[gap(record, name) ** 2 for name in scores] for record in records]
    return {name: math.sqrt(math.fsum(own) / len(own)) or 1.0 for name, own in zip(scores, zip(*squares, strict=True), strict=False)}


def by_direction(record: Record, *, directions: Mapping[str, Mapping[str, float]]) -> tuple[Record, ...]:
    """Return the pair once for each direction {name: {score: weight}} in score space, labelled along it, its user the direction's name.

    DPA (2402.18571): the reward of a direction is v . scores, v a unit vector (of other lengths the label is the same), and the policy is
    told v. `user_encoder: {vector: {vectors: FILE}}` does so, with the same vectors in the file. Equal sums are ties. The paper labels
    samples by rejection sampling; labels of pairs are our reading. Raises ConfigError where there is no direction.
    """
    if not directions or not all(directions.values()):
        raise ConfigError(f"by_direction: directions is {dict(directions)}; expected {{name: {{score: weight}}}}")

    def along(weights: Mapping[str, float]) -> float:
        lead = math.fsum(weight * gap(record, score) for score, weight in weights.items())
        return 0.5 if lead == 0.0 else float(lead > 0.0)

    return tuple(replace(record, id=f"{record.id}/{name}", user=name, prob=along(own)) for name, own in directions.items())
