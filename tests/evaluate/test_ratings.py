"""Ratings of models from votes: values by hand, one-sided records, and intervals that narrow as votes come in."""

from __future__ import annotations

import csv
import math

import numpy as np
import pytest
from scipy.optimize import minimize

from diffalign.core.errors import ConfigError
from diffalign.evaluate.ratings import Rating, Vote, bradley_terry, table, win_chance
from tests.paths import DATA_FIXTURES

VOTES = DATA_FIXTURES / "text" / "pandalm_votes.csv"


def by_model(ratings: list[Rating]) -> dict[str, Rating]:
    return {rating.model: rating for rating in ratings}


def test_two_models_differ_by_the_log_odds_of_wins_with_half_a_virtual_win_each() -> None:
    votes = [Vote("a", "b", 1.0)] * 6 + [Vote("b", "a", 1.0)] * 2 + [Vote("a", "b", 0.5)] * 4
    first, second = bradley_terry(votes, resamples=10)
    assert (first.model, first.wins, first.losses, first.ties) == ("a", 6.0, 2.0, 4)
    assert first.rating - second.rating == pytest.approx(math.log(8.5 / 4.5), abs=1e-8)
    assert first.rating + second.rating == pytest.approx(0.0, abs=1e-12)
    assert win_chance(first, second) == pytest.approx(8.5 / 13.0, abs=1e-8)


def test_twelve_one_sided_votes_give_a_finite_rating_and_an_interval_that_says_how_little_is_known() -> None:
    aligned, base = bradley_terry([Vote("aligned", "base", 1.0)] * 12)
    assert aligned.rating - base.rating == pytest.approx(math.log(12.5 / 0.5), abs=1e-8)
    # Jeffreys' posterior of 12 wins in 12 is Beta(12.5, 0.5): 2.5 % quantile 0.8147, 97.5 % quantile 0.99996
    chances = [1.0 / (1.0 + math.exp(-2.0 * bound)) for bound in (aligned.low, aligned.high)]
    assert chances[0] == pytest.approx(0.8147, abs=0.02)
    assert 0.9999 < chances[1] < 1.0
    assert [base.low, base.high] == pytest.approx([-aligned.high, -aligned.low])


def test_more_votes_of_the_same_record_narrow_the_interval() -> None:
    few, many = (bradley_terry([Vote("a", "b", 1.0)] * 3 * n + [Vote("a", "b", 0.0)] * n)[0] for n in (3, 300))
    assert few.low < 0.0 < many.low  # nine wins of twelve could be chance
    # 900 of 1200: the standard error of half the log-odds is 1/2 sqrt(1/900 + 1/300) = 0.0333
    assert many.high - many.low == pytest.approx(2 * 1.96 * 0.0333, rel=0.08)


def test_votes_of_one_prompt_count_as_one_piece_of_evidence() -> None:
    apart = [Vote("a", "b", float(i % 4 > 0), f"prompt {i}") for i in range(400)]
    alike = [Vote("a", "b", float(i % 4 > 0), f"prompt {i % 40}") for i in range(400)]  # 40 prompts, each ten times the same
    one, other = (bradley_terry(votes, resamples=300)[0] for votes in (apart, alike))
    assert other.rating == pytest.approx(one.rating)
    assert other.high - other.low > 2.0 * (one.high - one.low)  # sqrt(10) = 3.2 by arithmetic


def test_three_models_reach_the_maximum_of_the_likelihood() -> None:
    won = {("a", "b"): 7, ("b", "a"): 3, ("b", "c"): 6, ("c", "b"): 5, ("a", "c"): 9, ("c", "a"): 1}
    votes = [Vote(left, right, 1.0) for (left, right), n in won.items() for _ in range(n)]

    def loss(free: np.ndarray) -> float:
        at = dict(zip("abc", (*free, 0.0), strict=True))
        # three models met in three pairs, two virtual ties on two pairs each: half a tie a pair, a quarter to each side
        return sum((n + 0.25) * np.logaddexp(0.0, at[right] - at[left]) for (left, right), n in won.items())

    best = minimize(loss, np.zeros(2), tol=1e-12).x
    expected = np.array([*best, 0.0]) - best.sum() / 3.0
    found = by_model(bradley_terry(votes, resamples=10))
    assert [found[name].rating for name in "abc"] == pytest.approx(expected.tolist(), abs=1e-5)


def test_a_model_that_never_won_leaves_the_others_apart() -> None:
    votes = [Vote("a", "b", 1.0)] * 8 + [Vote("b", "a", 1.0)] * 4 + [Vote("b", "never", 1.0)] * 9
    found = by_model(bradley_terry(votes, resamples=100))
    assert found["a"].rating > found["b"].rating > found["never"].rating
    assert all(math.isfinite(bound) for rating in found.values() for bound in (rating.low, rating.high))
    widths = {name: rating.high - rating.low for name, rating in found.items()}
    assert widths["never"] == max(widths.values())


def test_real_votes_of_three_annotators_are_rated() -> None:
    rows = list(csv.DictReader(VOTES.read_text().splitlines()))
    shares = {"0": 0.5, "1": 1.0, "2": 0.0}
    votes = [Vote("response1", "response2", shares[row[f"annotator{i}"]], row["idx"]) for row in rows for i in (1, 2, 3)]
    second, first = bradley_terry(votes, resamples=500)
    assert (second.model, first.wins + first.losses + first.ties) == ("response2", 3.0 * 999)
    half = first.ties / 2.0 + 0.5
    assert second.rating - first.rating == pytest.approx(math.log((second.wins + half) / (first.wins + half)), abs=1e-6)


def test_the_table_is_in_elo_points_around_a_thousand() -> None:
    lines = table(
        [Rating("aligned", math.log(10.0) / 2.0, 0.0, math.log(10.0), 12.0, 0.0, 3), Rating("base", -math.log(10.0) / 2.0, 0, 0, 0, 12, 3)]
    )
    first, second = lines.splitlines()[1:]
    assert first.split() == ["aligned", "1200", "1000", "to", "1400", "12", "0", "3"]
    assert second.split()[:2] == ["base", "800"]


@pytest.mark.parametrize(
    ("votes", "why"),
    [
        ([], "no votes"),
        ([Vote("a", "a", 1.0)], "two models"),
        ([Vote("a", "b", 1.5)], r"share in \[0, 1\]"),
        ([Vote("a", "b", 1.0), Vote("c", "d", 1.0)], "no votes connect `c` with `a`"),
    ],
)
def test_votes_that_cannot_be_rated_are_refused(votes: list[Vote], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        bradley_terry(votes)


def test_ratings_without_virtual_ties_are_refused() -> None:
    with pytest.raises(ConfigError, match="virtual_ties"):
        bradley_terry([Vote("a", "b", 1.0)], virtual_ties=0.0)
