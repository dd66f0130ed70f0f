"""Transforms of the label, of the record's weight and of its offset inside the sigmoid."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace

from scipy.special import expit

from diffalign.core.errors import ConfigError, RecordError
from diffalign.data.records import Record
from diffalign.data.transforms.base import gap, labelled, oriented, score_of, turned
from diffalign.data.transforms.candidates import orient


def soft_label(record: Record, *, score: str, low: float, high: float, temperature: float = 1.0) -> tuple[Record, ...]:
    """Return the pair with `prob` from a named score, min-max scaled by the dataset's `low` and `high`, then softmax.

    SmPO's p (2506.02698): softmax of the two scaled scores over `temperature`. The constants stand in the table's manifest.
    Raises RecordError if a candidate lacks the score, ConfigError if `high` is not above `low` or `temperature` not above zero.
    """
    if not high > low:
        raise ConfigError(f"soft_label: high ({high}) must be above low ({low})")
    if not temperature > 0.0:
        raise ConfigError(f"soft_label: temperature is {temperature}; expected a number above zero")
    return (replace(record, prob=float(expit(gap(record, score) / (high - low) / temperature))),)


def flip_labels(record: Record, *, share: float, seed: int = 0) -> tuple[Record, ...]:
    """Return the pair, its label and offset turned round for a fixed pseudo-random `share` of ids: label noise that repeats."""
    if not 0.0 <= share <= 1.0:
        raise ConfigError(f"flip_labels: share is {share}; expected a number in [0, 1]")
    digest = hashlib.sha256(f"{seed}:{record.id}".encode()).digest()
    chance = int.from_bytes(digest[:8], "big") / 2**64
    known, _ = labelled(record)
    return (turned(known) if chance < share else known,)


def relabel(record: Record, *, score: str, temperature: float = 0.0, threshold: float = 0.0) -> tuple[Record, ...]:
    """Return the pair labelled by a named score alone, the better candidate first; none if the scores differ by less than `threshold`.

    SPA's labels of its own answers (2406.04412): the score is the implicit reward, beta times the log-ratio of the last iterate to the
    one before, and the label is hard (`temperature` 0; equal scores tie). Reconstructed: a `temperature` above zero gives the
    Bradley-Terry chance sigmoid(difference / temperature), and the threshold leaves out pairs that the score cannot tell apart. SPA's
    own answer to noise, smoothing the least certain labels of each step, belongs to the objective `spa`. Raises RecordError for a record
    with an offset, which is a lead that the former label asked for.
    """
    if temperature < 0.0 or threshold < 0.0:
        raise ConfigError(f"relabel: temperature is {temperature} and threshold {threshold}; expected zero or more")
    if record.offset is not None:
        raise RecordError(f"{record.source}: the offset belongs to the label that `relabel` replaces; put `offset_by` after `relabel`")
    found = gap(record, score)
    if abs(found) < threshold:
        return ()
    prob = float(expit(found / temperature)) if temperature else (0.5 if found == 0.0 else float(found > 0.0))
    return orient(replace(record, prob=prob))


def semantic_weight(record: Record, *, score: str = "distance", alpha: float = 5.0) -> tuple[Record, ...]:
    """Return the record weighted by exp(-alpha * distance), the first candidate's distance of meaning from the prompt.

    Sem-DPO (2507.20133, equation of the loss; read in the paper): the distance is 1 - cosine of sentence embeddings of the prompt and
    the preferred rewrite. The paper's alpha is not known; 5 is ours. Weights multiply. Raises RecordError where the first candidate
    is not the preferred one.
    """
    oriented(record, "semantic_weight")
    if not record.candidates:
        raise RecordError(f"{record.source}: no candidates; `semantic_weight` reads the distance of the first")
    distance = score_of(record, record.candidates[0], score)
    return (replace(record, weight=(1.0 if record.weight is None else record.weight) * math.exp(-alpha * distance)),)


def offset_by(record: Record, *, score: str, scale: float = 1.0, log: bool = True) -> tuple[Record, ...]:
    """Return the pair with an offset inside the sigmoid that grows with the gap in a named score; offsets add.

    ODPO, reconstructed from memory of 2402.10571: the implicit rewards are to differ by scale * log(score_w - score_l) at least; without
    `log` by scale * (score_w - score_l). With `log`, pairs whose first candidate does not score higher are dropped.
    Raises RecordError with `log` where the first candidate is not the preferred one; without, gap and offset turn round together.
    """
    found = gap(oriented(record, "offset_by") if log else record, score)
    if log and not found > 0.0:
        return ()
    return (replace(record, offset=(record.offset or 0.0) + scale * (math.log(found) if log else found)),)
