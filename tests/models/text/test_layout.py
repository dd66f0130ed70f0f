"""Texts become rows, and the numbers of rows go back to their tokens; ids and places are written out by hand."""

from __future__ import annotations

import pytest
import torch

from diffalign.core.errors import TableError
from diffalign.core.types import TextBatch
from diffalign.models.text.layout import Segment, lay_out


def batch(*records: tuple[list[list[int]], list[list[int]]]) -> TextBatch:
    """Return a batch of records given as (a prompt for each candidate, completions)."""

    def tensors(lists):
        return tuple(torch.tensor(ids, dtype=torch.int64) for ids in lists)

    prompts, completions = zip(*((tensors(prompts), tensors(own)) for prompts, own in records), strict=True)
    return TextBatch(prompts, completions, torch.ones(len(records)), tuple(f"r{i}" for i in range(len(records))))


TWO = batch(([[1, 2, 3]] * 2, [[4, 5], [6]]), ([[7]] * 2, [[8, 9, 10], [11, 12]]))


def rows(source: TextBatch = TWO, *, share: bool, packed: bool, **options):
    return lay_out(source, share_prompt=share, padding_free=packed, **options)


def test_plain_rows_are_padded_on_the_right_and_leave_out_the_last_token():
    found = rows(share=False, packed=False)
    assert found.ids.tolist() == [[1, 2, 3, 4], [1, 2, 3, 0], [7, 8, 9, 0], [7, 11, 0, 0]]
    assert found.mask.tolist() == [[True] * 4, [True] * 3 + [False], [True] * 3 + [False], [True, True, False, False]]
    assert found.segments is None


def test_a_shared_prompt_stands_once_and_each_continuation_counts_on_from_it():
    found = rows(share=True, packed=False)
    assert found.ids.tolist() == [[1, 2, 3, 4], [7, 8, 9, 11]]
    assert found.positions.tolist() == [[0, 1, 2, 3], [0, 1, 2, 1]]
    assert found.segments == (Segment(0, 0, 3, (1, 0)), Segment(1, 0, 1, (2, 1)))


def test_rows_without_padding_hold_all_records_in_one():
    found = rows(share=True, packed=True)
    assert found.ids.tolist() == [[1, 2, 3, 4, 7, 8, 9, 11]]
    assert found.positions.tolist() == [[0, 1, 2, 3, 0, 1, 2, 1]]
    assert found.segments == (Segment(0, 0, 3, (1, 0)), Segment(0, 4, 1, (2, 1)))
    alone = rows(share=False, packed=True)
    assert alone.ids.tolist() == [[1, 2, 3, 4, 1, 2, 3, 7, 8, 9, 7, 11]]


def test_the_prompts_last_token_predicts_the_first_of_every_completion():
    found = rows(share=True, packed=True).completion
    assert found.scored.tolist() == [2, 3, 2, 4, 5, 6, 4, 7]
    assert found.labels.tolist() == [4, 5, 6, 8, 9, 10, 11, 12]
    assert found.shape == (2, 2, 3)
    assert found.lengths.tolist() == [[2, 1], [3, 2]]
    spread = found.spread(found.labels.double())
    assert spread.tolist() == [[[4, 5, 0], [6, 0, 0]], [[8, 9, 10], [11, 12, 0]]]
    assert (found.mask == (spread > 0)).all()


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_every_layout_predicts_each_token_from_the_one_before_it(share: bool, packed: bool):
    found = rows(share=share, packed=packed, prompts=True)
    before = {"completion": [[[3, 4, 0], [3, 0, 0]], [[7, 8, 9], [7, 11, 0]]], "prompt": [[[1, 2], [1, 2]], [[0, 0], [0, 0]]]}
    for targets, expected in ((found.completion, before["completion"]), (found.prompt, before["prompt"])):
        assert targets is not None
        assert targets.spread(found.ids.flatten()[targets.scored].double()).tolist() == expected


def test_prompts_are_scored_from_their_second_token():
    found = rows(share=True, packed=True, prompts=True).prompt
    assert found is not None
    assert found.labels.tolist() == [2, 3, 2, 3]
    assert found.scored.tolist() == [0, 1, 0, 1]
    assert found.lengths.tolist() == [[2, 2], [0, 0]]


def test_candidates_with_prompts_of_their_own_are_not_shared():
    found = rows(batch(([[1, 2], [1, 3]], [[4, 5], [6]])), share=True, packed=True)
    assert found.ids.tolist() == [[1, 2, 4, 1, 3]]
    assert found.segments == (Segment(0, 0, 2, (1,)), Segment(0, 3, 2, (0,)))
    assert found.completion.scored.tolist() == [1, 2, 4]


def test_a_text_without_a_token_is_refused_with_the_record():
    with pytest.raises(TableError, match=r"record r1: .*without a token"):
        rows(batch(([[1]] * 2, [[2], [3]]), ([[]] * 2, [[2], [3]])), share=False, packed=False)
    with pytest.raises(TableError, match="record r0"):
        rows(batch(([[1]] * 2, [[2], []])), share=True, packed=True)
