"""Transforms: pure functions from a record to records, by name. They alone may change the order of candidates.

A transform returns a tuple: an empty one drops the record, several records expand it (a ranking into its pairs). Transforms never see
the images or texts of candidates, because a view gives them records without content.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence

from diffalign.core.specs import Bound
from diffalign.data.records import Record
from diffalign.data.transforms.base import Transform
from diffalign.data.transforms.candidates import by_factuality, by_model, invert, list_of, orient, pairs, preferred, prompt_only, singles
from diffalign.data.transforms.filters import by_user, drop_ties, lowest, min_margin
from diffalign.data.transforms.labels import flip_labels, offset_by, relabel, semantic_weight, soft_label
from diffalign.data.transforms.prompts import fewshot_context, reward_conditioned
from diffalign.data.transforms.scores import advantage, combined, share_beaten, weighted
from diffalign.data.transforms.strength import by_direction, by_strength

TRANSFORMS: dict[str, Callable[..., tuple[Record, ...]]] = {
    "orient": orient,
    "invert": invert,
    "by_factuality": by_factuality,
    "by_model": by_model,
    "pairs": pairs,
    "list_of": list_of,
    "singles": singles,
    "preferred": preferred,
    "prompt_only": prompt_only,
    "drop_ties": drop_ties,
    "by_user": by_user,
    "min_margin": min_margin,
    "lowest": lowest,
    "soft_label": soft_label,
    "flip_labels": flip_labels,
    "relabel": relabel,
    "by_strength": by_strength,
    "by_direction": by_direction,
    "semantic_weight": semantic_weight,
    "offset_by": offset_by,
    "weighted": weighted,
    "share_beaten": share_beaten,
    "combined": combined,
    "advantage": advantage,
    "reward_conditioned": reward_conditioned,
    "fewshot_context": fewshot_context,
}


def apply(records: Iterable[Record], transforms: Sequence[Transform]) -> Iterator[Record]:
    """Yield every record after all `transforms`, in order."""
    for record in records:
        yield from transformed(record, transforms)[0]


def transformed(record: Record, transforms: Sequence[Transform]) -> tuple[tuple[Record, ...], str]:
    """Return what a record becomes after all `transforms`, and the name of the one that has left nothing of it, else an empty text."""
    made: tuple[Record, ...] = (record,)
    for transform in transforms:
        made = tuple(new for old in made for new in transform(old))
        if not made:
            return (), name_of(transform)
    return made, ""


def name_of(transform: Transform) -> str:
    """Return the name of a transform with or without constants."""
    if isinstance(transform, functools.partial):
        return transform.func.__name__
    return transform.name if isinstance(transform, Bound) else getattr(transform, "__name__", "a transform")
