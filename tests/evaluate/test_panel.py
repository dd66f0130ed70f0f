"""Who judges a run: not those whose scores its training used."""

from __future__ import annotations

import json

import pytest
import yaml

from diffalign.core.errors import ConfigError
from diffalign.core.runs import Run, scorers_of
from diffalign.data.records import Candidate, Record
from diffalign.data.table import write_table
from diffalign.evaluate.panel import Panel, TrainingScorers, panel, trained_with

CAPTIONS = ["a red star", "a ring at the left"]
RANKED = [{"name": "high", "spec": {"taste": {"name": "high"}}}, {"name": "adherence", "spec": "adherence"}]


@pytest.fixture
def run(tmp_path):
    """A way to write a finished run on a table with that manifest."""

    def written(settings=None, method="rank_dpo", **manifest):
        candidates = tuple(Candidate(image=b"1", scores={"high": 0.5, "adherence": 1.0}) for _ in range(2))
        table = write_table(tmp_path / "votes", [Record("1", "a star", candidates)], **manifest)
        folder = tmp_path / "run"
        folder.mkdir()
        facts = {"method": method, "base": "assets/tiny-sd", "train_method": "lora", "table": table.fingerprint}
        (folder / "run.json").write_text(json.dumps(facts))
        (folder / "config.yaml").write_text(yaml.safe_dump({"dataset_name": str(table.path), **(settings or {})}))
        return folder

    return written


def test_what_ranked_the_table_was_trained_on(run):
    folder = run(generated={"rank_by": "high"}, scorers=RANKED)
    assert trained_with(Run.open(folder)) == TrainingScorers(frozenset({"high", "gains"}), ({"taste": {"name": "high"}},))
    known = panel(CAPTIONS, [Run.open(folder)])
    assert known.all == ("adherence", {"taste": {"name": "high"}})
    assert [known.held_out(spec, name) for spec, name in zip(known.all, ("adherence", "high"), strict=True)] == [True, False]
    assert [known.reward(spec) for spec in known.all] == [False, True]


def test_of_several_that_ranked_together_all_were_trained_on(run):
    folder = run(generated={"rank_by": None}, scorers=RANKED)
    assert trained_with(Run.open(folder)).names == {"high", "adherence", "gains"}
    with pytest.raises(ConfigError, match="the training used all of adherence, the default scorers; give others with --scorers"):
        panel(CAPTIONS, [Run.open(folder)])
    known = panel(CAPTIONS, [Run.open(folder)], scorers=["adherence", {"taste": {"name": "warm"}}])
    assert [known.held_out(spec, name) for spec, name in (("adherence", "adherence"), ({"taste": {"name": "warm"}}, "warm"))] == [
        False,
        True,
    ]


def test_a_score_that_the_table_has_was_trained_on_only_if_the_config_names_it(run):
    folder = run({"scores": {"gains": "adherence"}, "transforms": ["pairs", {"lowest": {"score": "high", "share": 0.5}}]}, scorers=RANKED)
    assert trained_with(Run.open(folder)).names == {"high", "adherence"}


def test_scores_that_nothing_names_are_held_out(run):
    folder = run({"eval_reward": "pickscore", "transforms": ["pairs"]}, scorers=RANKED)
    assert trained_with(Run.open(folder)) == TrainingScorers(frozenset(), ("pickscore",))


def test_a_score_that_only_the_method_names_was_trained_on_too(run):
    folder = run({"transforms": None}, method="smpo")  # whose own transforms soften labels by pickscore
    assert trained_with(Run.open(folder)) == TrainingScorers(frozenset({"pickscore"}), ("pickscore",))
    known = panel(["a photo of a cat"], [Run.open(folder)])
    assert known == Panel(("hps", "imagereward", "clipscore", "aesthetic"), ("pickscore",), trained_with(Run.open(folder)))


def test_what_the_run_itself_says_of_its_table_holds_when_the_table_is_gone(run, tmp_path):
    manifest = {"generated": {"rank_by": "high"}, "scorers": RANKED}
    folder = run(**manifest)
    whole = trained_with(Run.open(folder))
    facts = json.loads((folder / "run.json").read_text())
    (tmp_path / "votes").rename(tmp_path / "moved")
    assert panel(CAPTIONS, [Run.open(folder)], scorers=["adherence"]).held_out("adherence", "adherence") is None  # nobody knows
    (folder / "run.json").write_text(json.dumps(facts | {"scorers": scorers_of(manifest)}))
    assert trained_with(Run.open(folder)) == whole
    assert panel(CAPTIONS, [Run.open(folder)]).held_out("adherence", "adherence") is True


def test_who_picked_the_weights_may_judge_them_and_is_not_held_out(run):
    folder = run({"eval_scorers": ["hps"]})
    (folder / "run.json").write_text(json.dumps(json.loads((folder / "run.json").read_text()) | {"held_out": 0.5}))
    known = panel(["a photo of a cat"], [Run.open(folder)])
    assert known.others == ("pickscore", "hps", "imagereward", "clipscore", "aesthetic")
    assert [known.held_out(spec, spec) for spec in known.others] == [True, False, True, True, True]
    assert [known.chose(spec) for spec in known.others] == [False, True, False, False, False]


def test_a_reward_that_is_given_is_no_judge_whatever_the_files_say(run):
    finished = Run.open(run())
    known = panel(["a photo of a cat"], [finished], reward="pickscore")
    assert known == Panel(("hps", "imagereward", "clipscore", "aesthetic"), ("pickscore",), TrainingScorers(frozenset({"gains"})))
    known = panel(
        CAPTIONS, [finished], scorers=[{"hps": {"version": "2.0"}}, "pickscore"], reward={"hps": {"version": "2.0"}}, taste="warm"
    )
    assert known.all == ({"hps": {"version": "2.0"}}, "pickscore", {"taste": {"name": "warm"}})
    assert [known.held_out(spec, name) for spec, name in ((known.all[0], "hpsv2.0"), ("pickscore", "pickscore"))] == [False, True]


def test_a_constant_that_is_the_default_makes_no_other_scorer(run):
    known = panel(["a photo of a cat"], [Run.open(run())], reward={"hps": {"version": "2.1"}})
    assert "hps" not in known.others


def test_a_scorer_that_is_none_is_refused(run):
    with pytest.raises(ConfigError, match="Did you mean `pickscore`"):
        panel(CAPTIONS, [Run.open(run())], scorers=["pikscore"])


def test_a_judge_on_a_server_is_the_same_under_another_name_and_in_another_manner():
    spec = {"vlm": {"url": "http://host/v1", "model": "m", "protocol": "pairwise"}}
    trained = TrainingScorers(scorers=(spec,))
    assert trained.used({"vlm": spec["vlm"] | {"name": "verdict", "cache": "a.db", "concurrency": 1}}, "verdict")
    assert not trained.used({"vlm": spec["vlm"] | {"protocol": "pointwise"}}, "vlm")
    assert not trained.used({"vlm": spec["vlm"] | {"model": "n"}}, "vlm")
