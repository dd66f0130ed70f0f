"""What scores of several models say, by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from diffalign.evaluate.statistics import Drift, Judged, alarmed, compared, rated, summarised

ABOUT = {"name": "red", "scale": "mean red", "licence": "Apache-2.0", "spec": "red"}
PROMPTS = ["a", "b", "c"]


def judged(held_out=True, **values):
    return Judged(ABOUT, held_out, not held_out, {who: np.array(rows, dtype=float) for who, rows in values.items()})


def drift(diversity):
    return Drift(np.full(8, diversity), 0.5, 0.1, {})


def test_a_run_is_compared_draw_by_draw_and_prompts_that_end_even_are_left_out_of_the_sign_test():
    # a: both draws won; b: one won, one lost, so even; c: a tie and a win
    facts = compared(judged(base=[[0, 0], [0, 5], [1, 1]], run=[[1, 2], [3, 4], [1, 3]]), "base", "run", PROMPTS, 0)
    assert facts["win_rate"] == pytest.approx((1 + 1 / 2 + 3 / 4) / 3)
    assert (facts["wins"], facts["losses"], facts["ties"]) == (2, 0, 1)
    assert facts["sign_test_p"] == pytest.approx(0.5)  # two wins of two: twice a quarter
    assert facts["change"] == pytest.approx((1.5 + 1.0 + 1.0) / 3)
    assert (facts["run"], facts["base"], facts["scorer"]) == ("run", "base", "red")


def test_a_draw_that_either_model_has_no_score_of_is_left_out():
    nothing = math.nan
    facts = compared(judged(base=[[0, nothing], [nothing, 0], [0, 0]], run=[[1, 1], [1, nothing], [-1, 1]]), "base", "run", PROMPTS, 0)
    assert (facts["wins"], facts["losses"], facts["ties"]) == (1, 0, 1)  # of b nothing is left
    assert facts["win_rate"] == pytest.approx((1 + 1 / 2) / 2)
    facts = compared(judged(base=[[nothing]], run=[[1]]), "base", "run", ["a"], 0)
    assert math.isnan(facts["win_rate"])
    assert (facts["ci95"], facts["wins"], facts["losses"]) == (None, 0, 0)


def test_scores_are_averaged_by_prompt_and_what_was_not_judged_is_counted():
    facts = summarised(np.array([[1.0, 3.0], [4.0, math.nan], [math.nan, math.nan]]), PROMPTS, 0)
    assert (facts["mean"], facts["median"], facts["unjudged"]) == (3.0, 3.0, 3)  # (2 + 4) / 2; of 1, 3 and 4


def test_ratings_are_of_the_draws_that_all_models_have():
    facts = rated(judged(base=[[0], [0], [0]], one=[[1], [1], [math.nan]], two=[[2], [2], [2]]), PROMPTS, 0)
    assert [(one["model"], one["wins"], one["losses"], one["ties"]) for one in facts] == [
        ("two", 4, 0, 0),
        ("one", 2, 2, 0),
        ("base", 0, 4, 0),
    ]
    assert all(one["low"] < one["rating"] < one["high"] for one in facts)
    assert rated(judged(base=[[math.nan]], one=[[1]], two=[[1]]), ["a"], 0) == []


def test_the_alarm_needs_a_reward_that_rises_and_names_what_falls():
    prompts = list("abcdefgh")
    low, high = [[0.0, 0.1]] * 8, [[1.0, 1.1]] * 8
    fallen, risen = judged(base=high, run=low), judged(held_out=False, base=low, run=high)
    risen = Judged(ABOUT | {"name": "trained"}, False, True, risen.values)
    same = {"base": drift(1.0), "run": drift(1.0)}
    (reason,), mute = alarmed([fallen, risen], same, "base", "run", prompts, 0)
    assert mute is None
    assert "trained has risen" in reason
    assert "red fell" in reason
    assert alarmed([risen], same, "base", "run", prompts, 0) == ([], None)
    (reason,), _ = alarmed([risen], {"base": drift(1.0), "run": drift(0.1)}, "base", "run", prompts, 0)
    assert "diversity fell to 10%" in reason


def test_an_alarm_that_could_not_go_off_says_why():
    def why(judges, number, diversity=1.0):
        judges = [replace(one, values={who: values[:number] for who, values in one.values.items()}) for one in judges]
        same = Drift(np.full(number, diversity), 0.5, 0.1, {})
        return alarmed(judges, {"base": same, "run": same}, "base", "run", list("abcdefgh")[:number], 0)

    fallen = judged(base=[[1.0]] * 8, run=[[0.0]] * 8)
    risen = replace(judged(held_out=False, base=[[0.0]] * 8, run=[[1.0]] * 8), about=ABOUT | {"name": "trained"})
    assert why([fallen], 8) == ([], "no score is known as what training optimised; name it with --reward")
    assert why([fallen, risen], 4) == ([], "the training reward is known of fewer than 5 prompts")
    assert why([risen], 8, math.nan) == ([], "any held-out score, or the diversity, is known of fewer than 5 prompts")
    assert why([fallen, risen], 5)[1] is None
    assert len(why([replace(fallen, held_out=False, chose=True), risen], 5)[0]) == 1  # who picked the weights does not like them too well
