"""Curry-DPO: a curriculum in which the reference of each stage is the policy as the stage began."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace

import pytest

from diffalign.core.errors import ConfigError
from diffalign.data.importing import import_dataset
from diffalign.data.records import Candidate, Record
from diffalign.data.table import write_table
from diffalign.methods.config import TrainConfig
from diffalign.train.stages import Renewals
from diffalign.train.trainer import trainer_for
from tests.checked import checked
from tests.train.configs import small_config
from tests.train.test_text_training import config as text_config
from tests.train.test_text_training import world as world

CURRY = {"curriculum": {"gap": {"score": "taste", "stages": 2}}, "reference": "old_policy", "max_train_steps": 4}
BEGINS = 2  # the step before which the second stage does


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Return a table of eight pairs of texts with a score."""
    records = [
        Record(
            str(i), f"prompt {i}", tuple(Candidate(text=f" {word}", scores={"taste": s}) for word, s in (("a", float(i)), ("b", 0.0))), 1.0
        )
        for i in range(8)
    ]
    return write_table(tmp_path_factory.mktemp("texts") / "table", records).path


def fitted(config: TrainConfig):
    """Train and return the rows of the log."""
    return [json.loads(line) for line in (trainer_for(checked(config)).fit() / "train_log.jsonl").read_text().splitlines()]


def renewed(rows) -> None:
    """Assert that the policy leaves its reference within a stage, and is it again as the second begins."""
    assert [row["loss"] == pytest.approx(math.log(2.0), abs=1e-6) for row in rows] == [True, False, True, False]
    assert rows[BEGINS]["log_ratio/chosen"] == pytest.approx(0.0, abs=1e-6)
    assert abs(rows[BEGINS - 1]["log_ratio/chosen"]) > 1e-6


@pytest.mark.parametrize("train_method", ["lora", "full"])
def test_the_reference_of_a_stage_of_texts_is_the_policy_as_it_began_also_after_a_kill(world, texts, tmp_path, train_method):
    own = {"dataset_name": str(texts), "train_method": train_method, "learning_rate": 1e-3, "checkpointing_steps": 3, **CURRY}
    config = text_config(world, tmp_path / "whole", **own)
    rows = fitted(config)
    renewed(rows)
    (tmp_path / "cut").mkdir()
    shutil.copytree(tmp_path / "whole" / "checkpoint-3", tmp_path / "cut" / "checkpoint-3")
    assert fitted(replace(config, output_dir=str(tmp_path / "cut"), resume_from_checkpoint="latest")) == rows[3:]


def test_the_reference_of_a_stage_of_images_is_the_policy_as_it_began(micro_sd, pairs_file, tmp_path):
    whole = import_dataset(str(pairs_file), tmp_path / "pairs")
    scored = (
        replace(record, candidates=tuple(replace(c, scores={"taste": float(place)}) for place, c in enumerate(record.candidates)))
        for record in (whole[i] for i in range(4))
    )
    table = write_table(tmp_path / "scored", scored).path
    own = {"train_batch_size": 2, "learning_rate": 1e-2, "beta": 500.0, **CURRY}
    renewed(fitted(small_config(micro_sd, table, tmp_path / "run", **own)))


@pytest.mark.parametrize(("steps", "stages", "expected"), [(10, 3, {4, 7}), (9, 3, {3, 6}), (5, 1, set())])
def test_a_reference_is_renewed_before_the_first_step_of_a_stage_alone(steps, stages, expected):
    config = TrainConfig(curriculum={"gap": {"stages": stages}}, reference="old_policy", max_train_steps=steps)
    renewals = Renewals.of(config, None)  # pyright: ignore[reportArgumentType]  # nothing is renewed here
    assert renewals is not None
    assert renewals.steps == expected
    assert Renewals.of(replace(config, reference="policy_start"), None) is None  # pyright: ignore[reportArgumentType]  # as above


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"curriculum": None}, "`reference` is 'old_policy'; expected policy_start or none"),
        ({"trajectory_cache": 2}, "`trajectory_cache` is 2"),
    ],
)
def test_an_older_policy_that_is_none_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        checked(TrainConfig(dataset_name="pairs", **CURRY | changes))
