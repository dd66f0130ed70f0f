"""People as a scorer: what is asked of them, what their votes make, and what a kill or nobody's vote does."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from diffalign.core.errors import ConfigError, TrainingError
from diffalign.data.store import VoteStore
from diffalign.rewards.scorers.people import PeopleScorer, pairs_of, people
from diffalign.rewards.table import bind_scorer, called

PROMPT = "a star"


def shades(*levels):
    return [Image.new("RGB", (8, 8), (level, level, level)) for level in levels]


def brightness(file):
    return float(np.asarray(Image.open(file)).mean())


def vote_once(path, *, ranking=False, answer=None):
    """Answer the next question of a voter who likes bright pictures; return whether there was one."""
    with VoteStore(path) as store:
        for question in store.questions("ada", ranking=ranking):
            light = [brightness(picture.file) for picture in question.pictures]
            ranks = [1 + sum(other > own for other in light) for own in light] if ranking else []
            chosen = "ranking" if ranking else answer or ("left" if light[0] > light[1] else "right")
            store.vote(question.id, "ada", chosen, ranks=ranks)
            return True
    return False


def scorer(path, comparisons=2, timeout=1e9, **voting):
    """Return the scorer whose wait for people is one vote."""
    return PeopleScorer("people", path, comparisons, timeout, sleep=lambda _: None if vote_once(path, **voting) else pytest.fail("no vote"))


def test_every_picture_is_compared_equally_often_and_over_others_with_all():
    for count in range(1, 10):
        for comparisons in range(1, 10):
            pairs = pairs_of(count, comparisons)
            degrees = [sum(place in pair for pair in pairs) for place in range(count)]
            where = f"{count} pictures, {comparisons} comparisons: {sorted(pairs)}"
            assert len(set(degrees)) == 1, where
            assert min(comparisons, count - 1) <= degrees[0] <= comparisons + 1, where
            reached = {0}
            for _ in range(count):
                reached |= {place for pair in pairs if reached & set(pair) for place in pair}
            assert len(reached) == count, where


def test_a_score_is_the_share_of_its_comparisons_that_a_picture_won(tmp_path):
    images = shades(0, 60, 120, 180)
    # in the ring 0-1, 1-2, 2-3, 3-0 the brighter one wins: 0 loses both, 1 and 2 win one of two, 3 wins both
    assert scorer(tmp_path / "v.db")(images, [PROMPT] * 4).tolist() == [0.0, 0.5, 0.5, 1.0]
    # each with all others: 0, 1, 2 and 3 of three
    assert scorer(tmp_path / "all.db", 3)(images, [PROMPT] * 4) == pytest.approx([0.0, 1 / 3, 2 / 3, 1.0])
    assert scorer(tmp_path / "ranked.db", 3, ranking=True)(images, [PROMPT] * 4) == pytest.approx([0.0, 1 / 3, 2 / 3, 1.0])
    assert scorer(tmp_path / "skipped.db", answer="skip")(images, [PROMPT] * 4).tolist() == [0.5] * 4


def test_pictures_are_compared_within_their_prompt_and_their_turn_alone(tmp_path):
    own = scorer(tmp_path / "v.db")
    assert own([*shades(0, 60), *shades(0, 60)], ["a star", "a star", "a ring", "a ring"]).tolist() == [0.0, 1.0, 0.0, 1.0]
    assert own(shades(120, 180), ["a star"] * 2).tolist() == [0.0, 1.0]  # not against the darker ones of before
    with VoteStore(tmp_path / "v.db") as store:
        assert store.pairs() == 3


def test_what_was_voted_on_is_not_asked_again_and_counts(tmp_path):
    path, images = tmp_path / "v.db", shades(0, 60, 120, 180)
    scorer(path).begin(images, [PROMPT] * 4)
    assert vote_once(path)
    assert vote_once(path)  # and the run is killed
    scored = scorer(path)(images, [PROMPT] * 4)
    assert scored.tolist() == [0.0, 0.5, 0.5, 1.0]
    with VoteStore(path) as store:
        assert len(store.votes()) == store.pairs() == 4
        assert store.unseen() == 0
    nobody = PeopleScorer("people", path, 2, 1e9, sleep=lambda _: pytest.fail("it waited"))
    assert nobody(images, [PROMPT] * 4).tolist() == scored.tolist()


def test_pictures_that_are_the_same_wait_for_nobody(tmp_path):
    nobody = PeopleScorer("people", tmp_path / "v.db", 2, 1e9, sleep=lambda _: pytest.fail("it waited"))
    assert nobody(shades(7, 7, 7), [PROMPT] * 3).tolist() == [0.5] * 3
    assert scorer(tmp_path / "v.db")(shades(0, 60, 0, 120), [PROMPT] * 4).tolist() == [0.0, 0.5, 0.0, 1.0]


def test_where_nobody_votes_in_time_an_error_says_how_many_pictures_wait_and_where(tmp_path):
    path = tmp_path / "v.db"
    with pytest.raises(TrainingError, match=r"v\.db: 4 of 4 pictures.*diffalign app --dataset_name .*v\.db"):
        people(path=str(path), timeout=0.0)(shades(0, 60, 120, 180), [PROMPT] * 4)


def test_a_spec_makes_no_store_and_is_checked(tmp_path):
    spec = {"people": {"path": str(tmp_path / "v.db")}}
    bind_scorer(spec)()
    assert called(spec) == "people"
    assert not (tmp_path / "v.db").exists()
    for constants, found in [({"path": "votes.txt"}, "votes.txt"), ({"path": "v.db", "comparisons": 0}, "`comparisons` 0")]:
        with pytest.raises(ConfigError, match=found):
            people(**constants)
