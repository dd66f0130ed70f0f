"""Win rates by hand, and the interval's honesty; the accuracy on held-out pairs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from diffalign.evaluate.heldout import PairAccuracy
from diffalign.evaluate.win_rate import win_rate


def test_a_tie_counts_half_and_images_of_a_prompt_count_as_one():
    # prompt a: win and loss = 1/2; prompt b: tie = 1/2; prompts c to e: win = 1 -> (1/2 + 1/2 + 3) / 5
    won = win_rate([0.1, 0.9, 0.5, 0.0, 0.0, 0.0], [0.2, 0.3, 0.5, 1.0, 1.0, 1.0], ["a", "a", "b", "c", "d", "e"])
    assert won.rate == pytest.approx(4 / 5)
    assert won.prompts == 5
    assert won.low <= won.rate <= won.high


def test_the_interval_of_a_clean_sweep_is_not_a_point():
    # exact binomial, 20 of 20: the lower end is 0.025^(1/20)
    won = win_rate([0.0] * 20, [1.0] * 20, [str(i) for i in range(20)])
    assert (won.rate, won.high) == (1.0, 1.0)
    assert won.low == pytest.approx(0.025 ** (1 / 20), rel=1e-6)


def test_prompts_that_all_tie_give_no_interval():
    even = win_rate([0.0] * 20, [0.0] * 20, [str(i) for i in range(20)])
    assert (even.rate, math.isnan(even.low), math.isnan(even.high)) == (1 / 2, True, True)
    assert (even.wins, even.losses, even.ties, even.p, even.verdict) == (0, 0, 20, 1.0, "unclear")


def test_of_two_prompts_the_interval_is_as_wide_as_they_say_little():
    # seven of eight draws won, but of two prompts: a all, b half of the way; exact of two of two: 0.025^(1/2) to 1
    few = win_rate([0.0] * 8, [1.0] * 7 + [-1.0], ["a"] * 4 + ["b"] * 4)
    reach = 2 * (1 / 2 + 1 / 4) / 2
    assert few.low == pytest.approx(1 / 2 + reach * (0.025**0.5 - 1 / 2))
    assert (few.rate, few.wins, few.p, few.verdict) == (7 / 8, 2, 0.5, "unclear")


def test_four_wins_and_twenty_ties_are_no_clear_win():
    # of four of four the exact interval is 0.025^(1/4) = 0.398 to 1, of 4 / 24; ties give 20 / 48
    won = win_rate([0.0] * 24, [1.0] * 4 + [0.0] * 20, [str(i) for i in range(24)])
    assert (won.wins, won.losses, won.ties, won.p) == (4, 0, 20, 0.125)
    assert won.low == pytest.approx(20 / 48 + 4 / 24 * 0.025**0.25)
    assert won.verdict == "unclear"


@pytest.mark.parametrize("lost", range(5))
def test_of_few_prompts_interval_and_sign_test_agree(lost):
    won = win_rate([0.0] * 24, [1.0] * (12 - lost) + [-1.0] * lost + [0.0] * 12, [str(i) for i in range(24)])
    assert (won.low > 0.5) == (won.p <= 0.05) == (won.verdict == "win")


def test_a_loss_is_a_win_the_other_way_round():
    scores = [[0.0] * 20, [1.0] * 16 + [-1.0] * 4]
    won, lost = (win_rate(*order, [str(i) for i in range(20)]) for order in (scores, scores[::-1]))
    assert (won.verdict, lost.verdict) == ("win", "loss")
    assert (won.wins, won.losses) == (lost.losses, lost.wins) == (16, 4)


def test_wins_by_more_than_half_a_standard_deviation_can_be_seen():
    # the base scores 0 and 2, so its deviation is 1, and half of it 0.5
    won = win_rate([0.0, 2.0, 0.0, 2.0], [0.4, 2.6, -0.6, 2.0], list("abcd"))
    assert (won.margin, won.wins, won.visible_wins, won.losses, won.visible_losses, won.ties) == (0.5, 2, 1, 1, 1, 1)
    assert win_rate([0.0, 2.0], [0.4, 2.6], ["a", "b"], visible_margin=0.0).visible_wins == 2


def test_pairs_are_right_wrong_or_tied():
    accuracy = PairAccuracy.of(torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 2.0], [3.0, 1.0]]))
    assert accuracy == PairAccuracy(0.625, 2, 1, 1)
    assert accuracy.facts()["heldout_pairs"] == {"right": 2, "wrong": 1, "tied": 1, "sign_test_p": 1.0}


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    inside = 0
    for trial in range(60):
        wins = (rng.random(100) < 0.7).astype(float)
        won = win_rate(np.zeros(100), wins - 0.5, [str(i) for i in range(100)], seed=trial)
        inside += won.low <= 0.7 <= won.high
    assert inside >= 51  # 95 % of 60 is 57; below 51 has a chance of one in two thousand


def test_the_same_seed_gives_the_same_interval():
    scores = np.random.default_rng(1).random(50)
    prompts = [str(i) for i in range(50)]
    assert win_rate(np.full(50, 0.5), scores, prompts, 3) == win_rate(np.full(50, 0.5), scores, prompts, 3)


def test_the_sign_test_is_exact_and_leaves_ties_out():
    # a to e won, f lost, g even with a win and a loss, h a tie: p = 2 (1 + 6) / 2^6
    base, aligned = [0.0] * 9, [1.0] * 5 + [-1.0] + [1.0, -1.0] + [0.0]
    won = win_rate(base, aligned, [*"abcdef", "g", "g", "h"])
    assert (won.wins, won.losses, won.ties, won.p) == (5, 1, 2, pytest.approx(14 / 64))
