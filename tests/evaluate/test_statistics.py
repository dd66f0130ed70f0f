"""What scores of several models say, by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from diffalign.evaluate.statistics import ScorerResults, alarms, compared, comparison, rated, summarised
from diffalign.rewards.drift import Appearance

ABOUT = {"name": "red", "scale": "mean red", "licence": "Apache-2.0", "spec": "red"}
PROMPTS = ["a", "b", "c"]


def results(held_out=True, **values):
    return ScorerResults(ABOUT, held_out, not held_out, {who: np.array(rows, dtype=float) for who, rows in values.items()})


def looks(diversity, prompts=8):
    return Appearance([diversity] * prompts, [0.5] * prompts, [0.1] * prompts, [0.01] * prompts, [0.002] * prompts, [20.0] * prompts)


def test_a_run_is_compared_draw_by_draw_and_prompts_that_end_even_are_left_out_of_the_sign_test():
    # a: both draws won; b: one won, one lost, so even; c: a tie and a win
    facts = compared(results(base=[[0, 0], [0, 5], [1, 1]], run=[[1, 2], [3, 4], [1, 3]]), "base", "run", PROMPTS, 0)
    assert facts["win_rate"] == pytest.approx((1 + 1 / 2 + 3 / 4) / 3)
    assert (facts["wins"], facts["losses"], facts["ties"]) == (2, 0, 1)
    assert facts["sign_test_p"] == pytest.approx(0.5)  # two wins of two: twice a quarter
    assert facts["change"] == pytest.approx((1.5 + 1.0 + 1.0) / 3)
    assert (facts["run"], facts["base"], facts["scorer"]) == ("run", "base", "red")


def test_a_draw_that_either_model_has_no_score_of_is_left_out():
    nothing = math.nan
    facts = compared(results(base=[[0, nothing], [nothing, 0], [0, 0]], run=[[1, 1], [1, nothing], [-1, 1]]), "base", "run", PROMPTS, 0)
    assert (facts["wins"], facts["losses"], facts["ties"]) == (1, 0, 1)  # of b nothing is left
    assert facts["win_rate"] == pytest.approx((1 + 1 / 2) / 2)
    facts = compared(results(base=[[nothing]], run=[[1]]), "base", "run", ["a"], 0)
    assert math.isnan(facts["win_rate"])
    assert (facts["ci95"], facts["wins"], facts["losses"]) == (None, 0, 0)


def test_scores_are_averaged_by_prompt_and_what_was_not_judged_is_counted():
    facts = summarised(np.array([[1.0, 3.0], [4.0, math.nan], [math.nan, math.nan]]), PROMPTS, 0)
    assert (facts["mean"], facts["median"], facts["unjudged"]) == (3.0, 3.0, 3)  # (2 + 4) / 2; of 1, 3 and 4


def test_ratings_are_of_the_draws_that_all_models_have():
    facts = rated(results(base=[[0], [0], [0]], one=[[1], [1], [math.nan]], two=[[2], [2], [2]]), PROMPTS, 0)
    assert [(one["model"], one["wins"], one["losses"], one["ties"]) for one in facts] == [
        ("two", 4, 0, 0),
        ("one", 2, 2, 0),
        ("base", 0, 4, 0),
    ]
    assert all(one["low"] < one["rating"] < one["high"] for one in facts)
    assert rated(results(base=[[math.nan]], one=[[1]], two=[[1]]), ["a"], 0) == []


EIGHT = list("abcdefgh")


def shifts(before, after, prompts=8):
    return looks(before, prompts).changes(looks(after, prompts), EIGHT[:prompts])


def test_the_alarm_names_what_falls_and_what_rises_meanwhile():
    low, high = [[0.0, 0.1]] * 8, [[1.0, 1.1]] * 8
    fallen, risen = results(base=high, run=low), results(held_out=False, base=low, run=high)
    risen = replace(risen, about=ABOUT | {"name": "trained"})
    (reason,), why = alarms([fallen, risen], shifts(1.0, 1.0), "base", "run", EIGHT, 0)
    assert why is None
    assert "trained has risen" in reason
    assert "red fell" in reason
    assert alarms([risen], shifts(1.0, 1.0), "base", "run", EIGHT, 0) == ([], None)
    (reason,), _ = alarms([risen], shifts(1.0, 0.1), "base", "run", EIGHT, 0)
    assert "diversity fell to 10%" in reason
    (alone,), _ = alarms([fallen], shifts(1.0, 1.0), "base", "run", EIGHT, 0)  # no score is known as what training optimised
    assert alone.startswith("red fell")
    (chose,), _ = alarms([replace(fallen, held_out=False, chose=True)], shifts(1.0, 1.0), "base", "run", EIGHT, 0)
    assert chose == alone  # who picked the weights does not like them too well


def test_a_scorer_that_can_no_longer_judge_rings_the_alarm():
    lost = results(base=[[1.0]] * 8, run=[[1.0]] * 4 + [[math.nan]] * 4)
    (reason,), _ = alarms([lost], shifts(1.0, 1.0), "base", "run", EIGHT, 0)
    assert "red can judge 4 of the pictures, and could judge 8" in reason


def test_an_alarm_that_could_not_go_off_says_why():
    fallen = results(base=[[1.0]] * 5, run=[[0.0]] * 5)
    reasons, why = alarms([fallen], shifts(1.0, 1.0, 5), "base", "run", EIGHT[:5], 0)
    assert reasons == []
    assert "fewer than 6 prompts" in str(why)


def test_a_comparison_holds_the_drift_of_every_model_and_its_changes():
    one = results(base=[[0.0]] * 8, run=[[1.0]] * 8)
    facts = comparison([one], {"base": looks(1.0), "run": looks(0.4)}, EIGHT, 0)
    assert facts["drift"]["run"] == {"diversity": 0.4, "saturation": 0.5, "sharpness": 0.1, "high_frequency": 0.01} | {
        "pixel_grid": 0.002,
        "prompt_diversity": 20.0,
    }
    assert {change["name"]: change["value"] for change in facts["drift_changes"]["run"]}["diversity"] == pytest.approx(-0.6)
    assert "diversity fell to 40%" in facts["alarm"]["run"][0]
    (row,) = facts["comparisons"]
    assert (row["verdict"], row["wins"], row["visible_wins"]) == ("win", 8, 8)
    assert "ratings" not in facts
