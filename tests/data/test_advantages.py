"""Advantages and combined rewards against their golden numbers, and what they refuse."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from diffalign.core.errors import ConfigError, RecordError
from diffalign.core.specs import bind
from diffalign.data import combiners
from diffalign.data.advantages import advantages, extremes, tree_advantages, tree_depths, tree_values, unequal, win_fraction, win_rate
from diffalign.data.combiners import COMBINERS
from diffalign.data.constraints import cfo_multiplier
from tests.golden.online import close, golden

RECIPES = {
    "flow_grpo_global": {},
    "flow_grpo_group": {"spread": "group"},
    "dance_group": {"spread": "group", "ddof": 1, "eps": 1e-8},
    "flow_factory_group": {"spread": "group", "eps": 0.0, "floor": 1e-6, "clip": None},
    "flow_factory_global": {"eps": 0.0, "floor": 1e-6, "clip": None},
    "verl_omni_global": {"ddof": 1, "clip": None},
    "dr_grpo": {"spread": "none", "clip": None},
    "trl_group": {"spread": "group", "ddof": 1, "clip": None},
}
ADVANTAGES = golden("advantages")


@pytest.mark.parametrize("name", [name for name in ADVANTAGES if "recipes" in ADVANTAGES[name]])
def test_every_recipe_gives_its_golden_advantages(name):
    case = ADVANTAGES[name]
    assert unequal(case["rewards"]).tolist() == case["keep"]
    for recipe, wanted in case["recipes"].items():
        # In groups that are equal but for the last digit, rounding is divided by an epsilon.
        np.testing.assert_allclose(advantages(case["rewards"], **RECIPES[recipe]), wanted, rtol=1e-9, atol=1e-7, err_msg=recipe)
    if "extremes" in case:
        differ = unequal(case["rewards"])
        np.testing.assert_array_equal(extremes(case["rewards"])[differ], np.array(case["extremes"])[differ])


@pytest.mark.parametrize("name", [name for name in ADVANTAGES if "rewards_by_name" in ADVANTAGES[name]])
def test_several_rewards_are_weighed_and_standardised_in_either_order(name):
    case = ADVANTAGES[name]
    rewards = {str(i): table for i, table in enumerate(case["rewards_by_name"])}
    weights = {str(i): weight for i, weight in enumerate(case["weights"])}
    total = combiners.Weighted(weights=weights).combine(rewards)
    close(total, case["weighted_sum"])
    close(advantages(total, spread="group", eps=0.0, floor=1e-6, clip=None), case["sum_then_normalise"])
    # A group that is equal is exactly zero here; in the releases its mean rounds, and 1e-17 is divided by an epsilon.
    close(combiners.Standardised(weights=weights).combine(rewards), case["normalise_then_sum"], rtol=1e-8)
    close(combiners.Gdpo(weights=weights).combine(rewards), case["gdpo"], rtol=1e-8)


def test_equal_rewards_are_zero_to_the_bit_although_their_mean_rounds():
    rewards = [[0.1] * 3, [0.7] * 3, [1e-7, 1e-7, 1e-7]]  # the mean of three 0.1 is 0.10000000000000002
    for recipe in RECIPES.values():
        assert not advantages(rewards, **recipe).any()


@pytest.mark.parametrize("case", golden("branch").values(), ids=list(golden("branch")))
def test_values_and_advantages_of_a_tree_are_the_golden_ones(case):
    parents = case["parent"]
    assert tree_depths(parents).tolist() == case["depth"]
    for kind, log_prob in (("mean", None), ("softmax", case["edge_log_prob"])):
        values = tree_values(parents, case["leaf_rewards"], log_prob)
        close(values, case[kind]["value"])
        close(tree_advantages(parents, case[kind]["value"]), case[kind]["advantage"])


REWARDS = golden("rewards")


def of_kind(kind):
    return pytest.mark.parametrize("case", [case for case in REWARDS.values() if case["what"] == kind])


def by_name(rows):
    return {str(i): row for i, row in enumerate(rows)}


@of_kind("log_sigmoid")
def test_log_sigmoid_is_the_golden_one(case):
    centres = by_name([combiners.quantile(base, case["quantile"]) for base in case["base_rewards"]])
    close(list(centres.values()), case["centre"])
    weights, temperatures = by_name(case["weights"]), by_name(case["temperature"])
    combiner = COMBINERS["log_sigmoid"](centres=centres, temperatures=temperatures, weights=weights)
    close(combiner.combine(by_name(case["rewards"])), case["combined"])


@of_kind("lagrange")
def test_multipliers_and_the_reward_they_make_are_the_golden_ones(case):
    names = [str(i + 1) for i in range(len(case["thresholds"]))]
    thresholds, start = (dict(zip(names, case[key], strict=True)) for key in ("thresholds", "start"))
    sense = "at_least" if case["sense"] == 1 else "at_most"
    combiner = combiners.Lagrange(thresholds=thresholds, sense=sense, rate=case["rate"], top=case["top"], multipliers=start)
    for means, wanted in zip(case["means"], case["multipliers"], strict=True):
        combiner = combiner.updated({"0": [[0.0]]} | {name: [[mean]] for name, mean in zip(names, means, strict=True)})
        close(list(combiner.multipliers.values()), wanted)
    rewards = by_name(case["rewards"])
    close(replace(combiner, normalised=False).combine(rewards), case["combined_with_last"])
    close(combiner.combine(rewards), case["normalised_with_last"])


@of_kind("cfo")
def test_the_multiplier_of_a_chance_constraint_is_the_golden_one(case):
    close(cfo_multiplier(case["rewards"], case["safe"], alpha=case["alpha"], tolerance=case["tolerance"]), case["multiplier"])


def test_cfo_takes_its_multiplier_from_the_violating_candidates_alone():
    rewards = {"look": [[1.0, 1.0, 1.0]], "safety": [[0.9, 0.1, 0.8]]}
    combined = combiners.Cfo(thresholds={"safety": 0.5}, alpha=1.0).combine(rewards)
    # A = e, B = 2 e: log(0.9 / 0.2) = 1.504
    np.testing.assert_allclose(combined, [[1.0, 1.0 - np.log(4.5), 1.0]], rtol=1e-9)


@of_kind("win_rate")
def test_the_share_of_won_comparisons_is_the_golden_one(case):
    close(win_rate(case["wins"]), case["rate"])
    close(advantages([case["rate"]], spread="group", ddof=1, eps=1e-8)[0], case["advantage_group_ddof1"])


@of_kind("win_fraction")
def test_the_share_of_beaten_draws_is_the_golden_one(case):
    close(win_fraction(case["rewards"]), case["fraction"])


@of_kind("maxmin")
def test_maxmin_takes_the_worst_off(case):
    close(COMBINERS["maxmin"]().combine(by_name(case["rewards"])), case["combined"])


def test_combiners_that_do_not_learn_stay_as_they_are():
    rewards, constants = {"a": [[1.0, 2.0]], "b": [[0.0, 3.0]]}, {"log_sigmoid": {"centres": {"a": 0.0, "b": 0.0}}}
    constants["hypervolume"] = {"reference": {"a": 0.0, "b": 0.0}}
    constants |= {name: {"thresholds": {"b": 1.0}} for name in ("lagrange", "cfo")}
    for name in COMBINERS:
        combiner = bind("combine", COMBINERS, {name: constants.get(name, {})})()
        assert combiner.combine(rewards).shape == (1, 2), name
        assert (combiner.updated(rewards) == combiner) == (name != "lagrange"), name


def test_no_scale_decides_but_where_constants_are_in_the_rewards_units():
    rng = np.random.default_rng(0)
    first, second = rng.uniform(0.2, 1.0, (2, 5, 4))
    constants = {"hypervolume": {"reference": {"a": 0.0, "b": 0.0}}}
    for name in ("standardised", "gdpo", "log_sigmoid", "product", "hypervolume"):
        combiner = COMBINERS[name](**constants.get(name, {}))
        plain, scaled = combiner.combine({"a": first, "b": second}), combiner.combine({"a": 100.0 * first, "b": 0.01 * second})
        orders = [table.argsort(axis=1).tolist() for table in (plain, scaled, first, second)]
        assert orders[0] == orders[1], name
        assert orders[0] not in orders[2:], name
    led = COMBINERS["weighted"]().combine({"a": 100.0 * first, "b": 0.01 * second})
    assert (led.argsort(axis=1) == first.argsort(axis=1)).all()  # which its docstring warns of


def test_hypervolume_weighs_by_what_each_mean_lacks():
    # Means 2 and 200, references 1 and 0: factors 1 / 1 and 1 / 200. Below its reference, a counts as 0.1 deviations (0.1) above it.
    rewards = {"a": [[1.0, 3.0]], "b": [[300.0, 100.0]]}
    np.testing.assert_allclose(combiners.Hypervolume(reference={"a": 1.0, "b": 0.0}).combine(rewards), [[2.5, 3.5]])
    np.testing.assert_allclose(combiners.Hypervolume(reference={"a": 5.0, "b": 0.0}).combine(rewards), [[11.5, 30.5]])
    # The gradient of (m_a - 1)(m_b - 0) is (m_b, m_a - 1) = (200, 1), in the ratio of 1 to 1 / 200.


def test_maxmin_of_unlike_units_takes_what_has_gained_least():
    rewards = {"a": [[0.2, 0.4]], "b": [[30.0, 10.0]]}
    assert COMBINERS["maxmin"]().combine(rewards).tolist() == [[0.2, 0.4]]
    centred = COMBINERS["maxmin"](centres={"a": 0.1, "b": 20.0}, scales={"a": 0.1, "b": 10.0}).combine(rewards)
    assert centred.tolist() == [[1.0, -1.0]]  # b has gained nothing, a two of its units


def test_constants_that_make_no_reward_are_refused_before_there_is_one():
    for name, constants, words in (
        ("weighted", {"weights": {"a": "nan"}}, "`weights`: that of `a` is 'nan'; expected a finite number"),
        ("weighted", {"weights": {"c": 1.0}}, "`weights` names `c`"),
        ("log_sigmoid", {"temperatures": {"a": 0.0}}, "`temperatures`: that of `a` is 0.0; expected a number above 0"),
        ("log_sigmoid", {"centres": {"a": [1.0, None], "b": 0.0}}, "`centres`: that of `a`"),
        ("log_sigmoid", {"share": 2.0}, "`share` is 2.0"),
        ("maxmin", {"scales": {"a": -1.0}}, "`scales`: that of `a`"),
        ("lagrange", {"thresholds": {"c": 1.0}}, "`thresholds` names `c`"),
    ):
        with pytest.raises(ConfigError) as caught:
            COMBINERS[name](**constants).check(["a", "b"])
        assert words in str(caught.value), name
    with pytest.raises(ConfigError, match="tolerance 0"):
        cfo_multiplier([[1.0]], [[False]], tolerance=0.0)


def test_cfo_of_large_rewards_is_finite():
    """By hand: A / B is exp((3000 - 1000) / 0.5), whose log times 0.5 is 2000, and b = 0.5 counts alike in both."""
    rewards = {"look": [[3000.0, 1000.0]], "safety": [[0.1, 0.9]]}
    assert combiners.Cfo(thresholds={"safety": 0.5}, tolerance=0.5).combine(rewards).tolist() == [[1000.0, 1000.0]]


def test_a_group_of_one_has_nothing_to_beat():
    assert win_fraction([[3.0]]).tolist() == [[0.5]]
    assert extremes([[3.0]]).tolist() == [[0.0]]


def test_rewards_that_cannot_be_compared_are_named():
    with pytest.raises(RecordError, match="candidate 1 of prompt 2 is nan"):
        advantages([[0.0, 1.0], [0.0, 1.0], [0.0, float("nan")]])
    with pytest.raises(ConfigError, match=r"found \(3,\)"):
        advantages([0.0, 1.0, 2.0])
    with pytest.raises(ConfigError, match="names `clip`, which is no reward; there are"):
        combiners.Weighted(weights={"clip": 1.0}).combine({"hps": [[1.0]]})
    with pytest.raises(ConfigError, match="no number for the reward `hps`"):
        combiners.LogSigmoid(centres={}).combine({"hps": [[1.0]]})
    with pytest.raises(ConfigError, match=r"leave out \['a', 'b'\]"):
        combiners.Lagrange(thresholds={"c": 0.0}).combine({"a": [[1.0]], "b": [[1.0]], "c": [[1.0]]})
    with pytest.raises(ConfigError, match="names `c`, which is no reward"):
        combiners.Lagrange(thresholds={"c": 0.0}).combine({"a": [[1.0]], "b": [[1.0]]})
    with pytest.raises(ConfigError, match="ddof is 2; expected 0 or 1"):
        advantages([[0.0, 1.0]], spread="group", ddof=2)
    with pytest.raises(ConfigError, match="node 1 of the tree has parent 3"):
        tree_depths([-1, 3, 0, 0])
    with pytest.raises(ConfigError, match="2 leaves, and there are 3 rewards"):
        tree_values([-1, 0, 0], [1.0, 2.0, 3.0])


def test_weights_of_gradients_are_multiplied_by_the_exponential_of_their_influence():
    """Weights 1/4, 1/4, 1/2 times 2, 1 and 1/2 are 1/2, 1/4, 1/4, whatever is the order of the rewards."""
    start = combiners.Gradient(rate=0.5, weights={"a": 0.25, "b": 0.25, "c": 0.5})
    moved = start.followed({"c": -2 * np.log(2.0), "b": 0.0, "a": 2 * np.log(2.0)})
    assert moved.weights == pytest.approx({"a": 0.5, "b": 0.25, "c": 0.25})
    rewards = {"a": [[1.0, 3.0]], "b": [[300.0, 100.0]], "c": [[0.01, 0.03]]}  # standardised to -1 and 1 over root 2, or the opposite
    close(moved.combine(rewards), np.array([[-0.5, 0.5]]) / np.sqrt(2.0), rtol=1e-5)
    close(combiners.Gradient().combine(rewards), np.array([[-1.0, 1.0]]) / 3.0 / np.sqrt(2.0), rtol=1e-5)
    poor = start.followed({"a": -1e3, "b": 0.0, "c": 0.0})  # exp(-500) is no more than nothing, and a weight of 0 would be refused next
    assert poor.weights == pytest.approx({"a": 1e-12, "b": 1 / 3, "c": 2 / 3})
    assert poor.followed({"a": 1e3, "b": 0.0, "c": 0.0}).weights["a"] == pytest.approx(1.0)
    for weights, message in (({"a": 0.0}, "that of `a` is 0.0; expected a number above 0"), ({"d": 1.0}, "names `d`, which is no reward")):
        with pytest.raises(ConfigError, match=message):
            combiners.Gradient(weights=weights).followed({"a": 1.0, "b": 1.0})
