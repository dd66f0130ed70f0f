"""The transforms that read no more than labels and scores of pairs, on many at once: the same results as record by record.

They spare the opening of a large table a Python object for every record. What they are not made for, such as rankings and unlabelled
records, is left to the functions that they stand for, and so are errors.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from diffalign.core.specs import Bound
from diffalign.data.transforms.base import Transform
from diffalign.data.transforms.candidates import invert, orient, pairs
from diffalign.data.transforms.filters import by_user, drop_ties, min_margin
from diffalign.data.transforms.labels import soft_label

compute: Any = pyarrow.compute  # whose functions are made at import, which type checkers do not see


@dataclass(frozen=True, slots=True)
class Labelled:
    """Labelled pairs as columns; `content` is the Arrow batch of table rows that they come from."""

    content: pa.RecordBatch
    rows: np.ndarray  # (N,) int64, in `content`
    order: np.ndarray  # (N, 2) int32
    prob: np.ndarray  # (N,) float64

    def kept(self, mask: np.ndarray) -> Labelled:
        """Return the pairs where `mask` (N,) is true."""
        return Labelled(self.content, self.rows[mask], self.order[mask], self.prob[mask])

    def swapped(self, mask: np.ndarray, prob: np.ndarray) -> Labelled:
        """Return the pairs with candidates exchanged where `mask` (N,) is true, and other labels `prob` (N,)."""
        return replace(self, order=np.where(mask[:, None], self.order[:, ::-1], self.order), prob=prob)

    def gaps(self, score: str) -> np.ndarray | None:
        """Return by how much candidate 0 of each pair scores above candidate 1, (N,); None unless all candidates have the score once."""
        lists = self.content.column("candidates")
        maps = lists.values.field("scores")
        wanted = compute.equal(maps.keys, score).to_numpy(zero_copy_only=False)
        times = np.diff(np.concatenate([[0], np.cumsum(wanted)])[maps.offsets.to_numpy()])
        places = lists.offsets.to_numpy()[:-1][self.rows, None] + self.order
        if not (times == 1).all():
            return None
        values = maps.items.to_numpy(zero_copy_only=False)[wanted][places]
        return values[:, 0] - values[:, 1]


def _pairs(own: Labelled, *, how: str = "all", score: str | None = None) -> Labelled | None:
    return own if score is None and how in ("all", "best_worst", "adjacent") else None


def _orient(own: Labelled) -> Labelled:
    turned = own.prob < 0.5
    return own.swapped(turned, np.where(turned, 1.0 - own.prob, own.prob))


def _invert(own: Labelled) -> Labelled:
    return own.swapped(np.ones(len(own.rows), bool), own.prob)


def _drop_ties(own: Labelled) -> Labelled:
    return own.kept(own.prob != 0.5)


def _min_margin(own: Labelled, *, margin: float, score: str | None = None) -> Labelled | None:
    gaps = 2.0 * own.prob - 1.0 if score is None else own.gaps(score)
    return None if gaps is None else own.kept(np.abs(gaps) >= margin)


def _by_user(own: Labelled, *, only: Sequence[str] = ()) -> Labelled:
    users = own.content.column("user")
    named = compute.is_in(users, pa.array(list(only), users.type)) if only else users.is_valid()
    return own.kept(named.to_numpy(zero_copy_only=False)[own.rows])


def _soft_label(own: Labelled, *, score: str, low: float, high: float, temperature: float = 1.0) -> Labelled | None:
    from scipy.special import expit  # as the function of one record does

    gaps = own.gaps(score) if high > low and temperature > 0.0 else None
    return None if gaps is None else replace(own, prob=expit(gaps / (high - low) / temperature))


TWINS: dict[Callable[..., Any], Callable[..., Labelled | None]] = {
    pairs: _pairs,
    orient: _orient,
    invert: _invert,
    drop_ties: _drop_ties,
    min_margin: _min_margin,
    by_user: _by_user,
    soft_label: _soft_label,
}
Twin = tuple[str, Callable[[Labelled], Labelled | None]]  # the name of a transform, and what does the same to columns


def twins(transforms: Sequence[Transform]) -> list[Twin] | None:
    """Return the transforms on columns, or None where one of them is made for single records alone."""
    found: list[Twin] = []
    for transform in transforms:
        function, constants = _parts(transform)
        if function not in TWINS:
            return None
        found.append((function.__name__, functools.partial(TWINS[function], **constants)))
    return found


def _parts(transform: Transform) -> tuple[Callable[..., Any], Mapping[str, Any]]:
    if isinstance(transform, Bound):
        return transform.function, transform.constants
    if isinstance(transform, functools.partial) and not transform.args:
        return transform.func, transform.keywords
    return transform, {}


def labelled(content: pa.RecordBatch, number: int) -> Labelled:
    """Return those of the first `number` rows that are labelled pairs without a weight of their own, as they are in the table."""
    lists, prob, meta = content.column("candidates"), content.column("prob"), content.column("meta")
    mask = (np.diff(lists.offsets.to_numpy()) == 2) & prob.is_valid().to_numpy(zero_copy_only=False)
    weighted = compute.equal(meta.keys, "weight").to_numpy(zero_copy_only=False)
    mask &= np.diff(np.concatenate([[0], np.cumsum(weighted)])[meta.offsets.to_numpy()]) == 0
    rows = np.flatnonzero(mask[:number])
    order = np.tile(np.array([0, 1], np.int32), (len(rows), 1))
    return Labelled(content, rows, order, prob.to_numpy(zero_copy_only=False)[rows])


def through(own: Labelled, chain: Sequence[Twin]) -> tuple[Labelled, dict[str, int]] | None:
    """Return the pairs after all transforms, and how many each has dropped; None where they have to be taken one by one."""
    dropped: dict[str, int] = {}
    for name, function in chain:
        after = function(own)
        if after is None:
            return None
        dropped[name] = dropped.get(name, 0) + len(own.rows) - len(after.rows)
        own = after
    return own, dropped
