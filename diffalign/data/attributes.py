"""Scores of single pictures as values in [0, 1]: the share of the training's pictures that score lower."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from diffalign.core.errors import TableError
from diffalign.data.view import View


def attributes_of(view: View, names: Sequence[str]) -> np.ndarray:
    """Return the scores `names`, columns of the view, of each record's first candidate, (records, A); no image is read.

    Raises TableError for a score that is not finite, and for one that all records share, which tells nothing apart.
    """
    block = view.entries.block
    first = np.concatenate([[0], np.cumsum(block.counts)])[:-1]
    values = block.columns[first][:, [view.columns.index(name) for name in names]]
    for name, column in zip(names, values.T, strict=True):
        if len(odd := np.flatnonzero(~np.isfinite(column))):
            record = view.entries[int(odd[0])]
            raise TableError(f"{view.table.path}: the score `{name}` of {record.id} is {column[odd[0]]}; expected a finite number")
        if column.min() == column.max():
            raise TableError(
                f"{view.table.path}: the score `{name}` is {column[0]:g} of all {len(column)} pictures, and a slider needs pictures that "
                "differ in it; leave it out of `attributes`, or add pictures"
            )
    return values


def quantiles_of(scores: np.ndarray, count: int) -> np.ndarray:
    """Return `count` evenly spaced quantiles (count, A) of scores (N, A), the lowest and the highest among them."""
    return np.quantile(scores, np.linspace(0.0, 1.0, count), axis=0)


def levels(scores: np.ndarray, quantiles: np.ndarray) -> np.ndarray:
    """Return at which level in [0, 1] of `quantiles` (Q, A) each of the scores (N, A) lies, linear in between.

    A score that many pictures share has the middle of its levels, from which the line goes on; what lies outside has 0 or 1. Scores are
    rounded as `quantiles` are. Of 1 2 2 2 4 the twos have 1/4 to 3/4, so 1/2, and 3 lies halfway from there to 1:

    >>> levels(np.array([[2.0], [3.0], [9.0]]), np.array([[1.0], [2.0], [2.0], [2.0], [4.0]])).ravel().tolist()
    [0.5, 0.75, 1.0]
    """
    most = len(quantiles) - 1
    columns = []
    for own, knots in zip(scores.astype(quantiles.dtype).T, quantiles.T, strict=True):
        distinct, first, times = np.unique(knots, return_index=True, return_counts=True)
        place = (first + (times - 1) / 2) / most
        columns.append(np.where(own < distinct[0], 0.0, np.where(own > distinct[-1], 1.0, np.interp(own, distinct, place))))
    return np.stack(columns, axis=1)
