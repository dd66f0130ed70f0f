"""Agreement of scorers with people: conventions for ties by hand, correlations against scipy on real ratings, real votes."""

from __future__ import annotations

import csv
import json
import math
from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from diffalign.rewards.agreement import (
    Comparisons,
    Estimate,
    Items,
    accuracies,
    cohen_kappa,
    correlations,
    kendall,
    majority,
    pearson,
    points,
    raters,
    spearman,
    tie_threshold,
)
from tests.paths import DATA_FIXTURES, FIXTURES

FIXTURES = FIXTURES / "agreement"
RANKINGS = DATA_FIXTURES / "imagereward_rankings.json"
TIFA = list(csv.DictReader((FIXTURES / "tifa.csv").read_text().splitlines()))
METRICS = [name for name in TIFA[0] if name not in ("text_id", "system", "human_avg")]


def pairs(human: list[float], gap: list[float], group: list[int] | None = None) -> Comparisons:
    return Comparisons(np.array(group or range(len(human))), np.array(human), np.array(gap))


def tifa(metric: str) -> Items:
    group = np.unique([row["text_id"] for row in TIFA], return_inverse=True)[1]
    human, scores = (np.array([float(row[name]) for row in TIFA]) for name in ("human_avg", metric))
    return Items(group, human, scores)


def value(found: Estimate | float | None) -> float:
    assert isinstance(found, Estimate)
    return found.value


@pytest.mark.parametrize("metric", METRICS)
def test_correlations_of_real_ratings_are_those_of_scipy(metric: str) -> None:
    items = tifa(metric)
    assert len(items.human) == 800
    assert pearson(items.human, items.metric) == pytest.approx(stats.pearsonr(items.human, items.metric)[0], abs=1e-9)
    assert spearman(items.human, items.metric) == pytest.approx(stats.spearmanr(items.human, items.metric)[0], abs=1e-9)
    assert kendall(items.human, items.metric) == pytest.approx(stats.kendalltau(items.human, items.metric)[0], abs=1e-9)


@pytest.mark.parametrize("metric", METRICS)
def test_tau_b_of_real_ratings_is_that_of_its_definition(metric: str) -> None:
    items = tifa(metric)
    human, scores = (np.sign(x[:, None] - x[None, :]) for x in (items.human, items.metric))  # every pair, both ways round
    tau = (human * scores).sum() / math.sqrt((human != 0).sum() * (scores != 0).sum())
    assert kendall(items.human, items.metric) == pytest.approx(tau, abs=1e-9)


def test_real_ratings_correlate_by_prompt_and_overall_with_intervals_around_the_value() -> None:
    items = tifa("clipscore_vitb32")
    found = correlations(items, resamples=50)
    assert value(found["kendall"]) == pytest.approx(stats.kendalltau(items.human, items.metric)[0], abs=1e-9)
    each = [
        stats.kendalltau(items.human[items.group == g], items.metric[items.group == g])[0]
        for g in range(160)
        if np.ptp(items.human[items.group == g])
    ]
    assert found["kendall_by_prompt"] is not None
    assert found["kendall_by_prompt"].prompts == len(each) < 160  # the raters tell no two pictures of some prompts apart
    assert found["kendall_by_prompt"].value == pytest.approx(float(np.mean(each)), abs=1e-9)
    for estimate in found.values():
        assert estimate is not None
        assert estimate.low is not None
        assert estimate.high is not None
        assert estimate.low < estimate.value < estimate.high


def test_ranks_of_different_prompts_are_not_correlated_with_each_other() -> None:
    items = Items(np.array([0, 0, 1, 1]), np.array([-1.0, -2.0, -1.0, -2.0]), np.array([5.0, 4.0, 2.0, 1.0]), comparable=False)
    assert sorted(correlations(items)) == ["kendall_by_prompt", "pearson_by_prompt", "spearman_by_prompt"]


def test_a_constant_score_has_no_correlation() -> None:
    found = correlations(Items(np.zeros(3, dtype=int), np.array([1.0, 2.0, 3.0]), np.ones(3)))
    assert set(found.values()) == {None}


def test_real_rankings_give_their_published_pairs() -> None:
    rankings = [row[2] for row in json.loads(RANKINGS.read_text())["rows"]]
    group = np.repeat(np.arange(len(rankings)), [len(r) for r in rankings])
    ranks = -np.concatenate(rankings).astype(float)
    found = Items(group, ranks, ranks, comparable=False).comparisons()
    assert (int((found.human != 0).sum()), int((found.human == 0).sum())) == (6399, 831)
    assert value(accuracies(found, resamples=10)["ties_class"]) == 1.0  # a scorer that says just what people say


def test_the_three_conventions_for_ties_differ_as_stated() -> None:
    # right, wrong, scores equal, people tied, both tied
    asked = pairs([1, 1, -1, 0, 0], [2, -3, 0, 1, 0])
    assert points(asked, "ties_dropped")[0][:3].tolist() == [1.0, 0.0, 0.5]
    assert points(asked, "ties_dropped")[1].tolist() == [True, True, True, False, False]
    assert points(asked, "ties_half")[0].tolist() == [1.0, 0.0, 0.5, 0.5, 1.0]
    assert points(asked, "ties_class")[0].tolist() == [1.0, 0.0, 0.0, 0.0, 1.0]
    assert points(asked, "ties_class", threshold=1.0)[0].tolist() == [1.0, 0.0, 0.0, 1.0, 1.0]
    found = accuracies(asked)
    assert value(found["ties_dropped"]) == pytest.approx(1.5 / 3)
    assert value(found["ties_half"]) == pytest.approx(3.0 / 5)
    assert (found["tie_threshold"], value(found["ties_class"])) == (1.0, pytest.approx(3.0 / 5))


def test_the_tie_threshold_is_the_least_that_makes_most_pairs_right() -> None:
    human, gap = [1, 1, 0, 0, -1, 0, 1], [0.2, 5, 1, -2, -2, 2.5, 0]
    asked = pairs(human, gap)
    tried = {t: int(points(asked, "ties_class", t)[0].sum()) for t in sorted({0.0, *map(abs, gap)})}
    assert tried == {0.0: 3, 0.2: 2, 1: 3, 2: 3, 2.5: 4, 5: 3}
    assert tie_threshold(asked) == 2.5
    assert tie_threshold(pairs([1, -1], [3, -4])) == 0.0  # people never tie
    assert tie_threshold(pairs([0, 0], [3, -4])) == 4.0  # people always tie


def test_calibration_is_best_among_all_thresholds_on_real_ratings() -> None:
    asked = tifa("tifa_vilt").comparisons()
    best = points(asked, "ties_class", tie_threshold(asked))[0].mean()
    assert best == max(points(asked, "ties_class", t)[0].mean() for t in np.unique(np.abs(asked.gap)))


def test_prompts_with_many_pairs_weigh_more_in_the_pooled_accuracy_alone() -> None:
    found = accuracies(pairs([1, 1, 1, 1], [1, 1, 1, -1], [0, 0, 0, 1]))
    assert value(found["ties_dropped"]) == 0.75
    assert value(found["ties_dropped_by_prompt"]) == 0.5


def test_intervals_are_of_prompts_and_not_of_pairs() -> None:
    rng = np.random.default_rng(0)
    right = (rng.random(100) < 0.7) * 2.0 - 1.0
    alone = accuracies(pairs([1.0] * 100, right.tolist()))["ties_dropped"]
    copied = accuracies(pairs([1.0] * 500, np.repeat(right, 5).tolist(), np.repeat(np.arange(100), 5).tolist()))["ties_dropped"]
    assert alone == copied  # the same prompts, five equal pairs each: nothing more is known
    assert isinstance(alone, Estimate)
    assert alone.low is not None
    assert alone.high is not None
    share = float((right > 0).mean())
    assert alone.high - alone.low == pytest.approx(2 * 1.96 * math.sqrt(share * (1 - share) / 100), rel=0.15)


def test_a_scorer_that_is_always_right_has_the_exact_interval_and_one_prompt_has_none() -> None:
    found = accuracies(pairs([1] * 12, [1] * 12))["ties_dropped"]
    assert found == Estimate(1.0, pytest.approx(0.025 ** (1 / 12)), 1.0, 12)  # Clopper-Pearson
    assert accuracies(pairs([1, 1], [1, -1], [0, 0]))["ties_dropped"] == Estimate(0.5, None, None, 1)


def test_votes_that_are_all_ties_have_no_accuracy_without_ties() -> None:
    found = accuracies(pairs([0, 0], [1, 0]))
    assert found["ties_dropped"] is None
    assert value(found["ties_half"]) == 0.75


def test_real_annotators_agree_as_their_authors_print() -> None:
    rows = list(csv.DictReader((FIXTURES / "pandalm.csv").read_text().splitlines()))
    columns = {name: [row[name] for row in rows] for name in ("annotator1", "annotator2", "annotator3")}
    found = raters(columns)
    assert [round(found[f"{a}, {b}"]["kappa"], 2) for a, b in combinations(columns, 2)] == [0.85, 0.88, 0.86]
    most = [majority(votes) for votes in zip(*columns.values(), strict=True)]
    assert {verdict: most.count(verdict) for verdict in ("0", "1", "2", None)} == {"0": 105, "1": 422, "2": 472, None: 0}


@pytest.mark.parametrize(("judge", "printed"), [("pandalm_7b", 0.6677), ("gpt_35", 0.7107)])
def test_real_judges_reach_the_accuracy_that_their_authors_print(judge: str, printed: float) -> None:
    rows = list(csv.DictReader((FIXTURES / "pandalm.csv").read_text().splitlines()))
    sign = {"1": 1.0, "2": -1.0, "0": 0.0, "Tie": 0.0, "garbage": 0.0}  # as data/compute_metrics.py of WeOpenML/PandaLM counts them
    human = [sign[majority([row[f"annotator{i}"] for i in (1, 2, 3)]) or "0"] for row in rows]
    found = accuracies(pairs(human, [sign[row[judge]] for row in rows]), resamples=10)
    assert round(value(found["ties_class"]), 4) == printed


def test_kappa_is_agreement_beyond_chance() -> None:
    # agreed on 35 of 50; chance (25 * 30 + 25 * 20) / 2500 = 0.5 (the usual textbook example)
    first, second = "y" * 25 + "n" * 25, "y" * 20 + "n" * 5 + "y" * 10 + "n" * 15
    assert cohen_kappa(first, second) == pytest.approx(0.4)
    assert cohen_kappa("yyn", "yyn") == 1.0
    assert math.isnan(cohen_kappa("yy", "yy"))


def test_a_majority_needs_more_than_every_other_verdict() -> None:
    assert (majority("122"), majority("12"), majority("012"), majority("1")) == ("2", None, None, "1")
