"""Win rates by hand, and the interval's honesty."""

from __future__ import annotations

import math

import numpy as np
import pytest

from diffalign.evaluate.win_rate import SignTest, sign_test, win_rate


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


def test_too_few_prompts_or_prompts_that_all_end_even_give_no_interval():
    # seven of eight draws won, but of two prompts: the sign test says 1/2
    few = win_rate([0.0] * 8, [1.0] * 7 + [-1.0], ["a"] * 4 + ["b"] * 4)
    assert (few.rate, math.isnan(few.low), math.isnan(few.high)) == (7 / 8, True, True)
    even = win_rate([0.0] * 20, [0.0] * 20, [str(i) for i in range(20)])
    assert (even.rate, math.isnan(even.low), math.isnan(even.high)) == (1 / 2, True, True)


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
    assert sign_test(base, aligned, [*"abcdef", "g", "g", "h"]) == SignTest(5, 1, 2, pytest.approx(14 / 64))


def test_where_all_prompts_tie_the_sign_test_says_nothing():
    assert sign_test([1.0, 2.0], [1.0, 2.0], ["a", "b"]) == SignTest(0, 0, 2, 1.0)
