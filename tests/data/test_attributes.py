"""Scores as values in [0, 1]: levels of quantiles by hand, and scores that tell nothing are refused."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from diffalign.core.errors import TableError
from diffalign.data.attributes import attributes_of, levels, quantiles_of
from diffalign.data.table import write_table
from diffalign.data.transforms import pairs
from diffalign.data.view import View
from tests.data.voters import votes


def view(folder, sizes, transforms=(pairs,), **columns):
    """Return a view of pairs, whose first pictures are preferred and have these sizes; the others have size 9."""
    records = []
    for record, size in zip(votes([("ann", len(sizes))]), sizes, strict=True):
        candidates = tuple(replace(c, scores={"size": s}) for c, s in zip(record.candidates, (size, 9.0), strict=True))
        records.append(replace(record, candidates=candidates, prob=1.0))
    return View(write_table(folder / "table", records), list(transforms), columns={"size": "size", **columns})


def test_the_level_of_a_score_is_the_share_that_scores_lower():
    scores = np.array([[10.0], [40.0], [20.0], [30.0], [50.0]])
    quantiles = quantiles_of(scores, 5)
    assert quantiles.ravel().tolist() == [10.0, 20.0, 30.0, 40.0, 50.0]
    assert levels(scores, quantiles).ravel().tolist() == [0.0, 0.75, 0.25, 0.5, 1.0]
    # half way from 20 to 30, and beyond both ends
    assert levels(np.array([[25.0], [-3.0], [99.0]]), quantiles).ravel().tolist() == [0.375, 0.0, 1.0]


def test_equal_scores_have_the_middle_of_their_levels():
    # of 1 1 1 2 2 the ones have levels 0, 1/4 and 1/2, the twos 3/4 and 1
    quantiles = np.array([[1.0], [1.0], [1.0], [2.0], [2.0]])
    assert levels(np.array([[1.0], [2.0], [1.5]]), quantiles).ravel().tolist() == [0.25, 0.875, 0.5625]


def test_scores_of_few_values_keep_their_levels_where_quantiles_are_rounded():
    """As a double 0.1 lies below its nearest float, and 0.9 above its: of two of each the levels are 1/6 and 5/6 all the same."""
    scores = np.array([[0.1], [0.1], [0.9], [0.9]])
    assert levels(scores, np.array([[0.1], [0.1], [0.9], [0.9]], np.float32)).ravel() == pytest.approx([1 / 6, 1 / 6, 5 / 6, 5 / 6])


def test_the_scores_are_those_of_the_first_candidate(tmp_path):
    assert attributes_of(view(tmp_path, [1.0, 3.0, 2.0]), ["size"]).tolist() == [[1.0], [3.0], [2.0]]


def test_a_score_that_all_pictures_share_or_that_is_no_number_is_refused(tmp_path):
    with pytest.raises(TableError, match=r"score `size` is 4 of all 2 pictures.*leave it out of `attributes`"):
        attributes_of(view(tmp_path, [4.0, 4.0]), ["size"])

    def broken(record):
        return (replace(record, candidates=tuple(replace(c, scores={"size": math.nan}) for c in record.candidates)),)

    with pytest.raises(TableError, match=r"score `size` of r0 is nan; expected a finite number"):
        attributes_of(view(tmp_path / "other", [1.0, 2.0], [pairs, broken]), ["size"])
