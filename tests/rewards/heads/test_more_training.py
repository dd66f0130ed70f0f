"""Heads with a loss of their own through the whole way: dataset, training, what is held out, scorer; of images and of texts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from diffalign.core.errors import ConfigError, TableError
from diffalign.data.pictures import encode_image
from diffalign.data.records import Candidate, Record
from diffalign.data.table import read_table, write_table
from diffalign.rewards.score_table import score_table
from diffalign.rewards.table import load_scorer, together
from diffalign.train.align import align
from tests.each import each
from tests.rewards.heads.test_training import QUICK, grey, run_of, votes

SHORT = QUICK | {"max_train_steps": 30, "log_every": 30}
SMALL = {"hidden": 8}
HEADS = {
    "ordinal": SMALL,
    "ranklist": SMALL,
    "armo": {"aspects": ["light", "dark"], "gate_hidden": 8, "temperature": 1.0},
    "micro": SMALL | {"router_hidden": 8},
    "maxmin": SMALL,
    "gpm": SMALL,
    "bt_then_regression": SMALL | {"score": "light"},
    "more": SMALL | {"by": "place"},
    "meta": SMALL | {"by": "place", "shifted": "b"},
    "like": SMALL,
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Return a table of pairs whose lighter picture is preferred, with scores and a column, and one of likes of light pictures."""
    root, rng = tmp_path_factory.mktemp("more"), np.random.default_rng(0)
    records, likes = [], []
    for number in range(32):
        shades = rng.choice(256, 2, replace=False)
        scored = [{"light": float(s) / 255, "dark": 1.0 - float(s) / 255} for s in shades]
        made = tuple(Candidate(image=encode_image(grey(s)), scores=own) for s, own in zip(shades, scored, strict=True))
        prompt, place = f"prompt {number % 8}", {"place": "ab"[number % 2]}
        records.append(
            Record(str(number), prompt, made, prob=float(shades[0] > shades[1]), source=f"votes.jsonl line {number}", meta=place)
        )
        likes.append(Record(str(number), prompt, made[:1], prob=float(shades[0] > 127), source=f"likes.jsonl line {number}"))
    write_table(root / "votes", records)
    write_table(root / "likes", likes)
    return root


def run(world, folder, name, **changes):
    """Return a finished run of a head."""
    table = world / ("likes" if name == "like" else "votes")
    options = {"held_out_share": 0.25, "reward_head": {name: HEADS[name] | changes}, "output_dir": folder, "overwrite_output_dir": True}
    return align("pixels", table, method=f"reward_{name}", **options, **SHORT)


def test_every_head_learns_what_is_lighter_and_scores_by_it(world, tmp_path):
    def check(name):
        folder = run(world, tmp_path / name, name)
        assert run_of(folder)["held_out"]["accuracy"] >= 0.75
        spec = {"trained": {"path": str(folder)}}
        dark, light = load_scorer(spec)([grey(20), grey(230)], ["prompt 1", "prompt 1"])
        assert dark < light
        assert together(spec) == (name == "gpm")

    each(HEADS)(check)()


def test_a_run_scores_by_one_of_its_parts(world, tmp_path):
    folder = run(world, tmp_path / "armo", "armo", temperature=2.0)
    scorer = load_scorer({"trained": {"path": str(folder), "part": "dark"}})
    dark, light = scorer([grey(20), grey(230)], ["prompt 1", "prompt 1"])
    assert dark > light
    assert scorer.name == "trained-dark"
    with pytest.raises(ConfigError, match=r"has no part `drak`\. Did you mean `dark`"):
        load_scorer({"trained": {"path": str(folder), "part": "drak"}})


def test_a_regression_goes_on_from_a_run_of_bt(world, tmp_path):
    start = align("pixels", world / "votes", method="reward_bt", output_dir=tmp_path / "bt", reward_head={"bt": SMALL}, **SHORT)
    folder = run(world, tmp_path / "then", "bt_then_regression", start=str(start))
    light = load_scorer({"trained": {"path": str(folder)}})([grey(230)], ["prompt 1"])[0]
    assert light == pytest.approx(230 / 255, abs=0.25)
    with pytest.raises(ConfigError, match="another size of head"):
        run(world, tmp_path / "other", "bt_then_regression", start=str(start), hidden=9)
    with pytest.raises(ConfigError, match="expected one of reward_bt"):
        run(world, tmp_path / "other", "bt_then_regression", start=str(folder))


def test_a_users_few_votes_choose_among_the_groups_of_a_run(tmp_path):
    """Two users of opposite tastes vote on the same pictures, and nothing says who is who; then each shows eight pairs."""
    write_table(tmp_path / "votes", votes(("ann", "bob"), 16))
    options = SHORT | {"max_train_steps": 60, "reward_head": {"micro": SMALL | {"router_hidden": 2}}}
    folder = align("pixels", tmp_path / "votes", method="reward_micro", output_dir=tmp_path / "run", **options)
    for user in ("ann", "bob"):
        write_table(tmp_path / user, votes((user,), 4, 2, seed=5))
        scorer = load_scorer({"trained": {"path": str(folder), "user": str(tmp_path / user)}})
        dark, light = scorer([grey(20), grey(230)], ["prompt 1", "prompt 1"])
        assert (dark < light) == (user == "ann")
        assert scorer.name == f"trained-{user}"
    with pytest.raises(ConfigError, match=r"no user of .* and no file with pairs"):
        load_scorer({"trained": {"path": str(folder), "user": "ann"}})


def test_new_pictures_that_no_transform_keeps_are_named_and_not_silently_missed(world, tmp_path):
    old = [replace(record, prob=None) if record.meta["place"] == "b" else record for record in read_table(world / "votes")]
    table = write_table(tmp_path / "unlabelled", old).path
    with pytest.raises(TableError, match=r"leave no pair of the source `b`.*such as 0\.5"):
        align("pixels", table, method="reward_meta", reward_head={"meta": HEADS["meta"]}, output_dir=tmp_path / "run", **SHORT)


def test_what_a_head_cannot_be_trained_on_is_refused(world, tmp_path):
    for changes, error, message in (
        ({"reward_head": {"armo": {"aspects": ["light"]}}, "method": "reward_armo"}, ConfigError, "expected two or more scores"),
        ({"reward_head": {"armo": {"aspects": ["light", "fun"]}}, "method": "reward_armo"}, TableError, "the score `fun` is missing"),
        (
            {"reward_head": {"armo": {"aspects": ["light", "dark"], "decorrelate": "drak"}}, "method": "reward_armo"},
            ConfigError,
            r"`decorrelate` is drak, and none of the `aspects`\. Did you mean `dark`",
        ),
        (
            {"reward_head": {"meta": {"by": "place", "shifted": "c"}}, "method": "reward_meta"},
            TableError,
            "no record is of the source `c`",
        ),
        ({"reward_head": {"more": {"by": "town"}}, "method": "reward_more"}, TableError, "votes.jsonl line 0: has no `town`"),
        ({"reward_head": {"more": {}}, "method": "reward_more"}, TableError, r"all records are of one source by `source` \(votes.jsonl\)"),
        ({"reward_head": {"gpm": {"tau": 0.0}}, "method": "reward_gpm"}, ConfigError, "`tau` is 0.0; expected a number above zero"),
        ({"reward_head": {"gpm": {}}, "method": "reward_gpm", "beta": 2.0}, ConfigError, "brings its own loss, and `beta` 2.0"),
        ({"method": "reward_bt_then_regression"}, ConfigError, "needs `score`"),
    ):
        with pytest.raises(error, match=message):
            align("pixels", world / "votes", output_dir=tmp_path / "run", **changes, **SHORT)


def test_heads_of_texts_read_a_language_models_hidden_states(tmp_path):
    """Answers that name a colour are preferred to those that do not."""
    records = []
    for number, (noun, colour) in enumerate((n, c) for n in ("star", "heart", "ring", "cross") for c in ("red", "blue")):
        texts = (Candidate(text=f" {colour} {noun}"), Candidate(text=f" {noun}"))
        records.append(Record(str(number), f"a {noun}", texts, prob=1.0, source=f"texts line {number}"))
    given = {"held_out_share": 0.25, "reward_head": {"bt": {"hidden": 0}}, **SHORT}
    folder = align("tiny-lm", records, method="reward_bt", output_dir=tmp_path / "run", **given)
    scorer = load_scorer({"trained": {"path": str(folder)}})
    plain, coloured = scorer([" star", " red star"], ["a star", "a star"])
    assert plain < coloured
    write_table(tmp_path / "texts", records)
    scored = score_table(read_table(tmp_path / "texts"), tmp_path / "scored", [{"trained": {"path": str(folder)}}])
    assert [r.candidates[0].scores["trained"] > r.candidates[1].scores["trained"] for r in scored] == [True] * len(records)
    with pytest.raises(ConfigError, match="rewards are of texts"):
        scorer.embeds.images([grey(1)])
