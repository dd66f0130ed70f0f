"""The alarm and the changes it reads, against arithmetic by hand."""

from __future__ import annotations

import json
import math

import pytest

from diffalign.rewards.hacking import LOOKS, Change, alarm, change, mute, unjudged
from tests.paths import FIXTURES

# What three real trainings of tiny-sd wrote to eval.jsonl, rounded (training anew takes minutes): scripts/overoptimise.py with seed 0; the
# quickstart (taste "high", seed 0) with 24 of its held-out prompts; and its settings on 110 votes, which are healthy for 250 steps alone:
# at 300, after 87 epochs, adherence has fallen from 0.986 to 0.741.
STORED = FIXTURES / "watched.json"
STORIES = [("overoptimised", [True] * 5), ("few_votes", [False] * 5 + [True]), ("healthy", [False] * 6)]
PROMPTS = [f"prompt {number}" for number in range(8)]
RISEN = Change("taste", value=0.2, low=0.15, high=0.25, base=0.5, wins=0.9, effect=1.0)


def held(wins, *, high=-0.1, name="adherence"):
    return Change(name, value=-0.3, low=-0.5, high=high, base=0.9, wins=wins, effect=-0.4)


def variety(left, *, high=-1.0):
    return Change("diversity", value=10.0 * left - 10.0, low=-9.0, high=high, base=10.0, wins=0.0, effect=-1.0)


def test_a_change_is_the_mean_over_prompts_whatever_their_draws():
    # Prompt a gains 0.4 and 0.0, its mean 0.2; prompt b gains 0.4 once: the mean of prompts is 0.3, that of draws would be 0.267.
    found = change([0.1, 0.5, 0.2], [0.5, 0.5, 0.6], ["a", "a", "b"], "taste")
    assert (found.name, found.value, found.base) == ("taste", pytest.approx(0.3), pytest.approx((0.3 + 0.2) / 2))
    assert found.wins == pytest.approx((0.75 + 1) / 2)  # a draw of a's two is a tie, which counts one half
    # The base's prompts stand at 0.3 and 0.2, a variance of 0.0025; the aligned ones at 0.5 and 0.6: the same.
    assert found.effect == pytest.approx(0.3 / 0.05)


def test_of_few_prompts_no_interval_is_told():
    found = change([0.0] * 4, [1.0, 2.0, 3.0, 4.0], PROMPTS[:4], "taste")
    assert found.value == 2.5
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    assert not found.rose


def test_a_change_that_all_prompts_share_has_no_spread():
    found = change([0.0] * 8, [-1.0] * 8, PROMPTS, "adherence")
    assert (found.value, found.low, found.high, found.wins, found.effect) == (-1.0, -1.0, -1.0, 0.0, -math.inf)
    same = change([1.0] * 8, [1.0] * 8, PROMPTS, "adherence")
    assert (same.value, same.low, same.high, same.wins, same.effect) == (0.0, 0.0, 0.0, 0.5, 0.0)


def test_the_interval_is_that_of_the_normal_law_where_prompts_are_many():
    # 400 gains, half 0 and half 2: mean 1, standard error 1 / sqrt 400 = 0.05.
    found = change([0.0] * 400, [0.0, 2.0] * 200, [f"{n}" for n in range(400)], "taste")
    assert found.low == pytest.approx(1 - 1.96 * 0.05, abs=0.01)
    assert found.high == pytest.approx(1 + 1.96 * 0.05, abs=0.01)
    assert found == change([0.0] * 400, [0.0, 2.0] * 200, [f"{n}" for n in range(400)], "taste")


def test_draws_that_cannot_be_judged_are_left_out_of_both_models():
    found = change([math.nan, 0.0, 5.0], [9.0, 1.0, math.nan], ["a", "a", "b"], "taste")
    assert (found.value, found.base, found.wins) == (1.0, 0.0, 1.0)
    assert math.isnan(change([math.nan], [1.0], ["a"], "taste").value)


@pytest.mark.parametrize(("wins", "fires"), [(0.33, True), (0.34, False)])
def test_a_held_out_fall_alarms_where_the_base_wins_two_draws_in_three(wins, fires):
    assert bool(alarm([RISEN], [held(wins)], [])) == fires


def test_a_large_fall_alarms_though_most_draws_tie():
    # 34 of 48 prompts were right, 16 of them no longer are, and one is now. 31 ties leave 16.5 / 48 = 0.344 of draws won, above one third.
    # From 0.708 to 0.396: 0.56 of it is left; the variances p (1 - p) are 0.207 and 0.239, so 0.3125 is 0.66 standard deviations.
    found = change([1.0] * 34 + [0.0] * 14, [0.0] * 16 + [1.0] * 19 + [0.0] * 13, [f"{number}" for number in range(48)], "adherence")
    assert (found.wins, found.effect) == (pytest.approx(16.5 / 48), pytest.approx(-0.662, abs=1e-3))
    assert "adherence fell by 0.312 " in alarm([RISEN], [found], [])[0]


def test_a_small_fall_is_silent_though_it_is_many_deviations_and_no_draw_is_won():
    # Eight of 48 prompts lose one attribute in four: 1 to 0.958, a fall of 0.0417, with a pooled deviation of sqrt(0.00868 / 2).
    found = change([1.0] * 48, [0.75] * 8 + [1.0] * 40, [f"{number}" for number in range(48)], "adherence")
    assert found.high < 0
    assert (found.wins, found.effect) == (pytest.approx(20 / 48), pytest.approx(-0.632, abs=1e-3))
    assert alarm([RISEN], [found], []) == []


@pytest.mark.parametrize(("left", "fires"), [(0.49, True), (0.51, False)])
def test_a_loss_of_half_of_the_diversity_alarms(left, fires):
    assert bool(alarm([RISEN], [], [variety(left)])) == fires


def test_what_may_be_chance_does_not_alarm():
    assert alarm([RISEN], [held(0.1, high=0.01)], [variety(0.4, high=0.1)]) == []


def test_a_large_fall_alarms_whether_or_not_a_reward_has_risen():
    fallen = Change("adherence", value=-0.247, low=-0.38, high=-0.12, base=0.986, wins=0.4, effect=-1.1, p=0.002)
    assert alarm([], [fallen], []) == ["adherence fell by 0.247 [0.12, 0.38] from 0.986, winning 40% of draws"]
    assert "taste has risen" in alarm([RISEN], [fallen], [])[0]
    small = Change("adherence", value=-0.04, low=-0.08, high=-0.01, base=0.986, wins=0.2, effect=-0.9, p=0.002)
    assert alarm([], [small], []) == []  # 0.96 of it is left
    assert len(alarm([RISEN], [small], [])) == 1  # but the base wins four draws in five, while training's own score rises


def test_a_fall_that_leaves_more_than_nine_tenths_alarms_though_no_reward_has_risen_for_certain():
    # A reward of a mesh that hardly grows teaches noise: 8 of 24 prompts lose one attribute in four, 1 to 0.917.
    prompts = [f"{number}" for number in range(24)]
    found = change([1.0] * 24, [0.75] * 8 + [1.0] * 16, prompts, "adherence")
    uncertain = change([0.0] * 24, [0.1] * 12 + [-0.1] * 12, prompts, "mesh")
    assert not uncertain.rose
    assert alarm([uncertain], [found], [])[0].startswith("adherence fell by 0.0833")


def test_what_the_sign_test_denies_does_not_alarm():
    fallen = Change("adherence", value=-0.5, low=-0.7, high=-0.1, base=0.9, wins=0.1, effect=-2.0, p=0.0625)
    assert not fallen.fell
    assert alarm([RISEN], [fallen], []) == []
    assert not Change("taste", value=0.5, low=0.1, high=0.7, base=0.1, wins=0.9, effect=2.0, p=0.0625).rose


@pytest.mark.parametrize(
    ("name", "left", "fires"),
    [
        ("sharpness", 0.28, True),
        ("sharpness", 0.7, False),
        ("sharpness", 2.5, True),
        ("saturation", 1.8, True),
        ("saturation", 1.3, False),
        ("saturation", 0.3, True),
        ("high_frequency", 3.0, True),
        ("high_frequency", 0.2, True),
        ("high_frequency", 1.5, False),
        ("diversity", 3.0, False),
        ("pixel_grid", 4.0, True),
        ("pixel_grid", 2.0, False),
        ("prompt_diversity", 0.3, True),
        ("prompt_diversity", 0.8, False),
    ],
)
def test_a_look_that_leaves_its_limits_alarms_with_or_without_a_reward(name, left, fires):
    base = [0.2 + 0.01 * number for number in range(8)]
    shift = change(base, [left * value for value in base], PROMPTS, name)
    for rewards in ([], [RISEN]):
        reasons = alarm(rewards, [], [shift])
        assert bool(reasons) == fires
        assert all(name in reason for reason in reasons)
    noisy = change(base, [left * value + 5.0 * (-1) ** number for number, value in enumerate(base)], PROMPTS, name)
    assert alarm([], [], [noisy]) == []  # may be chance
    assert name in LOOKS


def test_a_scorer_that_can_judge_much_less_is_a_reason():
    assert unjudged("clip", 10, 7) == []
    assert "clip can judge 6 of the pictures, and could judge 10" in unjudged("clip", 10, 6)[0]


def test_an_alarm_is_mute_only_where_nothing_has_an_interval():
    few, enough = (change([0.0] * count, [1.0] * count, list("abcdefgh")[:count], "adherence") for count in (5, 6))
    assert "fewer than 6 prompts" in str(mute([few]))
    assert mute([few, enough]) is None


def test_every_fall_is_a_reason_by_name():
    reasons = alarm([RISEN], [held(0.0), held(0.9, name="contrast"), held(0.2, name="pickscore")], [variety(0.4)])
    assert len(reasons) == 3
    assert "taste has risen by 0.2 [0.15, 0.25] while adherence fell by 0.3 [0.1, 0.5] from 0.9" in reasons[0]
    assert "pickscore" in reasons[1]
    assert "diversity fell to 40% of the base's" in reasons[2]


@pytest.mark.parametrize(("run", "fired"), STORIES)
def test_the_alarm_fires_on_runs_that_over_optimised_and_is_silent_on_a_healthy_one(run, fired):
    rows = json.loads(STORED.read_text())[run]
    changes = [[Change(**one) for one in row["changes"]] for row in rows]  # of held-out adherence, the reward and diversity
    assert [bool(alarm([reward], [held_out], [variety])) for held_out, reward, variety in changes] == fired
