"""Nothing vanishes silently: what becomes of a table's records is counted, and what would train on the wrong thing is refused."""

from __future__ import annotations

import json
import logging
from dataclasses import replace

import numpy as np
import pytest

from diffalign.core.errors import RecordError, TableError
from diffalign.core.keys import Kind
from diffalign.data.importing import import_dataset
from diffalign.data.labels import labels_of
from diffalign.data.records import Candidate, Record
from diffalign.data.table import write_table
from diffalign.methods.builders.data import open_dataset
from diffalign.methods.config import TrainConfig
from diffalign.methods.recipe import recipe_of
from diffalign.train.trainer import trainer_for
from tests.data.image_files import JPEGS, put


def record(name, *ranks, prob=None, **fields):
    candidates = tuple(Candidate(text=f"{name}{i}", rank=rank) for i, rank in enumerate(ranks))
    return Record(name, "p", candidates, prob, source=name, **fields)


PAIR = record("pair", None, None, prob=1.0)


def opened(folder, records, *, kind: Kind | None = "text", **fields):
    write_table(folder / "t", records, overwrite=True)
    config = TrainConfig(dataset_name=str(folder / "t"), **fields)
    return open_dataset(config, recipe_of(config, kind))


def test_every_record_that_is_not_trained_on_is_counted_with_its_reason(tmp_path, caplog):
    records = [
        PAIR,
        record("tie", None, None, prob=0.5),
        record("unranked", None, None, None),
        record("halfranked", 1.0, None, 2.0, None),
        record("lone", None, prob=1.0),
        record("even", 2.0, 2.0),
    ]
    with caplog.at_level(logging.INFO):
        view = opened(tmp_path, records)
    assert view.usage.facts() == {
        "records": 6,
        "trained": 2,
        "dropped": {"ties": 2, "have no label or rank": 1, "have one candidate": 1},
        "unranked_candidates": 2,
    }
    (line,) = [entry.message for entry in caplog.records if "records:" in entry.message]
    assert all(
        fact in line for fact in ("6 records: 2 train;", "1 have no label or rank", "2 ties", "1 have one candidate", "2 candidates")
    )
    assert (
        "left out by `min_margin`"
        in opened(tmp_path, [PAIR, replace(PAIR, id="b", prob=0.6)], transforms=[{"min_margin": {"margin": 0.5}}]).usage.facts()["dropped"]
    )


def test_a_table_most_of_which_states_no_preference_is_refused_unless_the_transforms_are_named(tmp_path):
    records = [PAIR, *(record(f"u{i}", None, None, None, None) for i in range(3))]
    with pytest.raises(
        TableError, match=r"most records state no preference .*4 records: 1 trains; 3 have no label or rank, 0 ties.*`transforms: "
    ):
        opened(tmp_path, records)
    assert len(opened(tmp_path, records, transforms=["pairs", "drop_ties", "orient"])) == 1
    with pytest.raises(TableError, match=r"no pair with a preference is left of 3 records.*3 have no label or rank"):
        opened(tmp_path, records[1:])


def test_users_that_are_left_out_are_counted(tmp_path):
    view = opened(tmp_path, [replace(PAIR, id=f"{i}", user="u") for i in range(2)])
    view.keep([0], "have no user with enough pairs")
    assert view.usage.facts()["dropped"] == {"have no user with enough pairs": 1}


def test_the_column_weight_weighs_a_records_loss(tmp_path):
    lines = "prompt,response_0,response_1,winner,weight\np,a,b,A,2\nq,c,d,B,0\nr,e,f,A,\n"
    put(tmp_path, {"v.csv": lines})
    table = import_dataset(str(tmp_path / "v.csv"), tmp_path / "t")
    config = TrainConfig(dataset_name=str(tmp_path / "t"))
    view = open_dataset(config, recipe_of(config, "text"))
    assert [entry.weight for entry in view.entries] == [2.0, 0.0, None]
    weight = labels_of(view, view.entries).weight
    assert weight is not None
    assert weight.tolist() == [2.0, 0.0, 1.0]
    put(tmp_path, {"v.csv": lines.replace(",2\n", ",3\n")})
    assert import_dataset(str(tmp_path / "v.csv"), tmp_path / "other").fingerprint != table.fingerprint
    for bad in ("nan", "-3", "inf"):
        with pytest.raises(RecordError, match=f"bad.*`weight` is {bad}"):
            opened(tmp_path, [replace(PAIR, meta={"weight": bad}, source="bad")])


def test_a_disliked_answer_is_never_learned_from(tmp_path):
    lone = [record(f"l{i}", None, prob=prob) for i, prob in enumerate((1.0, 0.0, 1.0, 0.0))]
    view = opened(tmp_path, lone, objective="denoise", transforms=[], kind=None)
    assert [entry.id for entry in view.entries] == ["l0", "l2"]
    assert view.usage.facts()["dropped"] == {"are disliked, and `denoise` learns from liked ones": 2}
    pairs = [PAIR, record("loser", None, None, prob=0.2)]
    with pytest.raises(TableError, match=r"`denoise` learns from the first candidate, and in loser .*prob 0\.2.*`orient`"):
        opened(tmp_path, pairs, objective="denoise", transforms=[], kind=None)
    assert [entry.order for entry in opened(tmp_path, pairs, objective="denoise", transforms=["orient"], kind=None).entries] == [
        (0, 1),
        (1, 0),
    ]
    with pytest.raises(TableError, match=r"compares 2 candidates a record; found 1.*as KTO's data have"):
        opened(tmp_path, lone, transforms=[])


def test_prompts_of_an_images_own_are_refused(tmp_path):
    pair = (Candidate(image=JPEGS[0], prompt="a star"), Candidate(image=JPEGS[1], prompt="a ring"))
    with pytest.raises(TableError, match=r"a candidate of joint has a prompt of its own, 'a ring'"):
        opened(tmp_path, [Record("joint", "a star", pair, 1.0)], kind="image")
    same = tuple(replace(candidate, prompt="a star") for candidate in pair)
    assert len(opened(tmp_path, [Record("joint", "a star", same, 1.0)], kind="image")) == 1


def test_a_run_says_what_became_of_its_records_and_which_prompts_are_cut(micro_sd, tmp_path, caplog):
    images = (Candidate(image=JPEGS[0]), Candidate(image=JPEGS[1]))
    records = [Record("a", "star " * 200, images, 1.0), Record("b", "a star", images, 0.0), Record("c", "a star", images, 0.5)]
    write_table(tmp_path / "t", records)
    config = TrainConfig(
        pretrained_model_name_or_path=str(micro_sd),
        dataset_name=str(tmp_path / "t"),
        output_dir=str(tmp_path / "run"),
        max_train_steps=1,
        rank=2,
    )
    with caplog.at_level(logging.INFO):
        folder = trainer_for(config).fit()
    facts = json.loads((folder / "run.json").read_text())["data"]
    assert facts == {"records": 3, "trained": 2, "dropped": {"ties": 1}, "cut_prompts": 1}
    assert any("1 of 2 prompts exceed" in entry.message for entry in caplog.records)
    assert np.isfinite([json.loads(line)["loss"] for line in (folder / "train_log.jsonl").read_text().splitlines()]).all()
