"""Transforms of the preference-optimisation family by hand: lists, flips, new labels, weights, offsets, goals in prompts."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import pytest

from diffalign.core.errors import ConfigError, RecordError
from diffalign.data.records import Candidate, Message, Record
from diffalign.data.transforms import (
    apply,
    by_factuality,
    flip_labels,
    invert,
    list_of,
    lowest,
    offset_by,
    orient,
    pairs,
    preferred,
    relabel,
    reward_conditioned,
    semantic_weight,
    share_beaten,
    weighted,
)
from diffalign.data.transforms.filters import threshold


def record(*scores, prob=None, ranks=None, **fields):
    """Return a record of texts c0, c1, ... with these scores, each a mapping."""
    ranks = ranks or [None] * len(scores)
    shown = tuple(Candidate(text=f"c{i}", scores=own, rank=rank) for i, (own, rank) in enumerate(zip(scores, ranks, strict=True)))
    return Record(**{"id": "r", "prompt": "a star", "candidates": shown, "prob": prob, "source": "table row 0", **fields})


def texts(records):
    return [("".join(c.text[1] for c in own.candidates), own.prob) for own in records]


def test_a_list_is_the_best_candidates_best_first():
    ranked = record({}, {}, {}, {}, ranks=[3.0, 1.0, 4.0, 2.0])
    assert texts(list_of(ranked, candidates=3)) == [("130", 1.0)]
    scored = record({"s": 0.2}, {"s": 0.9}, {"s": 0.9})
    assert texts(list_of(scored, candidates=3, score="s")) == [("120", 0.5)]  # the first two tie


def test_a_record_with_fewer_ranked_candidates_than_the_list_is_dropped():
    assert list_of(record({}, {}, {}, ranks=[1.0, None, 2.0]), candidates=3) == ()
    with pytest.raises(ConfigError, match="candidates is 1; expected at least 2"):
        list_of(record({}), candidates=1)


def flags(first, second):
    return record({"hallucinated": first}, {"hallucinated": second}, prob=0.8)


def test_only_a_pair_whose_preferred_answer_alone_hallucinates_is_flipped():
    assert [texts(by_factuality(flags(*own))) for own in ((0.0, 0.0), (0.0, 1.0), (1.0, 1.0), (1.0, 0.0))] == [
        [("01", 0.8)],
        [("01", 0.8)],
        [("01", 0.8)],
        [("10", 0.8)],
    ]
    (flipped,) = by_factuality(flags(1.0, 0.0))
    assert [c.scores["hallucinated"] for c in flipped.candidates] == [0.0, 1.0]
    with pytest.raises(RecordError, match=r"table row 0: `hallucinated` is 0\.3 and 1; expected 0"):
        by_factuality(flags(0.3, 1.0))


def test_a_pair_is_oriented_before_the_flip_of_hallucinations():
    # The second is preferred: of the flags (1, 0) it is the factual one, of (0, 1) it alone hallucinates.
    kept, flipped = (by_factuality(replace(flags(*own), prob=0.2)) for own in ((1.0, 0.0), (0.0, 1.0)))
    assert [texts(own) for own in (kept, flipped)] == [[("10", 0.8)], [("01", 0.8)]]


def test_offsets_turn_round_with_the_preference():
    pair = record({"s": 5.0}, {"s": 2.0}, prob=0.25, offset=1.5)  # a lead of 1.5 is asked of c0
    noisy = flip_labels(pair, share=1.0)
    assert [(*texts([own])[0], own.offset) for made in (orient(pair), invert(pair), noisy) for own in made] == [
        ("10", 0.75, -1.5),
        ("10", 0.25, 1.5),  # the taste is opposite, and so is the lead asked for: of c1
        ("01", 0.75, -1.5),
    ]
    plain = {"score": "s", "log": False}
    (before,) = orient(*offset_by(replace(pair, offset=None), **plain))
    (after,) = offset_by(*orient(replace(pair, offset=None)), **plain)
    assert before == after


def test_a_new_label_asks_for_new_offsets():
    with pytest.raises(RecordError, match=r"table row 0: .*`relabel` .*`offset_by`"):
        relabel(record({"s": 1.0}, {"s": 3.0}, prob=1.0, offset=0.5), score="s")


@pytest.mark.parametrize(
    "taking_the_first",
    [
        partial(semantic_weight, score="s"),
        partial(lowest, score="s", most=9.0),
        partial(reward_conditioned, score="s"),
        partial(offset_by, score="s"),
        preferred,
    ],
)
def test_what_takes_the_first_candidate_for_the_preferred_one_says_where_it_is_not(taking_the_first):
    against, tie = record({"s": 5.0}, {"s": 2.0}, prob=0.25), record({"s": 5.0}, {"s": 2.0}, prob=0.5)
    name = getattr(taking_the_first, "func", taking_the_first).__name__
    with pytest.raises(RecordError, match=rf"table row 0: `{name}` .*0\.25.*`orient`"):
        taking_the_first(against)
    assert len(taking_the_first(tie)) > 0
    assert len(taking_the_first(*orient(against))) > 0 or name in ("offset_by", "reward_conditioned")  # whose score now disagrees


def test_relabelling_takes_the_score_alone_and_puts_the_better_candidate_first():
    wrong = record({"r": 1.0}, {"r": 3.0}, prob=1.0)
    assert texts(relabel(wrong, score="r")) == [("10", 1.0)]
    ((order, prob),) = texts(relabel(replace(wrong, prob=None), score="r", temperature=2.0))
    assert order == "10"
    assert prob == pytest.approx(1 / (1 + math.exp(-1.0)), rel=1e-15)  # the gap of 2 over a temperature of 2
    assert texts(relabel(record({"r": 1.0}, {"r": 1.0}), score="r")) == [("01", 0.5)]


def test_relabelling_leaves_out_pairs_below_the_threshold():
    close = record({"r": 1.0}, {"r": 1.4})
    assert relabel(close, score="r", threshold=0.5) == ()
    assert len(relabel(close, score="r", threshold=0.3)) == 1
    with pytest.raises(ConfigError, match=r"temperature is -1\.0"):
        relabel(close, score="r", temperature=-1.0)


def test_the_semantic_weight_falls_with_the_preferred_candidates_distance():
    (near,) = semantic_weight(record({"distance": 0.0}, {"distance": 0.9}, prob=1.0))
    (far,) = semantic_weight(record({"distance": 0.2}, {"distance": 0.0}, prob=1.0), alpha=2.0)
    (twice,) = semantic_weight(replace(far, weight=0.5), alpha=2.0)
    assert near.weight == 1.0
    assert far.weight == pytest.approx(math.exp(-0.4), rel=1e-15)
    assert twice.weight == pytest.approx(0.5 * math.exp(-0.4), rel=1e-15)


def test_the_offset_is_the_scaled_logarithm_of_the_gap():
    scored = record({"s": 5.0}, {"s": 2.0}, prob=1.0)
    assert offset_by(scored, score="s", scale=0.5)[0].offset == pytest.approx(0.5 * math.log(3.0), rel=1e-15)
    assert offset_by(scored, score="s", scale=0.5, log=False)[0].offset == 1.5
    assert offset_by(replace(scored, offset=1.0), score="s", scale=0.5, log=False)[0].offset == 2.5


def test_a_logarithmic_offset_needs_a_gap():
    for high, low in ((2.0, 5.0), (2.0, 2.0)):
        assert offset_by(record({"s": high}, {"s": low}, prob=1.0), score="s") == ()


def test_weighted_scores_are_summed_for_every_candidate():
    (known,) = weighted(record({"a": 1.0, "b": 10.0}, {"a": 2.0, "b": -10.0}), scores={"a": 0.5, "b": 0.1}, into="margin")
    assert [c.scores["margin"] for c in known.candidates] == [1.5, 0.0]
    assert known.candidates[0].scores["b"] == 10.0
    with pytest.raises(RecordError, match=r"table row 0: no score `c`"):
        weighted(known, scores={"c": 1.0}, into="margin")


@pytest.mark.parametrize(
    ("ranks", "shares"),
    [
        ([1.0, 2.0, 3.0], [1.0, 0.5, 0.0]),
        ([5.0, 1.0, 5.0], [0.25, 1.0, 0.25]),  # the two last tie: each beats half of the other
        ([1.0, None, 2.0], [1.0, None, 0.0]),
        ([2.0, 2.0], [0.5, 0.5]),
    ],
)
def test_a_candidate_gains_the_share_of_the_others_that_it_beats(ranks, shares):
    (known,) = share_beaten(record(*[{}] * len(ranks), ranks=ranks))
    assert [c.scores.get("gains") for c in known.candidates] == shares


def test_the_gains_of_a_labelled_pair_are_its_chances():
    (known,) = share_beaten(record({}, {}, prob=0.75), into="chance")
    assert [c.scores for c in known.candidates] == [{"chance": 0.75}, {"chance": 0.25}]
    assert share_beaten(record({}, {})) == (record({}, {}),)


def test_the_gains_of_several_scores_are_their_mean():
    # by s: 1, 1/2, 0; by t: 0, then twice (1 + 0.5) / 2 of a win and a tie
    (known,) = share_beaten(record({"s": 9.0, "t": 1.0}, {"s": 8.0, "t": 5.0}, {"s": 7.0, "t": 5.0}), scores=["s", "t"], into="wins")
    assert [c.scores["wins"] for c in known.candidates] == [0.5, 0.625, 0.375]
    assert texts(list_of(known, candidates=2, score="wins")) == [("10", 1.0)]


def test_shares_of_a_whole_ranking_stay_when_it_becomes_pairs():
    made = apply([record({}, {}, {}, ranks=[1.0, 2.0, 3.0])], [share_beaten, partial(pairs, how="adjacent")])
    assert [[c.scores["gains"] for c in own.candidates] for own in made] == [[1.0, 0.5], [0.5, 0.0]]


def test_the_lowest_share_is_kept_by_the_first_candidates_score():
    records = [record({"ches": value}, {"ches": -99.0}, prob=1.0, id=str(value)) for value in (3.0, -1.0, 2.0, 0.0, 5.0)]
    most = threshold(records, "ches", 0.4)  # two of five
    assert most == 0.0
    assert [own.id for own in apply(records, [partial(lowest, score="ches", share=0.4, most=most)])] == ["-1.0", "0.0"]
    assert threshold(records, "ches", 1.0) == 5.0
    assert threshold(records, "ches", 0.01) == -1.0  # at least one
    with pytest.raises(ConfigError, match=r"share is 1\.5"):
        lowest(records[0], score="ches", share=1.5, most=0.0)


def test_a_pair_is_trained_towards_both_of_its_scores():
    high, low = reward_conditioned(record({"s": 9.0}, {"s": 2.5}, prob=0.8), score="s", template="Earn {goal}.")
    assert (high.id, high.prompt, *texts([high])[0]) == ("r/high", "Earn 9.\n\na star", "01", 0.8)
    assert (low.id, low.prompt, *texts([low])[0]) == ("r/low", "Earn 2.5.\n\na star", "10", 0.8)


def test_the_goal_of_a_conversation_is_a_system_message():
    turns = (Message("user", "a star"),)
    high, _ = reward_conditioned(record({"s": 9.0}, {"s": 2.0}, prob=1.0, messages=turns), score="s", template="Earn {goal}.")
    assert high.messages == (Message("system", "Earn 9."), *turns)
    assert high.prompt == "a star"
    told = (Message("system", "Be brief."), *turns)
    _, low = reward_conditioned(record({"s": 9.0}, {"s": 2.0}, prob=1.0, messages=told), score="s", template="Earn {goal}.")
    assert low.messages == (Message("system", "Be brief.\n\nEarn 2."), *turns)


def test_pairs_whose_score_disagrees_with_the_preference_have_no_goal():
    for high, low in ((1.0, 2.0), (2.0, 2.0)):
        assert reward_conditioned(record({"s": high}, {"s": low}, prob=1.0), score="s") == ()
    oriented = apply([record({"s": 1.0}, {"s": 2.0}, prob=0.0)], [orient, partial(reward_conditioned, score="s")])
    assert [texts([own])[0] for own in oriented] == [("10", 1.0), ("01", 1.0)]


def test_a_goal_needs_a_place_in_the_template_and_a_prompt_of_the_record():
    known = record({"s": 9.0}, {"s": 2.0}, prob=1.0)
    with pytest.raises(ConfigError, match=r"'Earn much'.*{goal}"):
        reward_conditioned(known, score="s", template="Earn much")
    own = replace(known, candidates=tuple(replace(c, prompt="a ring") for c in known.candidates))
    with pytest.raises(RecordError, match=r"table row 0: .*prompts"):
        reward_conditioned(own, score="s")
