"""Diagnostics of preference training, by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffalign.core.types import Scores
from diffalign.objectives import OBJECTIVES
from diffalign.objectives.metrics import (
    alignment_gap,
    ches,
    describe,
    displaced,
    flip_threshold,
    idealised_ranking_accuracy,
    ranking_accuracy,
    reward_accuracy,
    suppression,
    top_k,
)


def rows(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_ties_rank_rightly_but_are_not_rewarded():
    x = rows((2.0, 1.0), (0.0, 1.0), (3.0, 3.0), (-1.0, -2.0))
    assert ranking_accuracy(x).item() == 0.75
    assert reward_accuracy(x).item() == 0.5


def test_an_idealised_policy_mends_what_beta_lets_it_mend():
    reference = rows((-10.0, -10.0), (-12.0, -10.0), (-14.0, -10.0), (-20.0, -10.0))
    prob = rows(0.75, 0.75, 0.75, 0.75)
    # log 3 / 0.5 = 2.197: margins 0, -2, -4, -10 become 2.2, 0.2, -1.8, -7.8
    assert idealised_ranking_accuracy(reference, 0.5, prob).item() == 0.5
    # log 999 / 0.5 = 13.8 mends all
    assert idealised_ranking_accuracy(reference, 0.5).item() == 1.0
    # raters without a preference leave the reference's order, in which a tie is not right
    assert idealised_ranking_accuracy(reference, 0.5, rows(0.5, 0.5, 0.5, 0.2)).item() == 0.0


def test_the_alignment_gap_is_what_the_policy_still_lacks():
    scores = Scores(rows((-9.0, -10.0), (-11.0, -10.0)), rows((-9.0, -9.0), (-10.0, -10.0)))
    assert alignment_gap(scores, 0.1).item() == 0.5
    with pytest.raises(ValueError, match="reference"):
        alignment_gap(Scores(scores.policy), 0.1)


@given(st.floats(-30, 30), st.floats(-30, 30), st.floats(-30, 30))
def test_a_pair_is_ranked_rightly_exactly_where_the_loss_is_below_the_threshold(chosen, reference_chosen, reference_rejected):
    scores = Scores(rows((chosen, 0.0)), rows((reference_chosen, reference_rejected)))
    gap = OBJECTIVES["dpo"](scores, beta=0.1) - flip_threshold(scores.reference, 0.1)
    if abs(chosen) > 1e-3:  # at equality the rounding decides
        assert bool(gap < 0) == (chosen > 0)


def test_displacement_counts_falling_winners_of_growing_margins():
    # falls with a growing margin; rises; falls with a shrinking margin; falls with an equal margin
    assert displaced(rows((-1.0, -3.0), (1.0, 0.0), (-2.0, -1.0), (-1.0, -1.0))).item() == 0.25


def test_suppression_compares_how_far_the_two_have_moved():
    assert suppression(rows((1.0, -4.0), (3.0, -6.0))).item() == -2.5
    assert suppression(rows((-1.0, -4.0))).item() == 4.0


def test_ches_by_hand():
    sums = torch.stack([rows((2.0, 2.0), (0.0, 3.0)), rows((1.0, 0.0), (4.0, 1.0))])  # (a, b) of two pairs
    plain, normalised = ches(sums, torch.tensor([[2, 1], [1, 2]]))
    assert plain.tolist() == [6.0 - 8.0, 4.0 - 1.0]
    assert normalised.tolist() == [6.0 / 2 - 8.0 / 4, 4.0 / 2 - 1.0]


def test_identical_answers_have_the_ches_of_nothing_to_tell_apart():
    sums = torch.randn(3, 1, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).expand(3, 2, 4)
    assert [value.tolist() for value in ches(sums, torch.full((3, 2), 5))] == [[0.0] * 3] * 2


def test_top_k_of_four_equal_tokens_and_two_impossible_ones():
    seen = top_k(torch.tensor([0.0, 0.0, 0.0, 0.0, -math.inf, -math.inf]), 2)
    assert seen["mass"].item() == pytest.approx(0.5)
    assert seen["entropy"].item() == pytest.approx(0.5 * math.log(4))
    assert seen["entropy_renormalised"].item() == pytest.approx(math.log(2))
    assert seen["full_entropy"].item() == pytest.approx(math.log(4))


def test_top_k_of_a_smaller_vocabulary_is_all_of_it():
    seen = top_k(torch.zeros(5, 3), 10)
    assert seen["mass"].tolist() == pytest.approx([1.0] * 5)


def texts():
    """Return two pairs of texts: log-ratios (1, -2) and (-1, -8)."""
    lengths = torch.tensor([[4, 2], [5, 10]])
    return Scores(rows((-8.0, -6.0), (-20.0, -30.0)), rows((-9.0, -4.0), (-19.0, -22.0)), lengths=lengths)


def test_texts_are_described_with_log_probabilities_and_rankings():
    seen = {name: value.item() for name, value in describe(texts(), beta=1.0).items()}
    assert (seen["logps/chosen"], seen["logps/rejected"]) == (-14.0, -18.0)
    assert seen["ranking_acc"] == 0.5  # -8 is below -6
    assert seen["ranking_acc_normalized"] == 0.5  # -2 is above -3, -4 below -3
    assert seen["alignment_gap"] == 0.5  # the reference's margins, -5 and 3, plus log 999 = 6.9 are both above zero
    assert seen["displaced"] == 0.5
    assert seen["rewards/saturated"] == 0.5  # margins 3 and 7
    assert [seen[f"rewards/margins_p{share}"] for share in (10, 50, 90)] == pytest.approx([3.4, 5.0, 6.6])
    assert not any(name.startswith("score/") for name in seen)


def test_rewards_of_their_own_take_the_place_of_those_of_the_log_ratio():
    seen = describe(texts(), beta=1.0, rewards=rows((1.0, 0.0), (2.0, 2.0)))
    assert seen["rewards/chosen"].item() == 1.5
    assert seen["rewards/accuracies"].item() == 0.5
    assert seen["log_ratio/chosen"].item() == 0.0
    bare = describe(Scores(rows((-1.0, -2.0))), rewards=rows((3.0, 1.0)))
    assert bare["rewards/margins"].item() == 2.0
