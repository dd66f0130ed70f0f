"""Models side by side: ratings by the votes that compare two of them, and pictures of equal seeds."""

from __future__ import annotations

import sys

import pytest
from PIL import Image

from diffalign.app.arena import Arena
from diffalign.app.pages.compare import rating_table
from diffalign.core.errors import ConfigError
from diffalign.data.pictures import encode_image
from diffalign.data.store import VoteStore


@pytest.fixture
def arena(tmp_path):
    with VoteStore(tmp_path / "arena.db") as store:
        for n in range(6):
            for shade, model in ((n, "base"), (100 + n, "<b>mine</b>")):
                store.add_pictures(f"prompt {n}", [encode_image(Image.new("L", (8, 8), shade))], model=model, seeds=[n])
        yield Arena(store, tmp_path / "log.txt")


def test_ratings_count_the_votes_between_two_models(arena):
    assert arena.ratings() == []
    for _ in range(6):
        (question,) = arena.store.questions("ada")
        answer = ("left", "right")[[picture.model for picture in question.pictures].index("<b>mine</b>")]
        arena.store.vote(question.id, "ada", answer)
    best, other = arena.ratings()
    assert (best.model, best.wins, best.losses, other.wins) == ("<b>mine</b>", 6, 0, 0)
    assert best.low > 0 > other.high
    assert "<b>" not in rating_table([best, other])


def test_two_models_are_looked_at_at_the_same_seed(arena):
    left, right = arena.pictures("prompt 3", "base", "<b>mine</b>")
    assert (left.getpixel((0, 0))[0], right.getpixel((0, 0))[0]) == (3, 103)
    assert arena.pictures("prompt 3", "base", "other") is None
    assert arena.pictures("a prompt that nobody drew", "base", "base") is None


def test_a_drawing_that_fails_says_why_and_one_model_is_no_comparison(arena, tmp_path):
    with pytest.raises(ConfigError, match="two"):
        arena.draw(["base", "base"], [], 4)
    arena.draw([str(tmp_path / "a"), str(tmp_path / "b")], ["a star"], 4)
    with pytest.raises(ConfigError, match="drawing"):
        arena.draw(["a", "b"], [], 4)
    arena.drawing.wait()
    assert str(tmp_path / "a") in arena.trouble
    assert sys.executable not in arena.trouble
