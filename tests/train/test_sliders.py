"""Training sliders: from scored pictures to a run with their quantiles; missing and constant scores are refused before weights load."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import diffalign
from diffalign.core.errors import ConfigError, TableError
from diffalign.data.pictures import encode_image
from diffalign.data.records import Candidate, Record
from diffalign.data.table import write_table
from diffalign.data.world.scenes import random_scene, render
from diffalign.infer.preview import drawn
from diffalign.methods.builders.data import open_dataset
from diffalign.methods.config import TrainConfig
from diffalign.methods.recipe import recipe_of
from diffalign.train import align as api
from diffalign.train.trainer import trainer_for
from tests.checked import checked

SLIDER = {"tokens": 1, "width": 8, "attributes": ["size", "age"], "dropout": 0.0}


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Three records of two pictures each, which nobody has compared, with sizes 0 to 5, ages that fall, and one height."""
    rng, records = np.random.default_rng(0), []
    for number in range(3):
        scores = [{"size": float(2 * number + place), "age": -float(number), "tall": 1.0} for place in range(2)]
        pictures = [encode_image(render(random_scene(rng), rng)) for _ in scores]
        candidates = tuple(Candidate(image=image, scores=own) for image, own in zip(pictures, scores, strict=True))
        records.append(Record(f"r{number}", "a star", candidates, source=f"row {number}"))
    return write_table(tmp_path_factory.mktemp("scored") / "table", records).path


@pytest.fixture
def config(micro_sd, table, tmp_path):
    return TrainConfig(
        pretrained_model_name_or_path=str(micro_sd),
        dataset_name=str(table),
        output_dir=str(tmp_path / "run"),
        method="ppd",
        objective="denoise",
        reference="none",
        transforms=[{"singles": {"score": None}}],
        user_encoder={"slider": SLIDER},
        max_train_steps=3,
        train_batch_size=6,
        learning_rate=1e-2,
    )


def test_a_run_learns_all_sliders_keeps_their_quantiles_and_draws_by_them(config):
    folder = api.train(config)
    personal = diffalign.load(folder)
    assert personal.encoder.quantiles[[0, 50, 100]].tolist() == [[0.0, -2.0], [2.5, -1.0], [5.0, 0.0]]
    fresh = trainer_for(replace(config, output_dir=config.output_dir + "-fresh"))
    for name, value in fresh.network.user_encoder.named_parameters():
        assert not torch.equal(value, personal.encoder.state_dict()[name]), name
    assert json.loads((folder / "run.json").read_text())["records"] == 6
    small, large = personal.for_user({"size": 0.0}).tokens, personal.for_user({"size": 1.0}).tokens
    assert (small[0] - large[0]).abs().max() > 1e-3
    assert len(drawn(fresh.parts, config, ["a star"], [0], "look", num_inference_steps=1)) == 5  # nobody, and each slider's ends


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        (["sise"], r"no score `sise` for a slider to learn\. Did you mean `size`\?.*; `diffalign score` gives pictures scores"),
        (["size", "tall"], "score `tall` is 1 of all 6 pictures"),
    ],
)
def test_scores_that_are_missing_or_tell_nothing_are_refused_when_the_data_are_opened(config, attributes, message):
    own = replace(config, user_encoder={"slider": {**SLIDER, "attributes": attributes}})
    with pytest.raises(TableError, match=message):
        open_dataset(own, recipe_of(own))


def test_a_slider_of_a_score_that_a_transform_makes_is_read_after_it(config):
    mood = {"weighted": {"scores": {"size": 1.0, "age": 2.0}, "into": "mood"}}
    own = replace(config, transforms=[mood, *config.transforms], user_encoder={"slider": {**SLIDER, "attributes": ["mood"]}})
    assert [column for entry in open_dataset(own, recipe_of(own)).entries for (column,) in entry.columns] == [0.0, 1.0, 0.0, 1.0, 0.0, 1.0]


def test_sliders_take_an_order_of_training_and_need_pictures(config):
    checked(replace(config, curriculum={"gap": {"score": "size", "stages": 2}}))
    with pytest.raises(ConfigError, match="sliders are learnt from pictures, which the transform `prompt_only` removes"):
        checked(replace(config, transforms=["prompt_only"]))
