"""What a config needs of its table is found, or refused by name, before any weight loads."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace

import pytest

from diffalign.core.errors import ConfigError, TableError
from diffalign.data.records import Candidate, Record
from diffalign.data.table import write_table
from diffalign.data.units import unit_of
from diffalign.methods.builders.data import open_dataset
from diffalign.methods.config import TrainConfig
from diffalign.methods.recipe import recipe_of
from diffalign.objectives import OBJECTIVES
from diffalign.objectives.base import Facts
from diffalign.train.align import train


@pytest.fixture
def needs(monkeypatch):
    """Say what the method's own objective needs."""

    def told(**needed):
        monkeypatch.setitem(OBJECTIVES, "dpo", replace(OBJECTIVES["dpo"], facts=Facts(**needed)))

    return told


def config(path, **fields):
    return TrainConfig(dataset_name=str(path), **fields)


def opened(config, kind="text"):
    return open_dataset(config, recipe_of(config, kind))


def ranking(number, *scores, ranks=None):
    ranks = ranks or [float(i + 1) for i in range(len(scores))]
    shown = tuple(Candidate(text=f"t{i}", scores=own, rank=rank) for i, (own, rank) in enumerate(zip(scores, ranks, strict=True)))
    return Record(f"r{number}", "p", shown, source=f"row {number}")


def columns(view):
    return dict(zip(view.columns, zip(*(entry.columns for entry in view.entries), strict=True), strict=True))


def test_a_table_of_texts_trains_a_language_model_alone(tmp_path):
    write_table(tmp_path / "t", [ranking(0, {}, {})])
    assert len(opened(config(tmp_path / "t"))) == 1
    assert len(opened(config(tmp_path / "t"), None)) == 1
    with pytest.raises(TableError, match="t: a table of texts"):
        opened(config(tmp_path / "t"), "image")


def test_a_column_is_read_from_the_score_that_the_config_names(tmp_path, needs):
    needs(columns=("gains",))
    write_table(tmp_path / "t", [ranking(0, {"a": 0.1, "b": 0.2}, {"a": 0.3, "b": 0.4})])
    assert columns(opened(config(tmp_path / "t", scores={"gains": "b"}))) == {"gains": ((0.2, 0.4),)}
    with pytest.raises(TableError, match=r"`gains`.*a, b.*\{gains: NAME\}"):
        opened(config(tmp_path / "t"))


def test_the_only_score_of_a_table_is_its_gains(tmp_path, needs):
    needs(columns=("gains",))
    write_table(tmp_path / "t", [ranking(0, {"likes": 5.0}, {"likes": 4.0})])
    assert columns(opened(config(tmp_path / "t"))) == {"gains": ((5.0, 4.0),)}


def test_ranks_give_gains_over_the_whole_ranking(tmp_path, needs):
    needs(columns=("gains",))
    write_table(tmp_path / "t", [ranking(0, {}, {}, {}, ranks=[2.0, 1.0, 3.0])])
    view = opened(config(tmp_path / "t"))  # pairs of ranks 1-2, 1-3, 2-3
    assert columns(view) == {"gains": ((1.0, 0.5), (1.0, 0.0), (0.5, 0.0))}


def test_gains_that_a_transform_makes_are_those_that_are_read(tmp_path, needs):
    needs(columns=("gains",))
    write_table(tmp_path / "t", [ranking(0, {"likes": 5.0}, {"likes": 4.0})])
    chain = ["pairs", {"weighted": {"scores": {"likes": 0.1}, "into": "gains"}}]
    assert columns(opened(config(tmp_path / "t", transforms=chain))) == {"gains": ((0.5, 0.4),)}
    assert columns(opened(config(tmp_path / "t", transforms=["share_beaten", "pairs"]))) == {"gains": ((1.0, 0.0),)}


def test_an_objective_of_more_candidates_than_the_records_have_is_refused(tmp_path, needs):
    needs(candidates=3)
    write_table(tmp_path / "t", [ranking(0, {}, {}, {})])
    with pytest.raises(TableError, match=r"`dpo` .*3 candidates.*found 2"):
        opened(config(tmp_path / "t"))
    assert len(opened(config(tmp_path / "t", transforms=[{"list_of": {"candidates": 3}}]))) == 1


def test_a_single_candidate_is_no_pair(tmp_path):
    write_table(tmp_path / "t", [ranking(0, {}, {})])
    with pytest.raises(TableError, match=r"`dpo` .*2 candidates.*found 1.*`pairs`"):
        opened(config(tmp_path / "t", transforms=["pairs", "preferred"]))


def test_records_of_different_numbers_of_candidates_are_refused(tmp_path):
    labelled = [replace(ranking(number, *[{}] * count), prob=1.0) for number, count in enumerate((2, 3))]
    write_table(tmp_path / "t", labelled)
    with pytest.raises(TableError, match=r"2 and 3 candidates.*`pairs`, or {list_of"):
        opened(config(tmp_path / "t", transforms=[]))


def test_lists_whose_best_two_tie_have_something_to_say(tmp_path):
    write_table(tmp_path / "t", [ranking(0, {}, {}, {}, ranks=[1.0, 1.0, 2.0])])
    assert opened(config(tmp_path / "t", transforms=[{"list_of": {"candidates": 3}}])).entries[0].prob == 0.5


def test_a_list_without_a_number_takes_as_many_candidates_as_most_records_have(tmp_path):
    write_table(tmp_path / "t", [ranking(n, *[{}] * count, ranks=[3.0, 1.0, 2.0, 4.0][:count]) for n, count in enumerate((4, 3, 2, 3))])
    view = opened(config(tmp_path / "t", transforms=["list_of"]))
    assert [(entry.id[-1], entry.order) for entry in view.entries] == [("0", (1, 2, 0)), ("1", (1, 2, 0)), ("3", (1, 2, 0))]


def test_the_units_of_strength_are_the_typical_gaps_of_the_data(tmp_path):
    shown = [(3.0, 0.0, 1.0), (0.0, 4.0, 1.0)]  # scores of two candidates, the first preferred: gaps 3 and -4, typical sqrt 12.5
    pairs = [
        Record(
            f"r{n}",
            "p",
            tuple(Candidate(text=t, scores={"a": s}) for t, s in zip("xy", own[:2], strict=True)),
            prob=own[2],
            source=f"row {n}",
        )
        for n, own in enumerate(shown)
    ]
    table = write_table(tmp_path / "t", pairs)
    chain = [{"by_strength": {"scores": ["a"], "how": "soften", "wrong": 0.5}}]
    view = opened(config(table.path, method="dpo", transforms=chain))
    assert [entry.prob for entry in view.entries] == pytest.approx([1 / (1 + math.exp(-gap / math.sqrt(12.5))) for gap in (3.0, -4.0)])


def test_the_threshold_of_lowest_is_that_of_the_share_after_earlier_transforms(tmp_path):
    rows = [ranking(n, {"ches": value}, {"ches": -9.0}) for n, value in enumerate((4.0, 1.0, 3.0, 2.0))]
    write_table(tmp_path / "t", rows)
    chain = ["pairs", {"lowest": {"score": "ches", "share": 0.5}}]
    assert [entry.id for entry in opened(config(tmp_path / "t", transforms=chain)).entries] == ["r1/0-1", "r3/0-1"]
    first = opened(config(tmp_path / "t", transforms=chain, max_train_samples=2))  # of 4 and 1
    assert [entry.id for entry in first.entries] == ["r1/0-1"]
    given = ["pairs", {"lowest": {"score": "ches", "most": 3.0}}]
    assert len(opened(config(tmp_path / "t", transforms=given))) == 3


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"lowest": {}}, "transform `lowest` needs `score`"),
        ({"weighted": {"scores": {"a": 1.0}}}, "transform `weighted` needs `into`"),
        ({"relabel": {"scor": "a"}}, "takes no `scor`. Did you mean `score`"),
    ],
)
def test_transforms_with_wrong_constants_are_refused_before_the_import(tmp_path, spec, message):
    with pytest.raises(ConfigError, match=message):
        train(config(tmp_path / "nothing there", transforms=[spec], output_dir=str(tmp_path / "run")))


def test_a_single_score_ranks_candidates_where_gains_are_chances(tmp_path):
    rows = [ranking(0, {"pickscore": 22.0}, {"pickscore": 21.0}, {"pickscore": 21.5}, ranks=[1.0, 3.0, 2.0])]
    write_table(tmp_path / "t", rows)
    for name in ("lipo", "rank_dpo"):
        chosen = config(tmp_path / "t", objective={name: {"beta": 0.1}}, transforms=[{"list_of": {"candidates": 3}}])
        assert columns(opened(chosen)) == {"gains": ((1.0, 0.5, 0.0),)}
    chosen = config(tmp_path / "t", objective={"infonca": {"beta": 0.1}}, transforms=[{"list_of": {"candidates": 3}}])
    assert columns(opened(chosen)) == {"gains": ((22.0, 21.5, 21.0),)}  # rewards of any scale


@pytest.mark.parametrize("objective", ["lipo", "rank_dpo", "sppo"])
def test_gains_that_are_no_chances_are_refused_with_their_cure(tmp_path, objective):
    write_table(tmp_path / "t", [ranking(0, {"pickscore": 22.0, "share": 0.0}, {"pickscore": 21.0, "share": 1.0})])
    named = {name: config(tmp_path / "t", objective={objective: {"beta": 0.1}}, scores={"gains": name}) for name in ("pickscore", "share")}
    with pytest.raises(TableError, match=r"\[0, 1\].*`pickscore` is 22 in r0/0-1.*share_beaten"):
        opened(named["pickscore"])
    assert columns(opened(named["share"])) == {"gains": ((0.0, 1.0),)}
    cured = replace(named["pickscore"], scores={}, transforms=[{"share_beaten": {"scores": ["pickscore"]}}, "pairs"])
    assert columns(opened(cured)) == {"gains": ((1.0, 0.0),)}


@pytest.mark.parametrize("objective", ["exo", "nca"])
def test_lists_without_gains_are_refused_where_only_pairs_have_labels(tmp_path, objective):
    write_table(tmp_path / "t", [ranking(0, {"s": 3.0}, {"s": 2.0}, {"s": 1.0})])
    listed = config(tmp_path / "t", objective={objective: {"beta": 0.1}}, transforms=[{"list_of": {"candidates": 3}}])
    with pytest.raises(TableError, match=rf"`{objective}` .*`gains`.*3 candidates.*{{gains"):
        opened(listed)
    assert columns(opened(replace(listed, scores={"gains": "s"}))) == {"gains": ((3.0, 2.0, 1.0),)}
    shared = replace(listed, transforms=["share_beaten", *listed.transforms])
    assert columns(opened(shared)) == {"gains": ((1.0, 0.5, 0.0),)}
    assert opened(replace(listed, transforms=["pairs"])).columns == ()


@pytest.mark.parametrize("objective", ["aot", "aot_unpaired"])
@pytest.mark.parametrize("transform", ["semantic_weight", "offset_by"])
def test_losses_of_ranks_refuse_weights_and_offsets_of_records(tmp_path, objective, transform):
    write_table(tmp_path / "t", [ranking(0, {"s": 3.0}, {"s": 2.0})])
    chosen = config(tmp_path / "t", objective={objective: {"beta": 0.1}}, transforms=["pairs"])
    assert len(opened(chosen)) == 1
    with pytest.raises(TableError, match=f"`{objective}` .*ranks"):
        opened(replace(chosen, transforms=["pairs", {transform: {"score": "s"}}]))


@pytest.mark.parametrize(
    ("objective", "column", "message"),
    [
        ("lipo", "gain", r"objective `lipo` reads no `gain`\. Did you mean `gains`\?"),
        ("exo", "gians", r"objective `exo` reads no `gians`\. Did you mean `gains`\?"),
        ("dpo", "gains", r"objective `dpo` reads no `gains`\. It reads none"),
    ],
)
def test_a_score_for_a_column_that_nothing_reads_is_refused_before_the_import(tmp_path, objective, column, message):
    with pytest.raises(ConfigError, match=message):
        train(
            config(tmp_path / "nothing there", objective={objective: {"beta": 0.1}}, scores={column: "s"}, output_dir=str(tmp_path / "run"))
        )


def words(folder, label):
    """Write a file of text pairs and return its name."""
    rows = [{"prompt": f"p{i}", "chosen": f"yes {i}", "rejected": f"no {i} {label}"} for i in range(3)]
    (folder / "votes.json").write_text(json.dumps(rows))
    return folder / "votes.json"


def test_a_file_that_did_not_change_keeps_the_caches_of_the_run_that_is_overwritten(tmp_path):
    run = tmp_path / "run"
    for label, kept in (("first", False), ("first", True), ("second", False)):
        (run / ".replaced").mkdir(parents=True, exist_ok=True)
        if (run / "data").exists():
            (run / "data").rename(run / ".replaced" / "data")  # as the claim of the folder moves it
        view = opened(config(words(tmp_path, label), output_dir=str(run)))
        made = view.table.path / "cache" / "latents.npy"
        assert (label, made.exists()) == (label, kept)
        made.parent.mkdir(exist_ok=True)
        made.write_bytes(b"numbers")
        shutil.rmtree(run / ".replaced")


def test_a_table_with_a_shortcut_is_warned_of_once_before_training(tmp_path, caplog):
    shown = [(Candidate(text="x" * (number + 2)), Candidate(text="x")) for number in range(24)]
    table = write_table(tmp_path / "t", [Record(f"r{i}", "p", pair, prob=1.0, source=f"row {i}") for i, pair in enumerate(shown)])
    opened(config(table.path))
    assert [("length" in line, str(table.path) in line) for line in caplog.messages if "24 pairs" in line] == [(True, True)]


def test_constants_of_another_unit_than_the_table_s_scores_are_refused_with_the_cure(tmp_path):
    cosines = {"low": 0.11543526500463486, "high": 0.28201571106910706}  # SmPO's, over Pick-a-Pic v2
    for name, (scores, constants, cure) in {
        "100 x cosine": ((17.0, 24.0), cosines, "divide the scores by 100"),
        "shares": ((0.0, 1.0), cosines, "leave out low and high"),
        "cosines": ((0.21, 0.24), {"low": 17.0, "high": 24.0}, "write 0.17 and 0.24"),
        "cosines of cosines": ((0.05, 0.30), cosines, None),
        "its own range": ((17.0, 24.0), {}, None),
    }.items():
        table = write_table(tmp_path / name, [ranking(0, {"pickscore": scores[0]}, {"pickscore": scores[1]})])
        asked = config(table.path, method="dpo", transforms=["pairs", {"soft_label": {"score": "pickscore", **constants}}, "orient"])
        if cure is None:
            assert len(opened(asked)) == 1, name
            continue
        with pytest.raises(ConfigError) as caught:
            opened(asked)
        assert cure in str(caught.value), name
        assert f"{scores[0]:g} to {scores[1]:g}" in str(caught.value), name


def test_a_prompt_says_of_10_points_where_the_scores_are(tmp_path):
    for name, (scores, holds) in {"points": ((9.0, 2.0), True), "cosines": ((0.2, 0.1), False), "percent": ((24.0, 17.0), False)}.items():
        table = write_table(tmp_path / name, [ranking(0, {"s": scores[0]}, {"s": scores[1]})])
        rows = config(table.path, method="dpo", transforms=["pairs", "orient", {"reward_conditioned": {"score": "s"}}])
        own = replace(rows, transforms=["pairs", "orient", {"reward_conditioned": {"score": "s", "template": "Earn {goal}."}}])
        assert len(opened(own)) == 2, name
        if holds:
            assert len(opened(rows)) == 2, name
            continue
        with pytest.raises(ConfigError, match="of 10 points"):
            opened(rows)


def test_a_score_has_the_unit_of_its_scorer_or_of_the_columns_that_it_was_read_from(tmp_path):
    for (manifest, score), unit in {
        ("scorer", 22.0): "100 x cosine",
        ("reader", 0.22): "cosine",
        ("reader", 22.0): None,
        ("nobody", 0.22): None,
    }.items():
        facts = {
            "scorer": {"scorers": [{"name": "pickscore", "unit": "100 x cosine"}]},
            "reader": {"reader": "pickapic"},
            "nobody": {"scorers": [{"name": "pickscore"}]},  # as older versions wrote it
        }[manifest]
        table = write_table(tmp_path / "t", [ranking(0, {"pickscore": score}, {"pickscore": score})], overwrite=True, **facts)
        assert unit_of(table.manifest, "pickscore") == unit, (manifest, score)


def test_votes_on_one_candidate_train_unpaired_objectives_and_nothing_disliked_is_trained_as_liked(tmp_path, caplog):
    lone = [Record(f"v{n}", f"p{n}", (Candidate(text=f"t{n}"),), prob=float(n % 2), source=f"row {n}") for n in range(6)]
    shared = [{"prompt": "p", "completion": text, "label": label} for text, label in (("a", True), ("b", False))]
    write_table(tmp_path / "t", lone)
    (tmp_path / "likes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in shared), encoding="utf-8")
    for objective in ("kto", "bco", "diffusion_kto"):
        unpaired = config(tmp_path / "t", objective={objective: {"beta": 1.0}}, transforms=["singles"], output_dir=str(tmp_path / "o"))
        assert [entry.prob for entry in opened(unpaired, None).entries] == [0.0, 1.0] * 3
        of_file = replace(unpaired, dataset_name=str(tmp_path / "likes.jsonl"), output_dir=str(tmp_path / objective))
        assert [(entry.order, entry.prob) for entry in opened(of_file, None).entries] == [((0,), 1.0), ((1,), 0.0)]
        with pytest.raises(TableError, match=r"transforms: \[singles\]"):
            opened(replace(unpaired, transforms=None), None)
    liked = opened(replace(unpaired, objective="denoise", beta=None), None)
    assert [entry.id for entry in liked.entries] == ["v1", "v3", "v5"]
    write_table(tmp_path / "disliked", lone[::2])
    opened(replace(unpaired, dataset_name=str(tmp_path / "disliked"), output_dir=str(tmp_path / "d")), None)
    assert "all 3 candidates are disliked, and nothing says what to draw instead" in caplog.text
    assert caplog.text.count("nothing says") == 1
    both = [{"prompt": "q", "completion": text, "label": False} for text in "cd"]
    (tmp_path / "bad.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*shared, *both]), encoding="utf-8")
    imitated = {"objective": "denoise", "beta": None, "transforms": [{"pairs": {"how": "best_worst"}}, "orient"]}
    of_bad = replace(unpaired, dataset_name=str(tmp_path / "bad.jsonl"), output_dir=str(tmp_path / "bad"), **imitated)
    assert [entry.order for entry in opened(of_bad, None).entries] == [(0, 1)]  # not the first of the two that are disliked
    with pytest.raises(TableError, match=r"`dpo` compares 2 candidates.*diffusion_kto"):
        opened(replace(unpaired, objective={"dpo": {"beta": 1.0}}), None)
