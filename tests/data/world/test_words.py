"""What somebody seems to like, in words."""

from __future__ import annotations

import math

import pytest

from diffalign.data.world.words import in_words, leanings

STARS = [{"color": color, "size": size} for color in ("red", "blue") for size in ("large", "small")] * 3


def test_what_goes_with_liking_is_named_first_and_its_opposite_is_liked_less():
    noise = [0.1, -0.1, 0.0, 0.05] * 3
    liking = [2.0 * (shown["color"] == "red") + 0.5 * (shown["size"] == "large") + n for shown, n in zip(STARS, noise, strict=True)]
    leaning = leanings(STARS, liking, ["a star"] * 12)
    assert leaning["red"] == -leaning["blue"] > leaning["large shapes"] == -leaning["small shapes"] > 0.0
    liked, less = in_words(leaning).split(". ")
    assert "red" in liked
    assert "blue" in less


def test_a_leaning_is_the_slope_in_its_standard_errors():
    # Showing is +-1/2 around its mean, liking 1, 3 against 0, 0: the slope is 2, the residuals +-1, 0, 0 and their variance over 4 - 2
    # degrees of freedom 2 / 2 = 1, so that the error is sqrt(1 / (4 / 4)) = 1.
    attributes = [{"size": "large"}, {"size": "large"}, {"size": "small"}, {"size": "small"}]
    leaning = leanings(attributes, [1.0, 3.0, 0.0, 0.0], ["a star"] * 4)
    assert leaning == pytest.approx({"large shapes": 2.0, "small shapes": -2.0})


def test_only_pictures_of_one_prompt_are_compared():
    attributes = [{"color": "red"}] * 4 + [{"color": "blue"}] * 4
    assert leanings(attributes, [1.0] * 4 + [0.0] * 4, ["a red star"] * 4 + ["a blue star"] * 4) == {}


def test_what_one_picture_alone_shows_or_nobody_can_tell_is_not_named():
    attributes = [{"color": "red"}, {"color": "blue"}, {}, {"color": "blue"}]
    assert set(leanings(attributes, [1.0, 0.0, 0.5, 0.0], ["a star"] * 4)) == {"blue"}
    assert in_words({}) == ""
    assert in_words({"blue": 1.9, "red": math.nan}) == ""
