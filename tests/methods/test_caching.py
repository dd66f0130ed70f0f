"""`cache: auto` keeps on disk what pays, says why, and trains on the same numbers either way."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from diffalign.data.batch import CachedPairs, LivePairs
from diffalign.data.importing import import_dataset
from diffalign.data.view import View
from diffalign.methods.builders import caching
from diffalign.methods.builders.caching import Costs, verdict
from diffalign.methods.builders.image import backbone, pairs
from diffalign.methods.config import TrainConfig
from diffalign.methods.recipe import recipe_of
from diffalign.train.trainer import LOG, trainer_for

# 24 pairs: 48 pictures of a second and 6 prompts of two take 60 s; an epoch in the steps 24 (2 + 2) = 96 s.
COSTS = Costs(picture=1.0, prompt=2.0, pictures=48, prompts=6, size=10, free=20, of_record=2.0, records=24, samples=24)


def test_the_break_even_is_where_filling_takes_as_long_as_the_steps_would():
    assert COSTS.filling == 60.0
    assert COSTS.epochs == 1.0
    assert COSTS.break_even == 60.0 / 96.0
    assert verdict(COSTS, Path("c"))[0]
    assert verdict(replace(COSTS, samples=16), Path("c"))[0]
    assert not verdict(replace(COSTS, samples=14), Path("c"))[0]  # 0.583 epochs
    assert not verdict(replace(COSTS, pictures=96), Path("c"))[0]  # two variants: 108 s


def test_what_does_not_fit_on_the_disk_is_made_in_the_steps_and_what_is_there_is_read():
    kept, why = verdict(replace(COSTS, size=2**31, free=2**30, samples=10**6), Path("c"))
    assert not kept
    assert "2.00 GiB" in why
    assert "1.00 GiB are free in c" in why
    kept, why = verdict(replace(COSTS, pictures=0, prompts=0, size=0, free=0, samples=1), Path("c"))
    assert kept
    assert "all are there" in why


@pytest.fixture
def table(pairs_file, tmp_path):
    return import_dataset(str(pairs_file), tmp_path / "table")


@pytest.fixture
def config(micro_sd, table):
    values = {"pretrained_model_name_or_path": str(micro_sd), "dataset_name": str(table.path), "cache": "auto", "train_batch_size": 4}
    return TrainConfig(**values, max_train_steps=2, learning_rate=1e-3, beta=10.0)  # which multiplies rounding


def test_a_third_of_an_epoch_is_encoded_in_its_steps_and_two_before_them(config, tmp_path, caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(caching, "_seconds", lambda _: 1.0)  # a machine that nobody else works on
    losses = []
    for number, (steps, kind) in enumerate([(2, LivePairs), (12, CachedPairs), (2, CachedPairs)]):  # the last finds the second's cache
        caplog.clear()
        trainer = trainer_for(replace(config, max_train_steps=steps, output_dir=str(tmp_path / str(number))))
        assert isinstance(trainer.parts.pairs, kind)
        assert trainer.parts.live is (kind is LivePairs)
        assert "cache auto: latents and prompts are " in caplog.text
        if steps == 2:
            trainer.fit()
            losses.append([json.loads(line)["loss"] for line in (trainer.output_dir / LOG).read_text().splitlines()])
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    assert "all are there" in caplog.text


def test_costs_are_those_of_the_data_and_nothing_is_written_before_it_pays(config, table, monkeypatch, tmp_path):
    found = []
    monkeypatch.setattr(caching, "verdict", lambda costs, folder: found.append((costs, folder)) or (False, "counted"))
    own, view = replace(config, cache_dir=str(tmp_path / "elsewhere"), cache_variants=2, max_train_steps=30), View(table, [])
    pairs(own, view, backbone(own, recipe_of(own), torch.device("cpu")))
    ((costs, folder),) = found
    assert folder == tmp_path / "elsewhere"
    assert not folder.exists()
    prompts = len({entry.prompt for entry in view.entries})
    assert (costs.pictures, costs.prompts, costs.records, costs.samples) == (24 * 2 * 2, prompts, 24, 120)
    assert costs.of_record == 2.0
    assert min(costs.picture, costs.prompt) > 0.0
    assert costs.size >= costs.pictures * 4 * 8 * 8 * 4  # bytes of the latents
