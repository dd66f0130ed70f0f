"""The anchor: a second stream of records that keeps the policy where it is, on a random Stable Diffusion and a tiny language model."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace

import pytest
from safetensors.torch import load_file

from diffalign.core.errors import CheckpointError, ConfigError, TableError
from diffalign.data.importing import import_dataset
from diffalign.data.records import Candidate, Record
from diffalign.data.table import read_table, write_table
from diffalign.methods.builders.anchor import open_anchor
from diffalign.train.trainer import trainer_for
from tests.checked import checked
from tests.train.configs import small_config
from tests.train.test_text_training import config as text_config
from tests.train.test_text_training import world as world


@pytest.fixture(scope="module")
def table(pairs_file, tmp_path_factory):
    """Return a table of eight pairs, whose labels an anchor does not read."""
    whole = import_dataset(str(pairs_file), tmp_path_factory.mktemp("anchor") / "whole")
    return write_table(whole.path.with_name("anchor"), (whole[i] for i in range(8))).path


@pytest.fixture
def config(micro_sd, pairs_file, table, tmp_path):
    own = {"anchor_dataset_name": str(table), "anchor_weight": 500.0, "beta": 500.0}
    return small_config(micro_sd, pairs_file, tmp_path / "run", max_train_steps=3, train_batch_size=4, learning_rate=1e-3, **own)


def run(config, **changes):
    """Train and return (final weights, log rows)."""
    folder = trainer_for(checked(replace(config, **changes))).fit()
    rows = [json.loads(line) for line in (folder / "train_log.jsonl").read_text().splitlines()]
    return load_file(next(folder.glob("*.safetensors"))), rows


def test_every_candidate_is_a_record_of_its_own_whatever_its_label(config, table):
    view = open_anchor(config, "image")
    assert view is not None
    assert [(entry.row, entry.order, entry.prob) for entry in view.entries] == [(i // 2, (i % 2,), 1.0) for i in range(16)]
    assert view[1].candidates[0].image == read_table(table)[0].candidates[1].image


def test_an_anchor_begins_at_zero_leaves_the_first_gradient_alone_and_then_holds(config, tmp_path):
    plain, alone = run(config, anchor_dataset_name=None, anchor_weight=None)
    held, rows = run(config, output_dir=str(tmp_path / "held"))
    assert rows[0]["anchor"] == 0.0  # the policy is the reference, so that its gradient is zero, too
    assert rows[0]["loss"] == alone[0]["loss"]
    assert rows[0]["grad_norm"] == alone[0]["grad_norm"]
    assert rows[1]["anchor"] > 0.0
    assert rows[2]["grad_norm"] != alone[2]["grad_norm"]
    assert any((plain[name] != value).any() for name, value in held.items())


def test_the_anchor_divides_like_the_batch(config, tmp_path):
    linear = {"adam_epsilon": 1.0, "learning_rate": 1.0, "beta": 10.0, "anchor_weight": 10.0}
    large, log = run(config, **linear)
    small, rows = run(config, train_batch_size=1, gradient_accumulation_steps=4, output_dir=str(tmp_path / "small"), **linear)
    assert log[2]["anchor"] > 0.0
    assert [row["anchor"] for row in rows] == pytest.approx([row["anchor"] for row in log], rel=1e-4, abs=1e-9)
    assert max((large[name] - small[name]).abs().max().item() for name in large) < 1e-5


def test_a_resumed_run_repeats_its_anchor_and_another_anchor_is_refused(config, table, tmp_path):
    whole, log = run(config, checkpointing_steps=2)
    cut = tmp_path / "cut"
    cut.mkdir()
    for name in ("checkpoint-2", "data"):
        shutil.copytree(tmp_path / "run" / name, cut / name)
    resumed, rows = run(config, output_dir=str(cut), resume_from_checkpoint="latest")
    assert rows[-1] == log[-1]
    assert all((whole[name] == value).all() for name, value in resumed.items())
    other = write_table(tmp_path / "other", (read_table(table)[i] for i in range(2))).path
    with pytest.raises(CheckpointError, match="anchor"):
        run(config, output_dir=str(cut), resume_from_checkpoint="latest", anchor_dataset_name=str(other))


def test_texts_are_anchored_by_the_likelihood_of_the_models_own_answers(world, tmp_path):
    answers = [Record(str(i), f"a square {i}", (Candidate(text=" that is blue"),), source=f"row {i}") for i in range(4)]
    table = write_table(tmp_path / "answers", answers).path
    own = {"anchor_dataset_name": str(table), "anchor_weight": 1.0, "max_train_steps": 2}
    folder = trainer_for(checked(text_config(world, tmp_path / "run", **own))).fit()
    rows = [json.loads(line) for line in (folder / "train_log.jsonl").read_text().splitlines()]
    assert rows[0]["anchor"] > rows[1]["anchor"] > 0.0  # minus the log-likelihood, which training raises
    with pytest.raises(ConfigError, match=r"`distil` compares the outputs of denoisers"):
        trainer_for(checked(text_config(world, tmp_path / "again", anchor_objective="distil", **own)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"anchor_weight": None}, "has no `anchor_weight`"),
        ({"anchor_dataset_name": None}, "`anchor_weight` is 500.0; expected nothing"),
        ({"anchor_dataset_name": "no/such"}, "`anchor_dataset_name` is 'no/such', which is no preference table"),
        ({"anchor_objective": "distill"}, "`anchor_objective` is 'distill'. Did you mean `distil`"),
        ({"anchor_objective": {"distil": {"beta": 1}}}, "`distil` takes no `beta`"),
        ({"method": "ppd"}, "`train_method` user"),
        ({"reference": "old_policy", "curriculum": {"gap": {"score": "taste"}}}, "set anchor_objective to denoise"),
    ],
)
def test_an_anchor_that_cannot_be_meant_is_refused_by_name(config, changes, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        trainer_for(replace(config, **changes))


def test_texts_are_no_anchor_of_pictures(config, tmp_path):
    texts = write_table(tmp_path / "texts", [Record("0", "a square", (Candidate(text="blue"),), source="row 0")]).path
    with pytest.raises(TableError, match="1 texts; the anchor needs images"):
        trainer_for(replace(config, anchor_dataset_name=str(texts)))
