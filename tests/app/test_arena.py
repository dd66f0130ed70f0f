"""Models side by side: ratings by the votes that compare two of them, and pictures of equal seeds."""

from __future__ import annotations

import sys

import pytest
from PIL import Image

from diffalign.app.arena import Arena
from diffalign.app.background import Background
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
        yield Arena(store, Background(tmp_path / "log.txt"))


def vote_for(arena, *winners):
    """Vote for these models, or "tie", on one pair after the other."""
    for winner in winners:
        (question,) = arena.store.questions("ada")
        models = [picture.model for picture in question.pictures]
        arena.store.vote(question.id, "ada", ("left", "right")[models.index(winner)] if winner in models else winner)


def test_ratings_count_the_votes_between_two_models(arena):
    assert arena.ratings() == []
    vote_for(arena, "<b>mine</b>", "<b>mine</b>", *["<b>mine</b>"] * 4)
    best, other = arena.ratings()
    assert (best.model, best.wins, best.losses, other.wins) == ("<b>mine</b>", 6, 0, 0)
    assert best.low > 0 > other.high
    assert "<b>" not in rating_table([best, other])


def test_a_duel_counts_each_prompt_once_with_ties_as_halves_and_claims_nothing_of_few_votes(arena):
    vote_for(arena, *["<b>mine</b>"] * 4, "tie", "base")
    against_base, itself = arena.duels("base"), arena.duels("<b>mine</b>")
    assert [(duel.model, duel.prompts, duel.rate) for duel in against_base] == [("<b>mine</b>", 6, 4.5 / 6)]
    assert [duel.rate for duel in itself] == [1.5 / 6]
    assert (against_base[0].verdict, against_base[0].low < 0.5 < against_base[0].high) == ("unclear", True)
    assert arena.duels("nobody") == []


def test_two_models_are_looked_at_at_the_same_seed(arena):
    left, right = arena.pictures("prompt 3", "base", "<b>mine</b>")
    assert (left.getpixel((0, 0))[0], right.getpixel((0, 0))[0]) == (3, 103)
    assert arena.pictures("prompt 3", "base", "other") is None
    assert arena.pictures("a prompt that nobody drew", "base", "base") is None


def test_a_drawing_that_fails_says_why_and_one_model_is_no_comparison(arena, tmp_path):
    with pytest.raises(ConfigError, match="two"):
        arena.draw(["base", "base"], [], 4)
    arena.draw([str(tmp_path / "a"), str(tmp_path / "b")], ["a star"], 4)
    with pytest.raises(ConfigError, match="wait"):
        arena.draw(["a", "b"], [], 4)
    arena.drawing.process.wait()
    assert str(tmp_path / "a") in arena.drawing.trouble
    assert sys.executable not in arena.drawing.trouble
