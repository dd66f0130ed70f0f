"""Clear preferences first: the stages of a run, by hand."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffalign.core.errors import ConfigError, TableError
from diffalign.data.curriculum import CURRICULA, Stages, by_gap, gap
from diffalign.data.records import Candidate, Record
from diffalign.data.sampler import Sampler
from diffalign.data.table import write_table
from diffalign.data.transforms import orient, pairs, preferred
from diffalign.data.view import View


def listed(parts):
    return [part.tolist() for part in parts]


def test_the_largest_gaps_come_first_in_equal_shares():
    assert listed(by_gap(np.array([0.1, 0.9, 0.5, 0.5, -0.2, 0.7]), 3)) == [[1, 5], [2, 3], [0, 4]]
    assert listed(by_gap(np.array([1.0, 2.0, 3.0, 4.0]), 3)) == [[3, 2], [1], [0]]


@pytest.mark.parametrize("stages", [0, 4])
def test_every_stage_has_a_record(stages):
    with pytest.raises(ConfigError, match=rf"stages is {stages}; expected 1 to 3"):
        by_gap(np.zeros(3), stages)


def test_a_stage_draws_its_own_records_alone_and_each_equally_often():
    stages = Stages((np.array([4, 2]), np.array([0]), np.array([1, 3])), samples=12)
    drawn = [stages.index(sample) for sample in range(12)]
    assert [Counter(position for position, _ in drawn[start : start + 4]) for start in (0, 4, 8)] == [
        {4: 2, 2: 2},
        {0: 4},
        {1: 2, 3: 2},
    ]
    assert [epoch for _, epoch in drawn] == [0, 0, 1, 1, 0, 1, 2, 3, 0, 0, 1, 1]


@given(st.integers(1, 40), st.integers(1, 6), st.integers(0, 5))
def test_stages_follow_one_another_and_share_the_run(samples, count, seed):
    stages = Stages(tuple(np.array([number]) for number in range(count)), samples, seed)
    seen = [stages.index(sample)[0] for sample in range(samples)]
    assert seen == sorted(seen)
    assert max(Counter(seen).values()) <= -(-samples // count)
    assert stages.index(samples)[0] == count - 1  # beyond its end a run stays in the last stage


def test_another_seed_draws_in_another_order():
    first, second = (Stages((np.arange(30),), 30, seed) for seed in (0, 1))
    orders = [[stages.index(sample)[0] for sample in range(30)] for stages in (first, second)]
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(30))


def test_a_sampler_takes_its_samples_from_the_stages():
    stages = Stages((np.array([1]), np.array([0])), samples=4)
    sampler = Sampler(2, batch_size=1, accumulation=2, processes=1, rank=0, seed=0, index=stages.index)
    assert list(sampler.batches(0, 2)) == [[(1, 0)], [(1, 1)], [(0, 0)], [(0, 1)]]


def ranked(number, *values):
    shown = tuple(Candidate(text=f"{i}", scores={"s": v}, rank=float(i + 1)) for i, v in enumerate(values))
    return Record(f"r{number}", "p", shown, source=f"row {number}")


def test_gaps_are_those_of_the_candidates_in_the_views_order(tmp_path):
    pair = Record("last", "p", (Candidate(text="a", scores={"s": 1.0}), Candidate(text="b", scores={"s": 7.0})), 0.0, source="row 1")
    view = View(write_table(tmp_path / "table", [ranked(0, 5.0, 4.0, 1.0), pair]), [pairs, orient])
    # gaps: 5 - 4, 5 - 1, 4 - 1 of the ranking; 7 - 1 of the pair that was turned round
    assert listed(gap(view, score="s", stages=4)) == [[3], [1], [2], [0]]
    assert CURRICULA["gap"] is gap
    with pytest.raises(TableError, match=r"r0/0-1 has no score `t`.*\['s'\]"):
        gap(view, score="t")
    with pytest.raises(TableError, match="last has no rank"):
        gap(view)


def test_ranks_have_gaps_too(tmp_path):
    view = View(write_table(tmp_path / "table", [ranked(0, 0.0, 0.0, 0.0)]), [pairs])
    assert listed(gap(view, stages=2)) == [[1, 0], [2]]  # ranks 1 and 3; then 1 and 2, 2 and 3


def test_a_single_candidate_has_no_gap(tmp_path):
    view = View(write_table(tmp_path / "table", [ranked(0, 1.0, 0.0)]), [pairs, preferred])
    with pytest.raises(TableError, match="compares two candidates; r0/0-1 has 1"):
        gap(view, stages=1)
