"""Which pair a voter is asked about next."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from diffalign.app.choice import chooser
from diffalign.data.pictures import encode_image
from diffalign.data.store import VoteStore


@pytest.fixture
def store(tmp_path):
    with VoteStore(tmp_path / "votes.db") as store:
        yield store


def vote(store, voter, strategy, favours, **options):
    """Let a voter vote for the picture of which `favours` is higher, and return that question."""
    (question,) = store.questions(voter, choose=chooser(strategy, store, **options)(voter))
    left, right = (favours(picture) for picture in question.pictures)
    store.vote(question.id, voter, "left" if left > right else "right")
    return question


def test_what_is_known_of_colours_is_not_asked_again(store):
    """Once dark pictures are known to be preferred, a pair of a dark and a light one tells less than one of two colours."""
    gray = [Image.new("RGB", (16, 16), (shade,) * 3) for shade in (0, 30, 220, 250)]
    coloured = [Image.new("RGB", (16, 16), colour) for colour in ((250, 120, 10), (10, 120, 250))]
    store.add_pictures("grays", [encode_image(image) for image in gray])
    for _ in range(3):
        vote(store, "ada", "active", lambda picture: -np.asarray(Image.open(picture.file)).mean())
    store.add_pictures("colours", [encode_image(image) for image in coloured])
    (question,) = store.questions("ada", choose=chooser("active", store)("ada"))
    assert question.prompt == "colours"


def test_of_models_those_are_compared_of_which_least_is_known(store):
    for n in range(12):
        for model in ("a", "b", "c"):
            store.add_pictures(f"prompt {n}", [encode_image(Image.new("L", (8, 8), 20 * n + ord(model) - 97))], model=model, seeds=[n])
    strength = {"a": 2, "b": 1, "c": 0}
    for _ in range(6):
        vote(store, "ada", "active", lambda picture: strength[picture.model], of_models=True)
    (question,) = store.questions("bob", choose=chooser("active", store, of_models=True)("bob"))
    met = [{picture.model for picture in store.question(cast.question).pictures} for cast in store.votes()]
    counts = {frozenset(pair): met.count(pair) for pair in ({"a", "b"}, {"b", "c"}, {"a", "c"})}
    assert max(counts.values()) - min(counts.values()) <= 2
    assert len({picture.model for picture in question.pictures}) == 2


def test_only_active_needs_a_chooser(store):
    assert chooser("balanced", store) is None
    assert chooser("random", store) is None
