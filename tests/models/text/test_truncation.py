"""What does not fit into max_length is cut as stated, never down to nothing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffalign.core.errors import ConfigError
from diffalign.models.text.template import Encoded
from diffalign.models.text.truncation import Limit
from tests.models.text.tables import encoded, lists

BOS = 1


def cut(record: Encoded, length: int, mode: str, begin: int | None = BOS):
    limit = Limit(length, mode)  # pyright: ignore[reportArgumentType]
    assert limit.admits(record)
    return lists(limit.cut(record, begin))


def test_what_fits_is_kept_whole_in_both_modes():
    record = encoded([BOS, 5, 6], [7, 8], [9])
    for mode in ("keep_start", "keep_end"):
        assert cut(record, 5, mode) == ([[BOS, 5, 6]] * 2, [[7, 8], [9]])


def test_keep_start_cuts_the_end_of_completions():
    assert cut(encoded([BOS, 5, 6], [7, 8, 9], [9]), 4, "keep_start") == ([[BOS, 5, 6]] * 2, [[7], [9]])


def test_keep_start_leaves_out_a_record_whose_prompt_alone_fills_the_limit():
    record = encoded([BOS, 5, 6], [7], [8])
    assert [Limit(length, "keep_start").admits(record) for length in (2, 3, 4)] == [False, False, True]
    assert Limit(2, "keep_end").admits(record)


def test_keep_end_cuts_the_beginning_of_the_prompt_after_the_token_that_begins_texts():
    record = encoded([BOS, 4, 5, 6], [7, 8, 9], [9])
    assert cut(record, 5, "keep_end") == ([[BOS, 6]] * 2, [[7, 8, 9], [9]])
    assert cut(record, 5, "keep_end", begin=None) == ([[5, 6]] * 2, [[7, 8, 9], [9]])


def test_keep_end_cuts_completions_only_where_one_token_of_the_prompt_is_left():
    record = encoded([BOS, 4, 5], [6, 7, 8, 9], [9])
    assert cut(record, 4, "keep_end") == ([[BOS]] * 2, [[6, 7, 8], [9]])
    assert cut(record, 2, "keep_end", begin=None) == ([[5]] * 2, [[6], [9]])


def test_prompts_of_candidates_own_are_cut_each_by_its_length():
    arrays = [np.asarray(ids, np.int32) for ids in ([BOS, 4, 5], [BOS], [6, 7], [8, 9, 9])]
    record = Encoded((arrays[0], arrays[1]), (0, 1), (arrays[2], arrays[3]))
    assert cut(record, 4, "keep_start") == ([[BOS, 4, 5], [BOS]], [[6], [8, 9, 9]])
    assert cut(record, 4, "keep_end") == ([[BOS], [BOS]], [[6, 7], [8, 9, 9]])


def test_a_limit_without_room_for_a_prompt_and_a_completion_is_refused():
    with pytest.raises(ConfigError, match="max_length is 1; expected at least 2"):
        Limit(1)


@given(
    st.integers(1, 9), st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(2, 12), st.sampled_from(["keep_start", "keep_end"])
)
def test_nothing_admitted_is_ever_too_long_or_empty(prompt, completions, length, mode):
    limit, record = Limit(length, mode), encoded([BOS, *range(10, 9 + prompt)], *[range(30, 30 + n) for n in completions])
    if limit.admits(record):
        for begun, answer in zip(*lists(limit.cut(record, BOS)), strict=True):
            assert len(begun) + len(answer) <= length
            assert begun[0] == BOS
            assert answer[:1] == [30]
