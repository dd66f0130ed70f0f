"""Transforms by hand, and what all of them keep."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffalign.core.errors import ConfigError, RecordError
from diffalign.data.records import Candidate, Record
from diffalign.data.transforms import TRANSFORMS, apply, by_user, drop_ties, flip_labels, invert, min_margin, orient, pairs, soft_label
from diffalign.data.transforms.strength import typical_gaps

A, B = Candidate(text="a", scores={"clip": 0.2, "hps": 21.0}), Candidate(text="b", scores={"clip": 0.6, "hps": 20.0})
probs = st.floats(0.0, 1.0)


def pair(prob: float | None = 1.0, **fields) -> Record:
    return Record(**{"id": "r", "prompt": "p", "candidates": (A, B), "prob": prob, "source": "votes.csv row 3", **fields})


def ranking(*ranks: float | None) -> Record:
    """Return a record whose candidates are called c0, c1, ... with these ranks."""
    shown = tuple(Candidate(text=f"c{index}", rank=rank) for index, rank in enumerate(ranks))
    return Record("r", "p", shown, source="rank.json row 0")


def order(records: tuple[Record, ...]) -> list[tuple[str, str, float | None]]:
    return [(record.candidates[0].text or "", record.candidates[1].text or "", record.prob) for record in records]


@pytest.mark.parametrize(
    ("prob", "expected"),
    [(1.0, ("a", "b", 1.0)), (0.0, ("b", "a", 1.0)), (0.25, ("b", "a", 0.75)), (0.5, ("a", "b", 0.5)), (0.75, ("a", "b", 0.75))],
)
def test_orient_puts_the_preferred_candidate_first(prob, expected):
    assert order(orient(pair(prob))) == [expected]


@given(probs)
def test_orient_changes_nothing_the_second_time_and_keeps_the_preference(prob):
    (once,) = orient(pair(prob))
    assert once.prob is not None
    assert once.prob >= 0.5
    assert orient(once) == (once,)
    assert once.prob == pytest.approx(max(prob, 1 - prob))


@given(probs)
def test_invert_exchanges_the_candidates_keeps_the_label_and_undoes_itself(prob):
    (inverted,) = invert(pair(prob))
    assert inverted == pair(prob, candidates=(B, A))
    assert invert(inverted) == (pair(prob),)


def test_inverted_and_oriented_pairs_prefer_what_was_dispreferred():
    (prefers_b,) = orient(pair(0.0))
    assert order(invert(prefers_b)) == [("a", "b", 1.0)]


def test_drop_ties_drops_exact_ties_alone():
    assert drop_ties(pair(0.5)) == ()
    near = pair(math.nextafter(0.5, 1.0))
    assert drop_ties(near) == (near,)
    assert drop_ties(pair(0.0)) == (pair(0.0),)


def test_soft_label_is_the_softmax_of_min_max_scaled_scores():
    # clip in [0, 0.8]: 0.2 -> 0.25 and 0.6 -> 0.75; p = e^0.25 / (e^0.25 + e^0.75) = 1 / (1 + e^0.5) = 0.3775406688
    (soft,) = soft_label(pair(1.0), score="clip", low=0.0, high=0.8)
    assert soft.prob == pytest.approx(math.exp(0.25) / (math.exp(0.25) + math.exp(0.75)), abs=1e-15)
    assert soft.prob == pytest.approx(0.3775406688, abs=1e-10)
    # at temperature 0.1 the gap of -0.5 becomes -5: 1 / (1 + e^5) = 0.0066928509
    (sharp,) = soft_label(pair(None), score="clip", low=0.0, high=0.8, temperature=0.1)
    assert sharp.prob == pytest.approx(0.0066928509, abs=1e-10)
    # hps in [17, 22]: 21 -> 0.8 and 20 -> 0.6; 1 / (1 + e^-0.2) = 0.5498339973
    (other,) = soft_label(pair(), score="hps", low=17.0, high=22.0)
    assert other.prob == pytest.approx(0.5498339973, abs=1e-10)


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6), st.floats(1e-3, 10.0))
def test_soft_label_of_exchanged_candidates_is_the_complement(first, second, temperature):
    shown = (Candidate(text="a", scores={"s": first}), Candidate(text="b", scores={"s": second}))
    soften = partial(soft_label, score="s", low=0.0, high=1.0, temperature=temperature)
    (one,), (other,) = soften(pair(candidates=shown)), soften(pair(candidates=shown[::-1]))
    assert one.prob + other.prob == pytest.approx(1.0)
    assert 0.0 <= one.prob <= 1.0


def test_soft_label_refuses_what_it_cannot_scale():
    with pytest.raises(RecordError, match=r"votes\.csv row 3: .*`pick`.*\['clip', 'hps'\]"):
        soft_label(pair(), score="pick", low=0.0, high=1.0)
    with pytest.raises(RecordError, match="expected two candidates, found 3"):
        soft_label(pair(candidates=(A, B, A)), score="clip", low=0.0, high=1.0)
    with pytest.raises(ConfigError, match=r"high \(1.0\) must be above low \(1.0\)"):
        soft_label(pair(), score="clip", low=1.0, high=1.0)
    for temperature in (0.0, -1.0, math.nan):
        with pytest.raises(ConfigError, match="temperature is"):
            soft_label(pair(), score="clip", low=0.0, high=1.0, temperature=temperature)


def test_pairs_of_a_ranking_with_gaps_and_ties():
    ranked = ranking(5.0, 1.0, 3.0, 3.0)  # c1 < c2 = c3 < c0
    assert order(pairs(ranked)) == [
        ("c1", "c2", 1.0),
        ("c1", "c3", 1.0),
        ("c1", "c0", 1.0),
        ("c2", "c3", 0.5),
        ("c2", "c0", 1.0),
        ("c3", "c0", 1.0),
    ]
    assert order(pairs(ranked, how="adjacent")) == [("c1", "c2", 1.0), ("c2", "c3", 0.5), ("c3", "c0", 1.0)]
    assert order(pairs(ranked, how="best_worst")) == [("c1", "c0", 1.0)]


def test_pairs_pass_over_candidates_without_a_rank():
    assert order(pairs(ranking(2.0, None, 1.0))) == [("c2", "c0", 1.0)]
    assert pairs(ranking(None, None)) == ()


@pytest.mark.parametrize("how", ["all", "best_worst", "adjacent"])
def test_one_ranked_candidate_makes_no_pair(how):
    assert pairs(ranking(1.0), how=how) == ()


def test_a_ranking_of_equals_makes_ties_in_the_order_given():
    assert order(pairs(ranking(1.0, 1.0), how="best_worst")) == [("c0", "c1", 0.5)]


def test_pairs_by_a_score_put_the_higher_one_first():
    assert order(pairs(pair(None), score="clip")) == [("b", "a", 1.0)]
    assert order(pairs(pair(None), score="hps")) == [("a", "b", 1.0)]
    with pytest.raises(RecordError, match="no score `pick`"):
        pairs(pair(None), score="pick")


def test_a_labelled_pair_is_a_pair_already():
    assert pairs(pair(0.3)) == (pair(0.3),)


def test_an_unknown_way_of_pairing_is_refused():
    with pytest.raises(ConfigError, match=r"`how` is `best`.*best_worst"):
        pairs(ranking(1.0, 2.0), how="best")  # pyright: ignore[reportArgumentType]


@given(st.lists(st.integers(1, 4) | st.none(), min_size=1, max_size=6))
def test_pairs_are_all_of_them_with_ids_of_their_own_and_never_worse_first(ranks):
    record = ranking(*ranks)
    count = sum(rank is not None for rank in ranks)
    made = {how: pairs(record, how=how) for how in ("all", "best_worst", "adjacent")}
    assert len(made["all"]) == count * (count - 1) // 2
    assert len(made["best_worst"]) == (count > 1)
    assert len(made["adjacent"]) == max(count - 1, 0)
    for records in made.values():
        assert len({new.id for new in records}) == len(records)
        for new in records:
            first, second = (candidate.rank for candidate in new.candidates)
            assert new.prob == (0.5 if first == second else 1.0)
            assert first <= second
            assert new.candidates[0] is not new.candidates[1]
            assert new.check().source == record.source
    each = Counter(candidate.text for new in made["all"] for candidate in new.candidates)
    assert set(each.values()) <= {count - 1}


def test_by_user_keeps_rows_with_a_user_or_with_a_listed_one():
    ann, bob, nobody = pair(user="ann"), pair(user="bob"), pair()
    assert [record.user for record in apply([ann, bob, nobody], [by_user])] == ["ann", "bob"]
    assert [record.user for record in apply([ann, bob, nobody], [partial(by_user, only=["bob", "eve"])])] == ["bob"]


def test_min_margin_keeps_clear_preferences():
    # |2 * 0.75 - 1| = 0.5
    assert min_margin(pair(0.75), margin=0.5) == (pair(0.75),)
    assert min_margin(pair(0.25), margin=0.5) == (pair(0.25),)
    assert min_margin(pair(0.75), margin=0.51) == ()
    # hps: |21 - 20| = 1
    assert min_margin(pair(), margin=1.0, score="hps") == (pair(),)
    assert min_margin(pair(), margin=1.01, score="hps") == ()
    with pytest.raises(RecordError, match="expected two candidates, found 1"):
        min_margin(pair(candidates=(A,)), margin=0.0, score="hps")


def ids(count: int, prob: float = 1.0) -> list[Record]:
    return [pair(prob, id=f"votes.csv:{number}") for number in range(count)]


def test_flip_labels_turns_round_a_share_of_the_ids_that_repeats():
    records = ids(10_000)
    flip = partial(flip_labels, share=0.2)
    flipped = {record.id for record in apply(records, [flip]) if record.prob == 0.0}
    # three standard deviations of a binomial share: 3 * sqrt(0.2 * 0.8 / 10,000) = 0.012
    assert len(flipped) / len(records) == pytest.approx(0.2, abs=0.012)
    assert {record.id for record in apply(reversed(records), [flip]) if record.prob == 0.0} == flipped
    other = {record.id for record in apply(records, [partial(flip, seed=1)]) if record.prob == 0.0}
    # two independent draws agree on 0.2 * 0.2 of the ids
    assert len(flipped & other) / len(records) == pytest.approx(0.04, abs=0.006)


def test_a_larger_share_flips_what_a_smaller_one_does_and_more():
    small, large = (
        {record.id for record in apply(ids(2000), [partial(flip_labels, share=share)]) if record.prob == 0.0} for share in (0.1, 0.3)
    )
    assert small < large


def test_no_share_flips_nothing_a_whole_share_everything_and_ties_stay_ties():
    assert [record.prob for record in apply(ids(50), [partial(flip_labels, share=0.0)])] == [1.0] * 50
    assert [record.prob for record in apply(ids(50), [partial(flip_labels, share=1.0)])] == [0.0] * 50
    assert [record.prob for record in apply(ids(50, prob=0.5), [partial(flip_labels, share=1.0)])] == [0.5] * 50
    for share in (-0.1, 1.1):
        with pytest.raises(ConfigError, match=r"share is .*\[0, 1\]"):
            flip_labels(pair(), share=share)


def test_orient_after_flip_labels_prefers_the_other_candidate():
    assert order(tuple(apply([pair(1.0)], [partial(flip_labels, share=1.0), orient]))) == [("b", "a", 1.0)]
    assert order(tuple(apply([pair(0.0)], [partial(flip_labels, share=1.0), orient]))) == [("a", "b", 1.0)]


@pytest.mark.parametrize("name", ["orient", "invert", "drop_ties"])
@pytest.mark.parametrize(("record", "found"), [(pair(None), "2 candidates and no label"), (ranking(1.0, 2.0, 3.0), "3 candidates")])
def test_transforms_of_labelled_pairs_refuse_anything_else(name, record, found):
    with pytest.raises(RecordError, match=rf"{record.source}: .*{found}.*`pairs`"):
        TRANSFORMS[name](record)


def test_singles_are_liked_or_disliked_by_label_or_score_and_what_is_neither_is_left_out():
    singles = TRANSFORMS["singles"]
    lone = pair(0.0, candidates=(A,))
    assert singles(lone) == (lone,)
    assert singles(pair(None, candidates=(A,))) == ()  # no label, no vote
    assert [(r.id, [c.text for c in r.candidates], r.prob) for r in singles(pair(0.25, id="v"))] == [
        ("v/0", ["a"], 0.25),
        ("v/1", ["b"], 0.75),
    ]
    stars = pair(None, candidates=tuple(replace(A, scores={"rating": stars}) for stars in (5.0, 3.0, 1.0)))
    assert [r.prob for r in singles(stars, score="rating", liked=4.0, disliked=2.0)] == [1.0, 0.0]
    assert [r.prob for r in singles(stars, score="rating", liked=3.0)] == [1.0, 1.0, 0.0]
    assert [(r.id, r.prob) for r in singles(pair(0.25, id="v"), score=None)] == [("v/0", None), ("v/1", None)]
    assert [r.candidates for r in singles(stars, score=None)] == [(candidate,) for candidate in stars.candidates]
    with pytest.raises(ConfigError, match="disliked"):
        singles(stars, score="rating", liked=2.0, disliked=3.0)


KEPT = {"preferred": "a", "prompt_only": ""}  # all others keep both candidates
CONSTANTS = {
    "combined": {"scores": ["clip", "hps"], "how": {"log_sigmoid": {"centres": {"clip": 0.4, "hps": 20.5}}}, "into": "reward"},
    "advantage": {"score": "hps"},
    "soft_label": {"score": "clip", "low": 0.0, "high": 1.0},
    "min_margin": {"margin": 0.3},
    "flip_labels": {"share": 0.5},
    "by_factuality": {"score": "flag"},
    "by_model": {"order": ["big", "small"]},
    "list_of": {"candidates": 2, "score": "hps"},
    "lowest": {"score": "hps", "most": 20.5},
    "relabel": {"score": "hps"},
    "by_strength": {"scores": ["clip", "hps"], "how": "soften"},
    "by_direction": {"directions": {"up": {"clip": 0.6, "hps": 0.8}, "down": {"hps": -1.0}}},
    "semantic_weight": {"score": "clip"},
    "offset_by": {"score": "hps"},
    "weighted": {"scores": {"hps": 0.5}, "into": "margin"},
    "reward_conditioned": {"score": "hps"},
}
CHANGED = {
    "semantic_weight": ["weight"],
    "offset_by": ["offset"],
    "reward_conditioned": ["id", "prompt"],
    "by_direction": ["id", "user"],
}  # besides order and label
ORIENTED = ("lowest", "offset_by", "preferred", "reward_conditioned", "semantic_weight")  # these refuse a pair that is not
SCORED = ("weighted", "share_beaten", "combined", "advantage")  # these give candidates new scores


@pytest.mark.parametrize("name", sorted(TRANSFORMS.keys() - {"singles"}))  # which takes candidates apart
@given(prob=probs, user=st.none() | st.just("ann"), key=st.text(min_size=1, max_size=5))
def test_every_transform_keeps_the_candidates_and_everything_else(name, prob, user, key):
    flags = ((A, 1.0, "small"), (B, 0.0, "big"))
    shown = tuple(replace(c, scores={**c.scores, "flag": flag}, model=model) for c, flag, model in flags)
    label = max(prob, 1.0 - prob) if name in ORIENTED else prob
    record = pair(label, user=user, id=key, meta={"k": "v"}, candidates=shown)
    for new in TRANSFORMS[name](record, **CONSTANTS.get(name, {})):
        assert Counter(candidate.text for candidate in new.candidates) == Counter(KEPT.get(name, "ab"))
        assert name in SCORED or all(candidate in record.candidates for candidate in new.candidates)
        own = {field: getattr(record, field) for field in ("candidates", "prob", *CHANGED.get(name, ()))}
        assert replace(new, **own) == record
        assert new.check() is new


def test_apply_expands_and_drops_in_order():
    records = [ranking(1.0, 2.0, 2.0), ranking(1.0), replace(ranking(1.0, 2.0), id="s")]
    assert [record.id for record in apply(records, [pairs, drop_ties])] == ["r/0-1", "r/0-2", "s/0-1"]
    assert list(apply(records, [])) == records


def test_an_advantage_is_what_a_score_exceeds_the_mean_of_its_record_by():
    (made,) = TRANSFORMS["advantage"](pair(), score="clip", eps=0.0)  # 0.2 and 0.6: mean 0.4, deviation 0.2
    assert [c.scores["advantage"] for c in made.candidates] == pytest.approx([-1.0, 1.0])
    assert TRANSFORMS["advantage"](pair(candidates=(A, A)), score="clip") == ()


def test_strength_is_the_mean_lead_over_an_ensemble_and_repairs_labels():
    strength = TRANSFORMS["by_strength"]
    # Leads of the first: -0.4 in units of 0.2 is -2, 1 in units of 0.5 is 2, -3 in units of 1 is -3: mean -1, variance (1 + 9 + 4) / 2
    shown = [replace(A, scores={"a": 0.2, "b": 21.0, "c": 0.0}), replace(B, scores={"a": 0.6, "b": 20.0, "c": 3.0})]
    made = partial(strength, scores=["a", "b", "c"], units={"a": 0.2, "b": 0.5, "c": 1.0})
    first, second = (pair(prob, candidates=tuple(shown)) for prob in (1.0, 0.0))
    assert made(first, how="flip") == (replace(first, prob=0.0),)
    assert made(first, how="flip", sure=1.0) == (first,)  # one deviation, sqrt 7, is more than 1
    assert made(first, how="drop") == ()
    assert made(second, how="drop") == made(second, how="flip") == (second,)
    # One label of five is wrong: odds 4 times e^-1 that the first label is right, e^1 for the second
    (doubted,), (sure,) = made(first, how="soften"), made(second, how="soften")
    assert doubted.prob == pytest.approx(4.0 / (4.0 + math.e))
    assert sure.prob == pytest.approx(1.0 / (1.0 + 4.0 * math.e))
    # The margin is of candidate 0 over candidate 1, whatever the label, and comes on top
    assert [made(replace(r, offset=0.5), how="margin", scale=2.0)[0].offset for r in (first, second)] == [-1.5, -1.5]
    tie = pair(0.5, candidates=tuple(shown))
    assert all(made(tie, how=how) == (tie,) for how in ("flip", "drop", "soften", "margin"))
    with pytest.raises(ConfigError, match="temperature 0"):
        made(first, how="soften", temperature=0.0)
    with pytest.raises(RecordError, match="no score `d`"):
        strength(first, scores=["d"], how="flip")


def test_typical_gaps_are_root_mean_squares_of_the_data():
    both = [pair(candidates=(replace(A, scores={"a": gap, "b": 7.0}), replace(B, scores={"a": 0.0, "b": 7.0}))) for gap in (3.0, -4.0)]
    assert typical_gaps(both, ["a", "b"]) == {"a": pytest.approx(math.sqrt(12.5)), "b": 1.0}


def test_a_pair_is_labelled_along_every_direction_with_its_name_as_the_user():
    # Gaps of the first: clip -0.4, hps +1
    directions = {"clip": {"clip": 2.0}, "both": {"clip": 1.0, "hps": 0.8}, "even": {"hps": 0.0}}
    assert [(r.id, r.user, r.prob) for r in TRANSFORMS["by_direction"](pair(None), directions=directions)] == [
        ("r/clip", "clip", 0.0),
        ("r/both", "both", 1.0),
        ("r/even", "even", 0.5),
    ]
    with pytest.raises(ConfigError, match="by_direction"):
        TRANSFORMS["by_direction"](pair(), directions={"none": {}})


def test_scores_are_combined_as_training_online_combines_rewards():
    how = {"log_sigmoid": {"centres": {"clip": 0.2, "hps": 21.0}}}
    (made,) = TRANSFORMS["combined"](pair(), scores=["clip", "hps"], how=how, into="reward")
    assert made.candidates[0].scores["reward"] == pytest.approx(2.0 * math.log(0.5))
    with pytest.raises(ConfigError, match="which looks at all prompts at once"):
        TRANSFORMS["combined"](pair(), scores=["clip"], how="maxmin", into="reward")


def test_a_pair_by_its_models_is_labelled_by_their_order_alone():
    by_model = TRANSFORMS["by_model"]
    shown = tuple(replace(A, text=f"by {model}", model=model) for model in ("small", "other", "big", "middle", "big"))
    (made,) = by_model(pair(None, candidates=shown), order=["big", "middle", "small"])
    assert ([c.model for c in made.candidates], made.prob) == (["big", "small"], 1.0)
    assert by_model(pair(0.0, candidates=shown[:2]), order=["big", "small"]) == ()  # one of them alone
    for order in (["big"], ["big", "big"]):
        with pytest.raises(ConfigError, match="expected two or more models"):
            by_model(pair(None, candidates=shown), order=order)
    with pytest.raises(RecordError, match="put `offset_by` after"):
        by_model(replace(pair(1.0, candidates=shown[:3:2]), offset=1.0), order=["big", "small"])


def test_the_best_is_paired_with_each_other_candidate():
    made = pairs(ranking(2.0, 1.0, 2.0, 3.0), how="best_each")
    assert [(record.id, record.prob) for record in made] == [("r/0-1", 1.0), ("r/0-2", 1.0), ("r/0-3", 1.0)]
    assert {record.candidates[0].rank for record in made} == {1.0}


def test_scores_of_any_range_read_as_of_ten():
    conditioned = TRANSFORMS["reward_conditioned"]
    made = conditioned(Record("r", "p", (B, A), prob=1.0), score="clip", low=0.2, high=0.6)
    asked = [f"A careful judge should give the answer {goal} of 10 points.\n\np" for goal in (10, 0)]
    assert [record.prompt for record in made] == asked
    middle, _ = conditioned(Record("r", "p", (B, A), prob=1.0), score="clip", template="{goal}", low=-0.2, high=1.0)
    assert middle.prompt == "6.7\n\np"
    with pytest.raises(ConfigError, match="expected both"):
        conditioned(Record("r", "p", (B, A), prob=1.0), score="clip", low=0.2)
