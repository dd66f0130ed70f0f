"""Transforms of a record's label, of its weight and of its offset inside the sigmoid."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace

from diffalign.core.errors import ConfigError, RecordError
from diffalign.data.records import Record
from diffalign.data.transforms.base import flipped, gap, labelled_pair, require_oriented, score_of
from diffalign.data.transforms.candidates import orient


def soft_label(record: Record, *, score: str, low: float, high: float, temperature: float = 1.0) -> tuple[Record, ...]:
    """Return the pair with `prob` computed from a named score, whose range in the dataset is `low` to `high`.

    SmPO's p (2506.02698): the softmax, over `temperature`, of the two scores after min-max scaling. The range is in the table's
    manifest. Raises RecordError if a candidate lacks the score, ConfigError if `high` is not above `low` or `temperature` not above zero.
    """
    if not high > low:
        raise ConfigError(f"soft_label: high ({high}) must be above low ({low})")
    if not temperature > 0.0:
        raise ConfigError(f"soft_label: temperature is {temperature}; expected a number above zero")
    return (replace(record, prob=sigmoid(gap(record, score) / (high - low) / temperature)),)


def flip_labels(record: Record, *, share: float, seed: int = 0) -> tuple[Record, ...]:
    """Return the pair with label and offset flipped for a pseudo-random `share` of ids: label noise that is the same in every run."""
    if not 0.0 <= share <= 1.0:
        raise ConfigError(f"flip_labels: share is {share}; expected a number in [0, 1]")
    digest = hashlib.sha256(f"{seed}:{record.id}".encode()).digest()
    draw = int.from_bytes(digest[:8], "big") / 2**64  # uniform in [0, 1)
    pair, _ = labelled_pair(record)
    return (flipped(pair) if draw < share else pair,)


def relabel(record: Record, *, score: str, temperature: float = 0.0, threshold: float = 0.0) -> tuple[Record, ...]:
    """Return the pair labelled by a named score alone, the better candidate first; drop pairs whose scores differ by less than `threshold`.

    With `temperature` 0 the label is hard, and equal scores tie; above 0 it is the Bradley-Terry probability sigmoid(difference /
    temperature). These are SPA's labels of the model's own answers (2406.04412), where the score is the implicit reward: beta times the
    log-ratio of the last iterate to the one before. Temperature and threshold are not SPA's; its own treatment of noisy labels,
    smoothing the least certain ones of each step, is part of the objective `spa`. Raises RecordError for a record with an offset, which
    was computed for the former label.
    """
    if temperature < 0.0 or threshold < 0.0:
        raise ConfigError(f"relabel: temperature is {temperature} and threshold {threshold}; expected zero or more")
    if record.offset is not None:
        raise RecordError(f"{record.source}: the offset belongs to the label that `relabel` replaces; put `offset_by` after `relabel`")
    difference = gap(record, score)
    if abs(difference) < threshold:
        return ()
    prob = sigmoid(difference / temperature) if temperature else (0.5 if difference == 0.0 else float(difference > 0.0))
    return orient(replace(record, prob=prob))


def semantic_weight(record: Record, *, score: str = "distance", alpha: float = 5.0) -> tuple[Record, ...]:
    """Return the record with its weight multiplied by exp(-alpha * distance); the distance is a score of the first candidate.

    Sem-DPO (2507.20133, equation of the loss): the distance is 1 - cosine of sentence embeddings of the prompt and the preferred
    rewrite. The paper does not state its alpha; 5 is our choice. Raises RecordError if the first candidate is not the preferred one.
    """
    require_oriented(record, "semantic_weight")
    if not record.candidates:
        raise RecordError(f"{record.source}: no candidates; `semantic_weight` needs the score `{score}` of the first one")
    distance = score_of(record, record.candidates[0], score)
    return (replace(record, weight=(1.0 if record.weight is None else record.weight) * math.exp(-alpha * distance)),)


def offset_by(record: Record, *, score: str, scale: float = 1.0, log: bool = True) -> tuple[Record, ...]:
    """Return the pair with an offset inside the sigmoid that grows with the gap in a named score; it is added to an earlier offset.

    ODPO, reconstructed from memory of 2402.10571: the implicit rewards should differ by at least scale * log(score_w - score_l), or
    without `log` by scale * (score_w - score_l). With `log`, pairs whose first candidate does not score higher are dropped, and
    RecordError is raised if the first candidate is not the preferred one. Without `log` the pair may have either order, because the
    offset changes its sign with the order.
    """
    difference = gap(require_oriented(record, "offset_by") if log else record, score)
    if log and not difference > 0.0:
        return ()
    return (replace(record, offset=(record.offset or 0.0) + scale * (math.log(difference) if log else difference)),)


def sigmoid(x: float) -> float:
    """Return 1 / (1 + exp(-x))."""
    from scipy.special import expit  # a quarter of the time that `--help` takes, which needs none

    return float(expit(x))
